"""GSM8K: 1,319 word problems of primary-school arithmetic.

Source: lighteval's `gsm8k` task, with the papers' prompt (`prompts.py`); its limit of 256 generated tokens does not
apply here. Deviation: the gold is the number after `####`. The published harness hands the metric the whole worked
solution.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.benchmarks.prompts import BOXED_DIRECTIVE, boxed_prompt, expr_gold
from suite.benchmarks.task import Benchmark, HubDataset, Row, hub_task

if TYPE_CHECKING:
    from lighteval.tasks.lighteval_task import LightevalTask
    from lighteval.tasks.requests import Doc

DATASET = HubDataset("gsm8k", "openai/gsm8k", "main", "test", "e53f048856ff4f594e959d75785d2c2d37b678ee")


def _doc(row: Row, task_name: str) -> Doc:
    from lighteval.tasks.requests import Doc

    gold = row["answer"].rpartition("####")[2].strip()
    return Doc(task_name=task_name, query=boxed_prompt(row["question"]), choices=[gold], gold_index=0)


def _task(data: Path | None) -> LightevalTask:
    from lighteval.tasks.tasks.gsm8k import gsm8k

    return hub_task(DATASET, gsm8k, _doc, expr_gold(), data)


GSM8K = Benchmark(
    name="gsm8k",
    size=1319,
    expected_tokens=1500,
    identity=lambda data: DATASET.identity(data, f"expr_gold {BOXED_DIRECTIVE}"),
    task=_task,
    metric=expr_gold,
)
