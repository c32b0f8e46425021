"""MATH-500: 500 competition problems in five levels; answers are LaTeX.

Source: lighteval's `math_500` task, with the papers' prompt (`prompts.py`) and gold: the whole solution, whose box is
the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.benchmarks.prompts import BOXED_DIRECTIVE, boxed_prompt, latex_gold
from suite.benchmarks.task import Benchmark, HubDataset, Row, hub_task

if TYPE_CHECKING:
    from lighteval.tasks.lighteval_task import LightevalTask
    from lighteval.tasks.requests import Doc

DATASET = HubDataset("math500", "HuggingFaceH4/MATH-500", "default", "test", "ff5b20257d8185524591543f8ff5993951537bb8")


def _doc(row: Row, task_name: str) -> Doc:
    from lighteval.tasks.requests import Doc

    known = {"gold": row["answer"], "level": row.get("level")}
    query = boxed_prompt(row["problem"])
    return Doc(task_name=task_name, query=query, choices=[row["solution"]], gold_index=0, specific=known)


def _task(data: Path | None) -> LightevalTask:
    from lighteval.tasks.tasks.math_500 import math_500

    return hub_task(DATASET, math_500, _doc, latex_gold(), data)


MATH500 = Benchmark(
    name="math500",
    size=500,
    expected_tokens=4000,
    identity=lambda data: DATASET.identity(data, f"latex_gold {BOXED_DIRECTIVE}"),
    task=_task,
    metric=latex_gold,
)
