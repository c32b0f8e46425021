"""Cells become blocks, rows and columns: in the spec's order, with nothing dropped."""

from dataclasses import replace

import pandas as pd
import pytest

from suite.report.layout import Column, arrange, cells_of
from suite.spec import BenchmarkRef

from .factory import BENCHMARKS, Records, make_records, make_spec


@pytest.fixture(scope="module")
def records() -> Records:
    """A whole run."""
    return make_records()


def test_bf16_comes_first_and_bits_fall(records: Records) -> None:
    """Rows stand as in the papers' tables."""
    (block,) = arrange(records.cells, records.spec).blocks
    assert [row.name for row in block.rows] == [
        "bf16",
        "rtn W8A16KV16-g128",
        "rtn W4A16KV16-g128",
        "rtn W3A16KV16-g128",
        "rtn W3A16KV16-g128, asymmetric",
    ]


def test_the_order_of_the_records_does_not_matter(records: Records) -> None:
    """Shuffled records give the same layout."""
    shuffled = records.cells.sample(frac=1, random_state=3)
    assert arrange(shuffled, records.spec) == arrange(records.cells, records.spec)


def test_benchmarks_stand_in_the_order_of_the_spec(records: Records) -> None:
    """Not in alphabetical order, nor in that of the records."""
    turned = records.spec.model_copy(update={"benchmarks": tuple(reversed(records.spec.benchmarks))})
    (block,) = arrange(records.cells, turned).blocks
    assert [column.benchmark for column in block.columns] == list(reversed(BENCHMARKS))


def test_the_table_has_the_freest_budget_and_the_rest_is_kept(records: Records) -> None:
    """A benchmark under three budgets is one column of the table; all three are there for the curve."""
    (block,) = arrange(records.cells, records.spec).blocks
    assert Column("tiny-medium") in block.columns
    assert len(block.columns) == 3
    assert [c.budget for c in block.budgets] == ["", "≥ 512", "≤ 128"]


def test_without_a_free_budget_the_column_names_its_own() -> None:
    """Nothing passes for free thinking that was bounded."""
    records = make_records()
    bounded = records.cells.query("benchmark == 'tiny-medium' and thinking_max == 128")
    (block,) = arrange(bounded, records.spec).blocks
    assert block.columns == (Column("tiny-medium", None, 128),)
    assert block.columns[0].budget == "≤ 128"


def test_averages_need_every_benchmark() -> None:
    """One failed cell, and there is neither an average nor a drop."""
    records = make_records(failed=[("W4A16KV16-g128", "tiny-hard")])
    (block,) = arrange(records.cells, records.spec).blocks
    by_name = {row.name: row for row in block.rows}
    assert by_name["rtn W4A16KV16-g128"].average is None
    assert by_name["rtn W4A16KV16-g128"].drop is None
    assert by_name["rtn W8A16KV16-g128"].drop is not None


def test_without_bf16_there_is_no_drop() -> None:
    """Accuracies are still there."""
    records = make_records(failed=[("bf16", "*")])
    (block,) = arrange(records.cells, records.spec).blocks
    assert all(row.drop is None for row in block.rows)
    assert all(row.average is not None for row in block.rows if not row.is_baseline)


def test_best_is_marked_among_methods_at_one_width(records: Records) -> None:
    """W3 has two rows, so it has a best; W8 and W4 have one each, and nothing to be best of."""
    (block,) = arrange(records.cells, records.spec).blocks
    assert {index for index, _ in block.best} <= {3, 4}
    best = max((3, 4), key=lambda index: block.rows[index].cells[Column("tiny-hard")].accuracy or 0)
    assert (best, Column("tiny-hard")) in block.best


def test_ties_share_the_mark(records: Records) -> None:
    """Two equal numbers are both best."""
    cells = records.cells
    cells.loc[cells["precision"].eq("W3A16KV16-g128") & cells["benchmark"].eq("tiny-hard"), "accuracy"] = 0.5
    (block,) = arrange(cells, records.spec).blocks
    assert {index for index, column in block.best if column == Column("tiny-hard")} == {3, 4}


def test_a_second_record_for_a_place_gets_a_row_of_its_own(records: Records) -> None:
    """Two records of one variant, say of two revisions of a model, are both shown and told apart."""
    cells = records.cells
    again = cells[cells["precision"].eq("W4A16KV16-g128")].assign(fingerprint=lambda t: "f" + t["fingerprint"].str[1:])
    (block,) = arrange(pd.concat([cells, again]), records.spec).blocks
    extra = [row for row in block.rows if row.again]
    assert len(extra) == 1
    assert len(extra[0].cells) == len(again)
    assert "record f" in extra[0].name


def test_calibration_is_named_where_it_varies(records: Records) -> None:
    """Rows that differ in nothing but their calibration can be told apart."""
    cells = records.cells.query("precision == 'W4A16KV16-g128'")
    sweep = [
        cells.assign(
            calibration_source="numina",
            calibration_num_samples=128,
            calibration_seq_len=length,
            fingerprint=[f"{length}{f[4:]}" for f in cells["fingerprint"]],
        )
        for length in (2048, 4096)
    ]
    (block,) = arrange(pd.concat(sweep), records.spec).blocks
    assert [row.calibration for row in block.rows] == ["numina 128 × 2048", "numina 128 × 4096"]


def test_a_model_the_spec_does_not_know_is_kept() -> None:
    """Records decide what is shown; the spec only orders it."""
    records = make_records()
    other = make_spec(models=("another",), benchmarks=(BenchmarkRef(name="tiny-hard"),))
    (block,) = arrange(records.cells, other).blocks
    assert block.model == "tiny-qwen2"
    assert len(block.columns) == 3


def test_a_missing_column_is_named(records: Records) -> None:
    """Not an error deep in pandas."""
    with pytest.raises(ValueError, match=r"not among the records: delta_low; pass a table of cells"):
        cells_of(records.cells.drop(columns="delta_low"))


def test_failed_cells_are_collected() -> None:
    """Of every budget, also of those that the table does not show."""
    records = make_records(failed=[("W4A16KV16-g128", "tiny-medium")])
    assert len(arrange(records.cells, records.spec).failed) == 3


def test_an_accuracy_of_one_question_has_no_interval(records: Records) -> None:
    """Its standard error is not defined."""
    cell = replace(arrange(records.cells, records.spec).cells[0], stderr=None)
    assert cell.interval is None
