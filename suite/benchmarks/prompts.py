"""The prompt of the mathematics benchmarks and the metrics that go with it.

Zero-shot, no system prompt: the problem, a blank line, and the directive that DeepSeek-R1's model card recommends.
Source: arXiv:2504.04823, whose harness is lighteval 0.8; its matching priorities are kept (a box in the answer goes
first).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lighteval.metrics.utils.metric_utils import Metric

BOXED_DIRECTIVE = r"Please reason step by step, and put your final answer within \boxed{}."


def boxed_prompt(problem: str) -> str:
    """The problem followed by the directive."""
    return f"{problem}\n\n{BOXED_DIRECTIVE}"


def expr_gold() -> Metric:
    """lighteval's metric for gold answers that are plain numbers or expressions."""
    from lighteval.metrics.metrics import Metrics

    metric: Metric = Metrics.expr_gold_metric.value  # an enum member
    return metric


@cache
def latex_gold() -> Metric:
    """lighteval's extractive match for gold answers in LaTeX. 0.13 has no name for it any more, but all its parts."""
    import numpy as np
    from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
    from lighteval.metrics.utils.extractive_match_utils import ExprExtractionConfig, LatexExtractionConfig
    from lighteval.metrics.utils.metric_utils import SampleLevelMetric
    from lighteval.tasks.requests import SamplingMethod

    matcher = MultilingualExtractiveMatchMetric(
        gold_extraction_target=(LatexExtractionConfig(),),
        pred_extraction_target=(ExprExtractionConfig(), LatexExtractionConfig(boxed_match_priority=0)),
        precision=5,
    )
    return SampleLevelMetric("extractive_match", True, SamplingMethod.GENERATIVE, matcher, np.mean)
