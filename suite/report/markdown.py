"""A report as Markdown: the same text and tables as the HTML page, without its figures."""

import re
from collections.abc import Iterable, Sequence

from suite.report.content import Finding, Section, Table, Value
from suite.report.text import MARKS, kind


def render(title: str, question: str, status: str, sections: Sequence[Section], page: str) -> str:
    """The whole document. `page` is the file name of the HTML report, which has the figures."""
    parts = [f"# {_safe(title)}", f"**{_safe(question)}**" if question else "", _safe(status)]
    if sections:
        parts.append(f"Figures: [{page}]({page}).")
    for section in sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    if section.figures and not (section.tables or section.points):
        return []  # nothing but figures
    parts = [f"## {_safe(section.title)}", *map(_safe, section.text)]
    if section.points:
        parts.append("\n".join(f"- {_point(point)}" for point in section.points))
    return [*parts, *map(_table, section.tables), *map(_safe, section.notes)]


def _point(point: Finding) -> str:
    mark = MARKS.get(point.verdict, "")
    return f"{mark} **{_safe(point.lead)}** {_safe(point.text)}".strip()


def _table(table: Table) -> str:
    align = (
        [":--" if not value.numeric else "--:" for value in table.rows[0]] if table.rows else ["--"] * len(table.head)
    )
    lines = [_row(map(_safe, table.head)), _row(align), *(_row(map(_field, row)) for row in table.rows)]
    return f"**{_safe(table.caption)}**\n\n" + "\n".join(lines)


def _row(fields: Iterable[str]) -> str:
    return "| " + " | ".join(fields) + " |"


def _field(value: Value) -> str:
    text = _safe(value.text)
    text = f"**{text}**" if value.best else text
    mark = MARKS.get(kind(value.verdict), "")
    return "<br>".join(part for part in (f"{text} {mark}".strip(), _safe(value.sub)) if part)


def _safe(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_|<>\[\]~])", r"\\\1", " ".join(text.split()))
