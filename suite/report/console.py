"""The table at the end of a run, for a terminal."""

from typing import TYPE_CHECKING

import pandas as pd

from suite.report.content import Table, Value
from suite.report.layout import Block, arrange
from suite.report.tables import failed_table, result_table
from suite.report.text import MARKS, NOTHING, kind

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    from suite.spec import Spec

STYLES = {"lossless": "green", "fair": "yellow", "risky": "red", "not resolved": "dim", "failed": "red"}
LEGEND = (
    "Accuracy in %, under it the difference from bf16 in points with its 95% interval (bf16: that of the accuracy). "
    f"{MARKS['lossless']} lossless, {MARKS['fair']} fair, {MARKS['risky']} risky, {MARKS['not resolved']} not resolved"
)


def console_table(cells: pd.DataFrame, spec: "Spec | None" = None) -> "Group":
    """One table a spec and model (published rows: a paper's table and model), then what failed, to print with rich."""
    from rich.console import Group
    from rich.text import Text

    if cells.empty:
        return Group(Text("Nothing has been measured yet."))
    parts: list[RichTable | Text] = []
    for (name, paper), group in cells.groupby(["spec", "paper"], sort=False):
        layout = arrange(group, spec)
        for block in layout.blocks:
            parts.append(_rich(_without_empty(result_table(block), block), f"{paper or name}: {block.model}"))
        if layout.failed:
            parts.append(_rich(failed_table(layout), f"{name}: failed cells"))
    return Group(*parts, Text(LEGEND, style="dim"))


def _without_empty(table: Table, block: Block) -> Table:
    """Averages and drops left out where no row has one: published numbers come without intervals."""
    fixed = 2 + len(block.columns)
    kept = [
        i for i in range(len(table.head)) if i < fixed or any(row[i].text not in ("", NOTHING) for row in table.rows)
    ]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return Table(table.caption, tuple(table.head[i] for i in kept), rows, table.breaks)


def _rich(table: Table, title: str) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(table.head):
        numeric = bool(table.rows) and table.rows[0][index].numeric
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        shown.add_row(*map(_text, row), end_section=index + 1 in table.breaks)
    return shown


def _text(value: Value) -> "Text":
    from rich.text import Text

    verdict = kind(value.verdict)
    text = Text(value.text, style="bold" if value.best else STYLES["failed"] if verdict == "failed" else "")
    if verdict in MARKS:
        text.append(f" {MARKS[verdict]}", style=STYLES.get(verdict, "dim"))
    return text.append(f"\n{value.sub}", style="dim") if value.sub else text
