"""A report as one HTML page that needs nothing else: style and drawings are in it, no script, no address."""

from collections.abc import Sequence
from pathlib import Path

from suite.report.content import Section
from suite.report.text import MARKS, kind

HERE = Path(__file__).parent


def render(title: str, question: str, status: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["kind"] = kind
    return environment.get_template("page.html").render(
        title=title,
        question=question,
        status=status,
        sections=sections,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        marks=MARKS,
    )
