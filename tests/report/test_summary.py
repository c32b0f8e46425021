"""Sentences are computed: they follow the numbers, and say what is not known."""

from dataclasses import replace

import pytest

from suite.report.intervals import Interval
from suite.report.layout import Block, Cell, Column, Layout, Row, arrange
from suite.report.summary import multiplicity, sentences, status, verdict_counts
from suite.statistics import holm

from .factory import make_records

COLUMNS = (Column("tiny-easy"), Column("tiny-hard"))


def layout(deltas: dict[str, Interval | None], tokens: float = 100.0) -> Layout:
    """BF16 and one variant with these differences."""
    template = arrange(make_records(num_samples=5).cells.head(1)).cells[0]
    cells = [
        replace(template, method=method, benchmark=c.benchmark, accuracy=0.8, output_tokens_mean=t, delta_vs_bf16=None)
        for method, t in (("bf16", 100.0), ("rtn", tokens))
        for c in COLUMNS
    ]
    cells = [_with(cell, deltas.get(cell.benchmark)) if cell.method == "rtn" else cell for cell in cells]
    rows = tuple(_row(method, [c for c in cells if c.method == method]) for method in ("bf16", "rtn"))
    return Layout((Block("m", rows, COLUMNS, ()),), (), tuple(cells))


def _with(cell: Cell, delta: Interval | None) -> Cell:
    if delta is None:
        return cell
    return replace(cell, delta_vs_bf16=delta.value, delta_low=delta.low, delta_high=delta.high, p_value=0.01)


def _row(method: str, cells: list[Cell]) -> Row:
    by_column = dict(zip(COLUMNS, cells, strict=True))
    return Row("m", method, "W3A16KV16-g128", "", "", "", (3, 16, 16), by_column, COLUMNS)


def said(easy: Interval | None, hard: Interval | None, tokens: float = 100.0) -> str:
    """What is said of the variant."""
    return sentences(layout({"tiny-easy": easy, "tiny-hard": hard}, tokens))[1].text


def test_a_loss() -> None:
    """Average, interval, verdict, where most was lost, and how much longer the outputs are."""
    text = said(Interval(-0.02, -0.05, 0.01), Interval(-0.2, -0.24, -0.16), tokens=135)
    assert text == (
        "loses 11.0 points on average over 2 benchmarks (95% interval −13.5 to −8.5): risky. "
        "Most on tiny-hard: −20.0 [−24.0, −16.0], to 80.0. Outputs 1.35 times as long as bf16's."
    )


def test_no_loss_that_can_be_told() -> None:
    """An interval around zero that is too wide for a verdict is not called lossless."""
    text = said(Interval(0.0, -0.05, 0.05), Interval(0.01, -0.05, 0.07))
    assert text.startswith(
        "is not told apart from bf16: +0.5 points on average over 2 benchmarks (95% interval −3.4 to +4.4)"
    )
    assert "too few answers to call it lossless, fair or risky." in text
    assert text.endswith("Outputs as long as bf16's.")


def test_lossless_is_said_where_the_interval_allows() -> None:
    """Narrow and above minus one point."""
    assert ": lossless." in said(Interval(0.0, -0.005, 0.005), Interval(0.0, -0.005, 0.005))


def test_a_gain_is_a_gain() -> None:
    """The verb follows the sign."""
    assert said(Interval(0.1, 0.05, 0.15), Interval(0.1, 0.05, 0.15)).startswith("gains 10.0 points")


def test_without_bf16_on_one_benchmark_each_is_said() -> None:
    """No average over the rest passes for the whole."""
    text = said(None, Interval(-0.2, -0.24, -0.16))
    assert text.startswith("against bf16: −20.0 [−24.0, −16.0] points on tiny-hard.")
    assert "average" not in text


def test_failed_variants_say_where() -> None:
    """Stage and number of cells."""
    records = make_records(failed=[("W3A16KV16-g128", "*")])
    (finding,) = [f for f in sentences(arrange(records.cells, records.spec)) if f.lead == "rtn W3A16KV16-g128"]
    assert finding.text == "has no result: 5 cells failed, in quantize."
    assert finding.verdict == ""


def test_multiplicity_counts_what_the_records_have() -> None:
    """Comparisons, how many are significant one by one, and how many after Holm's correction."""
    records = make_records()
    p_values = records.cells["p_value"].dropna().tolist()
    text = multiplicity(arrange(records.cells, records.spec))
    assert f"makes {len(p_values)} comparisons" in text
    assert f"p < 0.05 in {sum(p < 0.05 for p in p_values)} of them" in text
    assert f"still in {sum(p < 0.05 for p in holm(p_values))}." in text


def test_verdicts_are_counted() -> None:
    """Once a cell, without the number of samples that some carry."""
    records = make_records()
    counted = records.cells["verdict"].str.split(",").str[0].value_counts()
    for name, number in counted.drop("", errors="ignore").items():
        assert f"{number} {name}" in verdict_counts(arrange(records.cells, records.spec))


@pytest.mark.parametrize(("planned", "expected"), [(None, "25 of 25 cells done"), (30, "25 of 30 cells done")])
def test_status_counts_against_the_plan(planned: int | None, expected: str) -> None:
    """Cells that were never run are no cells done."""
    records = make_records()
    assert status(arrange(records.cells, records.spec), planned).startswith(expected)
