"""AIME 2024: 30 problems whose answers are integers from 0 to 999.

Source: lighteval's `aime24` task, with the papers' prompt (`prompts.py`) and its metric for gold expressions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.benchmarks.prompts import BOXED_DIRECTIVE, boxed_prompt, expr_gold
from suite.benchmarks.task import Benchmark, HubDataset, Row, hub_task

if TYPE_CHECKING:
    from lighteval.tasks.lighteval_task import LightevalTask
    from lighteval.tasks.requests import Doc

DATASET = HubDataset(
    "aime24", "HuggingFaceH4/aime_2024", "default", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a"
)


def _doc(row: Row, task_name: str) -> Doc:
    from lighteval.tasks.requests import Doc

    return Doc(task_name=task_name, query=boxed_prompt(row["problem"]), choices=[str(row["answer"])], gold_index=0)


def _task(data: Path | None) -> LightevalTask:
    from lighteval.tasks.tasks.aime import aime24

    return hub_task(DATASET, aime24, _doc, expr_gold(), data)


AIME24 = Benchmark(
    name="aime24",
    size=30,
    expected_tokens=12000,
    identity=lambda data: DATASET.identity(data, f"expr_gold {BOXED_DIRECTIVE}"),
    task=_task,
    metric=expr_gold,
)
