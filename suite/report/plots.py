"""The panels of a report: small drawings, a row a variant or a line a series. Every mark has its numbers as a tip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from suite.report.intervals import Interval
from suite.report.svg import WIDTH, Scale, drawing, element, path, text, tip, x_axis, y_axis
from suite.report.text import bounds, change, count, lost, points, signed
from suite.statistics import LOSSLESS, RISKY

LEFT, RIGHT = 6.0, WIDTH - 6.0
FOOT = 34.0  # room below a panel for its axis
ROW, HISTOGRAM_ROW, LINE = 34.0, 48.0, 13.0
NUM_COLOURS = 8


@dataclass(frozen=True)
class Mark:
    """A row with one estimate."""

    label: str
    estimate: Interval | None
    css: str
    note: str = ""  # instead of an estimate

    @property
    def numbers(self) -> str:
        """What is written beside the label."""
        return change(self.estimate) if self.estimate else self.note


@dataclass(frozen=True)
class Point:
    """A point of a line. `note` is what its tip says before the numbers, `label` is written in the panel."""

    x: float
    estimate: Interval
    note: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """A line."""

    label: str
    css: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Lengths:
    """Output lengths of one variant on one benchmark, and the share that the token limit cut off."""

    label: str
    css: str
    tokens: np.ndarray
    truncated: float

    @property
    def numbers(self) -> str:
        """Median, 90th percentile, and what was cut off."""
        median, p90 = (float(value) for value in np.percentile(self.tokens, [50, 90]))
        return f"{count(median)} · {count(p90)}{f', {points(self.truncated)}% cut' if self.truncated else ''}"


@dataclass(frozen=True)
class Flips:
    """Answers that BF16 had right and the variant lost, and the other way round, of `total`."""

    label: str
    lost: int
    gained: int
    total: int

    @property
    def numbers(self) -> str:
        """Lost, gained, and of how many."""
        return f"{lost(self.lost)}  +{self.gained}  of {self.total:,}"


Row = Mark | Lengths | Flips


def colour(index: int) -> str:
    """Css classes of the index-th series: a colour, and dashes once the colours are used up. 0 is BF16's."""
    return "c0" if index == 0 else f"c{(index - 1) % NUM_COLOURS + 1}{' dashed' if index > NUM_COLOURS else ''}"


def _crowded(rows: Sequence[Row]) -> bool:
    """Whether some row's numbers need a line below its label."""
    return any(6.2 * len(row.label) + 5.9 * len(row.numbers) > RIGHT - LEFT for row in rows)


def _head(row: Row, y: float, crowded: bool) -> str:
    """The label of a row and its numbers: on one line, or on two."""
    if crowded:
        return text(row.label, LEFT, y, "label") + text(row.numbers, LEFT, y + LINE, "number")
    return text(row.label, LEFT, y, "label") + text(row.numbers, RIGHT, y, "number", "end")


def drop_panel(title: str, marks: Sequence[Mark], domain: tuple[float, float]) -> str:
    """Differences from BF16 with their intervals, over the zones lossless, fair and risky."""
    crowded = _crowded(marks)
    height = ROW + LINE * crowded
    bottom = height * len(marks) + 6
    scale = Scale(*domain, LEFT + 6, RIGHT - 6)
    parts = [_zone(scale, domain[0], RISKY, bottom, "risky"), _zone(scale, RISKY, LOSSLESS, bottom, "fair")]
    parts += [_zone(scale, LOSSLESS, domain[1], bottom, "lossless")]
    parts += [x_axis(scale, 0, bottom, lambda v: signed(v).removesuffix(".0"), "points against bf16")]
    parts += [element("line", x1=scale(0), x2=scale(0), y1=0, y2=bottom, css="zero")]
    for index, mark in enumerate(marks):
        parts.append(_head(mark, height * index + 13, crowded))
        parts.append(_whisker(mark, scale, height * (index + 1) - 10))
    return drawing(title, _said(marks), bottom + FOOT, "".join(parts))


def _zone(scale: Scale, low: float, high: float, bottom: float, css: str) -> str:
    start, stop = scale.clamp(low), scale.clamp(high)
    return element("rect", x=start, y=0, width=stop - start, height=bottom, css=f"zone {css}") if stop > start else ""


def _whisker(mark: Mark, scale: Scale, y: float) -> str:
    if mark.estimate is None:
        return ""
    low, high, x = (scale.clamp(v) for v in (mark.estimate.low, mark.estimate.high, mark.estimate.value))
    parts = [tip(f"{mark.label}: {mark.numbers}"), element("line", x1=low, x2=high, y1=y, y2=y, css="whisker")]
    parts += [element("line", x1=end, x2=end, y1=y - 3.5, y2=y + 3.5, css="whisker") for end in (low, high)]
    return element("g", "".join(parts) + element("circle", cx=x, cy=y, r=4.5, css="dot"), css=mark.css)


def _said(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.label}: {row.numbers}" for row in rows)


def category_panel(title: str, categories: Sequence[str], series: Sequence[Series], domain: tuple[float, float]) -> str:
    """Accuracy over named steps. Series stand a little beside each other, so that their intervals can be told apart."""
    left, top, bottom = 34.0, 8.0, 190.0
    scale = Scale(*domain, bottom, top)
    step = (RIGHT - left) / len(categories)
    tilted = any(6.4 * len(part) > step for name in categories for part in _lines(name))
    parts = [y_axis(scale, left, RIGHT, lambda v: points(v).removesuffix(".0"))]
    for index, name in enumerate(categories):
        parts.append(_category(name, left + step * (index + 0.5), bottom, tilted))
    spread = min(7.0, 0.5 * step / max(len(series), 1))
    for index, line in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * spread
        parts.append(_line(line, [left + step * (p.x + 0.5) + shift for p in line.points], scale))
    said = "; ".join(
        f"{s.label}: {', '.join(f'{categories[int(p.x)]} {points(p.estimate.value)}' for p in s.points)}"
        for s in series
    )
    return drawing(title, said, bottom + (84 if tilted else 32), "".join(parts))


def _category(name: str, x: float, bottom: float, tilted: bool) -> str:
    if tilted:
        turn = f"translate({x + 4:.1f} {bottom + 13:.1f}) rotate(-38)"
        return element("g", text(name, 0, 0, "tick", "end"), transform=turn)
    return "".join(text(part, x, bottom + 15 + 12 * row, "tick", "middle") for row, part in enumerate(_lines(name)))


def _lines(name: str) -> list[str]:
    """A precision on two lines: bits, and group size."""
    head, dash, group = name.partition("-g")
    return [head, f"g{group}"] if dash else [name]


def _line(line: Series, xs: Sequence[float], scale: Scale) -> str:
    """A line through its points, each with the whisker of its interval."""
    parts = []
    if len(xs) > 1:
        corners = [(x, scale.clamp(p.estimate.value)) for x, p in zip(xs, line.points, strict=True)]
        parts.append(element("path", d=path(corners), css="line"))
    for x, point in zip(xs, line.points, strict=True):
        numbers = f"{points(point.estimate.value)} {bounds(point.estimate)}"
        said = tip(f"{line.label}{f', {point.note}' if point.note else ''}: {numbers}")
        low, high = scale.clamp(point.estimate.low), scale.clamp(point.estimate.high)
        whisker = element("line", x1=x, x2=x, y1=low, y2=high, css="whisker thin")
        dot = element("circle", cx=x, cy=scale.clamp(point.estimate.value), r=3.5, css="dot")
        parts.append(element("g", said + whisker + dot))
    return element("g", "".join(parts), css=line.css)


def budget_panel(title: str, series: Sequence[Series], longest: float) -> str:
    """Accuracy over mean thinking tokens: a line a variant, a point a budget. Budgets are named along the top."""
    left, top, bottom = 34.0, 26.0, 240.0
    y, x = Scale(0.0, 1.0, bottom, top), Scale(0.0, longest, left + 8, RIGHT - 12)
    parts = [y_axis(y, left, RIGHT, lambda v: points(v).removesuffix(".0"))]
    parts.append(x_axis(x, top, bottom, count, "mean thinking tokens"))
    named = [(x(p.x), p.label) for line in series for p in line.points if p.label]
    end = 0.0
    for at, label in named:  # those without room are left out: the tips and the table have them
        if at - 3.2 * len(label) > end:
            parts.append(element("line", x1=at, x2=at, y1=14, y2=bottom, css="guide"))
            parts.append(text(label, at, 10, "tick", "middle"))
            end = at + 3.2 * len(label)
    parts += [_line(line, [x(p.x) for p in line.points], y) for line in reversed(series)]  # the first one on top
    said = "; ".join(
        f"{s.label}: {', '.join(f'{points(p.estimate.value)} at {count(p.x)} tokens' for p in s.points)}"
        for s in series
    )
    return drawing(title, said, bottom + FOOT, "".join(parts))


def length_panel(title: str, rows: Sequence[Lengths], longest: float, num_bins: int = 48) -> str:
    """A histogram of output tokens a variant, all on one scale; the tick is the median."""
    crowded = _crowded(rows)
    height = HISTOGRAM_ROW + LINE * crowded
    bottom = height * len(rows) + 4
    scale = Scale(0.0, longest, LEFT + 4, RIGHT - 4)
    edges = np.linspace(0.0, longest, num_bins + 1)
    shares = [np.histogram(row.tokens, edges)[0] / row.tokens.size for row in rows]
    most = max(float(share.max()) for share in shares)
    parts = [x_axis(scale, 0, bottom, count, "output tokens")]
    for index, (row, share) in enumerate(zip(rows, shares, strict=True)):
        parts.append(_head(row, height * index + 13, crowded))
        parts.append(_histogram(row, share / most, edges, scale, height * (index + 1)))
    return drawing(title, _said(rows), bottom + FOOT, "".join(parts))


def _histogram(row: Lengths, heights: np.ndarray, edges: np.ndarray, scale: Scale, base: float) -> str:
    outline = [(scale(0.0), base)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        y = base - 30 * float(height)
        outline += [(scale(float(left)), y), (scale(float(right)), y)]
    outline.append((scale(float(edges[-1])), base))
    median = scale(float(np.median(row.tokens)))
    shape = element("path", d=path(outline, closed=True), css="area")
    tick = element("line", x1=median, x2=median, y1=base - 30, y2=base, css="median")
    return element("g", tip(f"{row.label}: {row.numbers}") + shape + tick, css=row.css)


def flip_panel(title: str, rows: Sequence[Flips], most: float) -> str:
    """Bars to the left: answers lost against BF16. To the right: answers gained. In per cent of all answers."""
    crowded = _crowded(rows)
    height = ROW + LINE * crowded
    bottom = height * len(rows) + 6
    scale = Scale(-most, most, LEFT + 6, RIGHT - 6)
    parts = [x_axis(scale, 0, bottom, lambda v: f"{100 * abs(v):g}", "← lost    % of answers    gained →")]
    for index, row in enumerate(rows):
        y, left, right = height * (index + 1) - 15, scale(-row.lost / row.total), scale(row.gained / row.total)
        bars = element("rect", x=left, y=y, width=scale(0) - left, height=10, css="bar lost")
        bars += element("rect", x=scale(0), y=y, width=right - scale(0), height=10, css="bar gained")
        parts.append(_head(row, height * index + 13, crowded))
        parts.append(element("g", tip(f"{row.label}: {row.numbers}") + bars))
    parts.append(element("line", x1=scale(0), x2=scale(0), y1=0, y2=bottom, css="zero"))
    return drawing(title, _said(rows), bottom + FOOT, "".join(parts))
