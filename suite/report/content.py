"""What a report consists of, before it is HTML or Markdown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """One field of a table: a number, what stands under it in small print, and the verdict about it."""

    text: str
    sub: str = ""
    verdict: str = ""
    best: bool = False
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under a head. `breaks` are the rows that a rule stands above; `folded` tables repeat what a figure shows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    breaks: frozenset[int] = frozenset()
    folded: bool = False

    @property
    def marked(self) -> bool:
        """Whether verdicts are marked in it, so that numbers without one leave room for the mark."""
        return any(value.verdict and value.numeric for row in self.rows for value in row)


@dataclass(frozen=True)
class Figure:
    """One panel: its caption and its drawing (an svg element that stands for itself, with title and description)."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Key:
    """One entry of a legend: the css class of its colour and what it stands for."""

    css: str
    label: str


@dataclass(frozen=True)
class Finding:
    """One entry of a list: what it is about, what is said of it, and the verdict."""

    lead: str
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, what to know before looking, then points, figures and tables, then what to know about them."""

    title: str
    anchor: str
    text: tuple[str, ...] = ()
    points: tuple[Finding, ...] = ()
    legend: tuple[Key, ...] = ()
    reading: str = ""  # how to read the figures
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
