"""Reports: records -> `reports/<spec>.md`, a self-contained `reports/<spec>.html`, and a table for the terminal.

    arrange (layout.py) -> sections (tables.py, figures.py, summary.py) -> markdown.py, html.py, console.py

The same records give the same bytes: order comes from the spec, and nothing is stamped with a time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from suite.report import html, markdown, summary
from suite.report.console import console_table
from suite.report.layout import arrange
from suite.report.paper import published
from suite.report.sections import answers_of, sections
from suite.store import write_atomic

if TYPE_CHECKING:
    from suite.spec import Spec

__all__ = ["console_table", "write"]


def write(
    root: Path,
    spec: "Spec",
    cells: pd.DataFrame,
    samples: Callable[[str], pd.DataFrame | None],
    reference: pd.DataFrame,
    planned: int | None = None,
) -> tuple[Path, Path]:
    """Write the report of one spec; returns the Markdown file and the HTML file.

    `cells`: the spec's records, done and failed. `samples`: the table of samples by a cell's fingerprint, None if it is
    not stored. `reference`: published rows in the same columns. `planned`: the number of cells in the plan, so that the
    report can say how many were not run.

    Raises: ValueError if `cells` or `reference` lacks a column.
    """
    layout = arrange(cells, spec)
    found = {cell.fingerprint: samples(cell.fingerprint) for cell in layout.done}
    answers = {fingerprint: answers_of(table) for fingerprint, table in found.items() if table is not None}
    paper = f"{spec.paper.name} {spec.paper.table}" if spec.paper else ""
    shown = sections(layout, answers, published(reference, paper), paper)
    status = summary.status(layout, planned)
    if not layout.cells:
        status += f" `python -m suite run {spec.path}` measures it."
    folder = Path(root) / "reports"
    text_path, page = folder / f"{spec.name}.md", folder / f"{spec.name}.html"
    write_atomic(page, html.render(spec.name, spec.question, status, shown))
    write_atomic(text_path, markdown.render(spec.name, spec.question, status, shown, page.name))
    return text_path, page
