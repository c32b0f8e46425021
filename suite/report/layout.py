"""Cells as a report shows them: a block a model, a row a variant, a column a benchmark and thinking budget.

    DataFrame of cells -> tuple[Cell] -> Layout(blocks of rows; columns; failed cells)

Pure. Order comes from the spec (models, methods, benchmarks), never from the order of the records, so that the same
records give the same report. Within a model BF16 comes first, then weight-only, KV-cache and weight-activation
precisions, each from many bits to few, as the papers' tables have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from suite.report.intervals import Interval, accuracy_interval, mean_interval

if TYPE_CHECKING:
    from suite.spec import Spec

BASELINE = "bf16"
AVERAGE = "avg"  # the papers' own column of averages, a benchmark among their rows


@dataclass(frozen=True)
class Cell:
    """One record of a cell; None where the record has no value. Fields are named as the columns are."""

    model: str
    method: str
    precision: str
    params: str
    weight_bits: int
    activation_bits: int
    kv_bits: int
    calibration_source: str | None
    calibration_num_samples: int | None
    calibration_seq_len: int | None
    benchmark: str
    thinking_min: int | None
    thinking_max: int | None
    num_seeds: int | None
    num_samples: int | None
    accuracy: float | None
    stderr: float | None
    delta_vs_bf16: float | None
    delta_low: float | None
    delta_high: float | None
    p_value: float | None
    verdict: str
    flips_lost: int | None
    flips_gained: int | None
    thinking_tokens_mean: float | None
    output_tokens_mean: float | None
    output_tokens_p90: float | None
    truncated_rate: float | None
    unparsed_rate: float | None
    loop_rate: float | None
    seconds: float | None
    peak_memory_gib: float | None
    engine: str
    status: str
    stage: str
    message: str
    fingerprint: str
    paper: str

    @property
    def done(self) -> bool:
        """Whether there is a number to show."""
        return self.status == "done" and self.accuracy is not None

    @property
    def answers(self) -> int:
        """Questions times seeds."""
        return (self.num_samples or 0) * (self.num_seeds or 0)

    @property
    def tokens(self) -> float:
        """Output tokens of all answers."""
        return (self.output_tokens_mean or 0.0) * self.answers

    @property
    def interval(self) -> Interval | None:
        """95% interval of the accuracy itself (not of the difference from BF16)."""
        if self.accuracy is None or self.stderr is None or not self.num_samples:
            return None
        return accuracy_interval(self.accuracy, self.stderr, self.num_samples)

    @property
    def delta(self) -> Interval | None:
        """The paired difference from BF16 with its interval; None for BF16 itself and where BF16 is missing."""
        if self.delta_vs_bf16 is None or self.delta_low is None or self.delta_high is None:
            return None
        return Interval(self.delta_vs_bf16, self.delta_low, self.delta_high)


@dataclass(frozen=True)
class Column:
    """A benchmark under one thinking budget."""

    benchmark: str
    thinking_min: int | None = None
    thinking_max: int | None = None

    @property
    def budget(self) -> str:
        """The budget in words a table head has room for; "" if thinking is free."""
        low, high = self.thinking_min, self.thinking_max
        if low is None and high is None:
            return ""
        if low is None:
            return f"≤ {high:,}"
        return f"≥ {low:,}" if high is None else f"{low:,} to {high:,}"


@dataclass(frozen=True)
class Row:
    """One variant: its cells by column. `cells` holds failed cells too."""

    model: str
    method: str
    precision: str
    params: str
    calibration: str
    again: str  # "" but where the records hold the same variant twice: then what tells this one apart
    bits: tuple[int, int, int]
    cells: dict[Column, Cell]
    columns: tuple[Column, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether this is BF16."""
        return self.method == BASELINE

    @property
    def label(self) -> str:
        """Method and what distinguishes it, without the precision."""
        return ", ".join(part for part in (self.method, self.params, self.calibration, self.again) if part)

    @property
    def name(self) -> str:
        """Method, precision and what distinguishes it."""
        head = self.method if self.is_baseline else f"{self.method} {self.precision}"
        return ", ".join(part for part in (head, self.params, self.calibration, self.again) if part)

    @cached_property
    def done(self) -> tuple[Cell, ...]:
        """Done cells of the table's columns, in their order."""
        return tuple(c for c in (self.cells.get(column) for column in self.columns) if c is not None and c.done)

    @cached_property
    def average(self) -> Interval | None:
        """Mean accuracy over all columns; None unless every one of them is done."""
        intervals = [c.interval for c in self.done]
        return mean_interval(intervals) if len(self.done) == len(self.columns) else None

    @cached_property
    def drop(self) -> Interval | None:
        """Mean paired difference from BF16 over all columns; None unless every one of them has it."""
        deltas = [c.delta for c in self.done]
        return mean_interval(deltas) if len(self.done) == len(self.columns) else None


@dataclass(frozen=True)
class Block:
    """One model."""

    model: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]  # of the table: one budget a benchmark, the freest
    budgets: tuple[Column, ...]  # every column of the benchmarks that were run under more than one budget

    @property
    def baseline(self) -> Row | None:
        """The BF16 row."""
        return next((row for row in self.rows if row.is_baseline), None)

    @cached_property
    def best(self) -> frozenset[tuple[int, Column | None]]:
        """(row index, column) of the best methods at each bit width; None is the average column.

        Equal numbers share the mark, and a bit width that only one row has gets none: there is nothing to be best of.
        """
        groups: dict[tuple[int, int, int], list[int]] = {}
        for index, row in enumerate(self.rows):
            if not row.is_baseline:
                groups.setdefault(row.bits, []).append(index)
        marks: set[tuple[int, Column | None]] = set()
        for indices in groups.values():
            for column in (*self.columns, None):
                marks |= {(index, column) for index in _leaders(self.rows, indices, column)}
        return frozenset(marks)


@dataclass(frozen=True)
class Layout:
    """Everything a report shows, in order."""

    blocks: tuple[Block, ...]
    failed: tuple[Cell, ...]
    cells: tuple[Cell, ...]

    @property
    def done(self) -> tuple[Cell, ...]:
        """All cells with a number."""
        return tuple(c for c in self.cells if c.done)

    def titled(self, block: Block, name: str) -> str:
        """A caption, with the model where there is more than one."""
        return name if len(self.blocks) == 1 else f"{block.model}: {name}"


def cells_of(frame: pd.DataFrame) -> tuple[Cell, ...]:
    """Records as typed values.

    Raises: ValueError if a column is missing.
    """
    names = [field.name for field in fields(Cell)]
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(
            f"not among the records: {', '.join(missing)}; pass a table of cells as suite.records reads it"
        )
    text = {field.name for field in fields(Cell) if field.type is str}
    return tuple(
        Cell(**{name: _plain(value, name in text) for name, value in zip(names, values, strict=True)})
        for values in frame[names].itertuples(index=False, name=None)
    )


def arrange(frame: pd.DataFrame, spec: "Spec | None" = None) -> Layout:
    """Order the cells of one spec into blocks, rows and columns. Without a spec, names come as they first appear."""
    cells = cells_of(frame)
    models = _order([m.id for m in spec.models] if spec else [], [c.model for c in cells])
    methods = _order([m.name for m in spec.methods] if spec else [], [c.method for c in cells])
    found = sorted((c.benchmark for c in cells), key=lambda name: name == AVERAGE)  # otherwise as they come
    benchmarks = _order([b.name for b in spec.benchmarks] if spec else [], found)
    blocks = tuple(_block(model, [c for c in cells if c.model == model], methods, benchmarks) for model in models)
    blocks = tuple(block for block in blocks if block.rows)
    placed = [cell for block in blocks for row in block.rows for cell in row.cells.values()]
    return Layout(blocks, tuple(c for c in placed if c.status == "failed"), tuple(placed))


def _block(model: str, cells: list[Cell], methods: dict[str, int], benchmarks: dict[str, int]) -> Block:
    cells = sorted(cells, key=lambda cell: (*_column_key(column_of(cell), benchmarks), cell.fingerprint))
    columns = list(dict.fromkeys(map(column_of, cells)))
    present = [name for name in benchmarks if any(c.benchmark == name for c in columns)]
    freest = tuple(next(c for c in columns if c.benchmark == name) for name in present)
    several = {name for name in present if sum(c.benchmark == name for c in columns) > 1}
    calibrations = {_calibration(c) for c in cells if c.calibration_source}
    rows = _rows(cells, methods, freest, show_calibration=len(calibrations) > 1)
    return Block(model, rows, freest, tuple(c for c in columns if c.benchmark in several))


def _rows(
    cells: list[Cell], methods: dict[str, int], columns: tuple[Column, ...], show_calibration: bool
) -> tuple[Row, ...]:
    """One row a variant. A second record for the same place opens a second row, so that nothing is dropped."""
    variants: dict[tuple[Any, ...], dict[Column, Cell]] = {}
    for cell in cells:
        key = _row_key(cell, methods)
        copies = next(n for n in range(len(cells)) if column_of(cell) not in variants.get((*key, n), {}))
        variants.setdefault((*key, copies), {})[column_of(cell)] = cell
    rows = []
    for key in sorted(variants):
        first = next(iter(variants[key].values()))
        calibration = _calibration(first) if show_calibration else ""
        again = f"record {first.fingerprint[:8]}" if key[-1] else ""
        bits = (first.weight_bits, first.activation_bits, first.kv_bits)
        axes = (first.model, first.method, first.precision, first.params, calibration, again, bits)
        rows.append(Row(*axes, variants[key], columns))
    return tuple(rows)


def column_of(cell: Cell) -> Column:
    """The column that a cell stands in."""
    return Column(cell.benchmark, cell.thinking_min, cell.thinking_max)


def _calibration(cell: Cell) -> str:
    if not cell.calibration_source:
        return ""
    return f"{cell.calibration_source} {cell.calibration_num_samples} × {cell.calibration_seq_len}"


def _row_key(cell: Cell, methods: dict[str, int]) -> tuple[Any, ...]:
    """BF16 first, then by what is quantized, from many bits to few, then in the spec's order of methods."""
    kind = (
        0
        if cell.method == BASELINE
        else 1
        if cell.activation_bits == 16 and cell.kv_bits == 16
        else 2
        if cell.weight_bits == 16
        else 3
    )
    bits = (-cell.weight_bits, -cell.activation_bits, -cell.kv_bits)
    calibration = (cell.calibration_source or "", cell.calibration_num_samples or 0, cell.calibration_seq_len or 0)
    return (kind, *bits, methods[cell.method], cell.precision, cell.params, *calibration)


def _column_key(column: Column, benchmarks: dict[str, int]) -> tuple[int, float, int]:
    """The freest budget first: no upper bound, then the larger one; among those, the lower minimum."""
    high = float("inf") if column.thinking_max is None else column.thinking_max
    return benchmarks[column.benchmark], -high, column.thinking_min or 0


def _leaders(rows: Sequence[Row], indices: Sequence[int], column: Column | None) -> set[int]:
    def value(index: int) -> float | None:
        if column is None:
            return rows[index].average.value if rows[index].average else None  # type: ignore[union-attr]
        cell = rows[index].cells.get(column)
        return cell.accuracy if cell is not None and cell.done else None

    values = {index: value(index) for index in indices}
    shown = {index: round(v, 12) for index, v in values.items() if v is not None}
    return {index for index, v in shown.items() if v == max(shown.values())} if len(shown) > 1 else set()


def _order(declared: Sequence[str], found: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys([*declared, *found]))}


def _plain(value: Any, is_text: bool) -> Any:
    if pd.isna(value):
        return "" if is_text else None
    return value.item() if hasattr(value, "item") else value
