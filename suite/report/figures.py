"""Which panels a report draws, from a layout. Panels of one kind share their scale, so that they can be compared."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from suite import statistics
from suite.report import plots
from suite.report.content import Figure, Key
from suite.report.intervals import Interval
from suite.report.layout import Block, Cell, Column, Layout, Row
from suite.report.plots import Flips, Lengths, Mark, Point, Series, colour
from suite.report.tables import heading

ByLevel = Sequence[tuple[str, np.ndarray]]  # level -> accuracy of each of its questions


def palette(layout: Layout) -> dict[str, str]:
    """The colour of each variant, the same in every panel. BF16 has its own."""
    names = dict.fromkeys(row.name for block in layout.blocks for row in block.rows if not row.is_baseline)
    baselines = {row.name: colour(0) for block in layout.blocks for row in block.rows if row.is_baseline}
    return baselines | {name: colour(index) for index, name in enumerate(names, start=1)}


def variant_legend(layout: Layout) -> tuple[Key, ...]:
    """What the colours of the variants stand for."""
    return tuple(Key(css, name) for name, css in palette(layout).items())


def drops(layout: Layout) -> tuple[Figure, ...]:
    """A panel a benchmark, and before them one for their mean."""
    intervals = [cell.delta for cell in layout.done if cell.delta is not None]
    if not intervals:
        return ()
    domain = _drop_domain(intervals)
    drawn = []
    for block in layout.blocks:
        rows = [row for row in block.rows if not row.is_baseline]
        panels = {heading(c): [_drop_mark(row.name, *_delta(row.cells.get(c))) for row in rows] for c in block.columns}
        if len(panels) > 1:
            means = [_drop_mark(row.name, row.drop, "not on every benchmark") for row in rows]
            panels = {"mean over benchmarks": means} | panels
        titles = {layout.titled(block, name): marks for name, marks in panels.items() if marks}
        drawn += [Figure(title, plots.drop_panel(title, marks, domain)) for title, marks in titles.items()]
    return tuple(drawn)


def _drop_mark(name: str, delta: Interval | None, note: str) -> Mark:
    return Mark(name, delta, f"v-{delta.zone.replace(' ', '-')}" if delta else "", note)


def _delta(cell: Cell | None) -> tuple[Interval | None, str]:
    if cell is None or not cell.done:
        return None, "not run" if cell is None else "failed"
    return cell.delta, "no bf16 to compare with"


def _drop_domain(intervals: Sequence[Interval]) -> tuple[float, float]:
    """From the lowest to the highest bound, in whole points, with both limits and zero in view."""
    low = min(-0.05, *(i.low for i in intervals))
    high = max(0.02, *(i.high for i in intervals))
    return max(-1.0, math.floor(low * 100) / 100), min(1.0, math.ceil(high * 100) / 100)


def precisions(layout: Layout) -> tuple[Figure, ...]:
    """A panel a method: accuracy of every benchmark at bf16 and at each of its precisions."""
    names = list(dict.fromkeys(column.benchmark for block in layout.blocks for column in block.columns))
    domain = _accuracy_domain(layout.done)
    drawn = []
    for block in layout.blocks:
        for label, rows in _methods(block).items():
            lines = [_precision_line(c, rows, colour(names.index(c.benchmark) + 1)) for c in block.columns]
            shown = [line for line in lines if line.points]
            steps = ["bf16" if row.is_baseline else row.precision for row in rows]
            title = layout.titled(block, label)
            drawn += [Figure(title, plots.category_panel(title, steps, shown, domain))] if shown else []
    return tuple(drawn)


def _methods(block: Block) -> dict[str, list[Row]]:
    """Rows of each method with the same parameters, after BF16."""
    grouped: dict[str, list[Row]] = {}
    for row in block.rows:
        if not row.is_baseline:
            grouped.setdefault(row.label, [block.baseline] if block.baseline else []).append(row)
    return grouped


def _precision_line(column: Column, rows: Sequence[Row], css: str) -> Series:
    cells = [(x, row.cells.get(column)) for x, row in enumerate(rows)]
    known = [(x, cell.interval) for x, cell in cells if cell is not None and cell.interval is not None]
    return Series(heading(column), css, tuple(Point(x, interval) for x, interval in known))


def _accuracy_domain(cells: Sequence[Cell]) -> tuple[float, float]:
    """[0, 1], or from a round number on if nothing lies in the lower half."""
    lowest = min((cell.interval.low for cell in cells if cell.interval), default=0.0)
    return (math.floor(lowest * 10) / 10 if lowest > 0.5 else 0.0), 1.0


def levels(layout: Layout, by_cell: Mapping[str, ByLevel]) -> tuple[Figure, ...]:
    """A panel a benchmark whose questions have levels: one line a variant."""
    css = palette(layout)
    drawn = []
    for block in layout.blocks:
        for column in block.columns:
            cells = [(row, row.cells[column]) for row in block.rows if column in row.cells]
            found = {row.name: by_cell.get(cell.fingerprint, ()) for row, cell in cells}
            steps = sorted({level for known in found.values() for level, _ in known}, key=_natural)
            lines = [_level_line(name, css[name], known, steps) for name, known in found.items() if known]
            title = layout.titled(block, heading(column))
            drawn += [Figure(title, plots.category_panel(title, steps, lines, (0.0, 1.0)))] if lines else []
    return tuple(drawn)


def _natural(level: str) -> tuple[float, str]:
    return (int(level), "") if level.isdigit() else (math.inf, level)


def _level_line(name: str, css: str, found: ByLevel, steps: Sequence[str]) -> Series:
    marks = []
    for level, by_question in sorted(found, key=lambda pair: _natural(pair[0])):
        estimate = Interval(float(by_question.mean()), *statistics.accuracy_interval(by_question))
        marks.append(Point(steps.index(level), estimate, f"level {level}, {by_question.size} questions"))
    return Series(name, css, tuple(marks))


def budgets(layout: Layout) -> tuple[Figure, ...]:
    """A panel a benchmark that was run under several budgets: one line a variant."""
    css = palette(layout)
    drawn = []
    for block in layout.blocks:
        for name in dict.fromkeys(column.benchmark for column in block.budgets):
            columns = [column for column in block.budgets if column.benchmark == name]
            lines = [_budget_line(row, css[row.name], columns, row is block.rows[0]) for row in block.rows]
            shown = [line for line in lines if line.points]
            longest = max((point.x for line in shown for point in line.points), default=0.0)
            title = layout.titled(block, name)
            drawn += [Figure(title, plots.budget_panel(title, shown, 1.06 * longest or 1.0))] if shown else []
    return tuple(drawn)


def _budget_line(row: Row, css: str, columns: Sequence[Column], labelled: bool) -> Series:
    """Budgets are written beside the points of one line only: the others have the same ones."""
    marks = []
    for column in columns:
        cell = row.cells.get(column)
        if cell is not None and cell.interval is not None and cell.thinking_tokens_mean is not None:
            said = column.budget or "free"
            marks.append(Point(cell.thinking_tokens_mean, cell.interval, said, said if labelled else ""))
    return Series(row.name, css, tuple(sorted(marks, key=lambda point: point.x)))


def lengths(layout: Layout, tokens: Mapping[str, np.ndarray]) -> tuple[Figure, ...]:
    """A panel a benchmark: one histogram a variant."""
    css = palette(layout)
    drawn = []
    for block in layout.blocks:
        for column in block.columns:
            cells = [(row.name, row.cells[column]) for row in block.rows if column in row.cells]
            known = [(name, cell) for name, cell in cells if cell.fingerprint in tokens]
            rows = [Lengths(n, css[n], tokens[c.fingerprint], c.truncated_rate or 0.0) for n, c in known]
            longest = max((float(row.tokens.max()) for row in rows), default=0.0)
            title = layout.titled(block, heading(column))
            drawn += [Figure(title, plots.length_panel(title, rows, longest or 1.0))] if rows else []
    return tuple(drawn)


def flips(layout: Layout) -> tuple[Figure, ...]:
    """A panel a benchmark, all on one scale."""
    most = max((max(c.flips_lost or 0, c.flips_gained or 0) / c.answers for c in layout.done if c.answers), default=0.0)
    drawn = []
    for block in layout.blocks:
        for column in block.columns:
            cells = [(row.name, row.cells[column]) for row in block.rows if column in row.cells]
            known = [(name, c) for name, c in cells if c.done and c.flips_lost is not None]
            rows = [Flips(name, c.flips_lost or 0, c.flips_gained or 0, c.answers) for name, c in known]
            title = layout.titled(block, heading(column))
            drawn += [Figure(title, plots.flip_panel(title, rows, max(most, 0.01)))] if rows else []
    return tuple(drawn)
