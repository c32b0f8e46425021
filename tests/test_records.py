"""Records: what a table may hold, and that writing and reading change nothing."""

import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from suite import records
from suite.spec.methods import Bf16Params, RtnParams


def cell(**changes: Any) -> dict[str, Any]:
    """A row of a measured cell, with changes."""
    row = {
        "spec": "s",
        "model": "tiny-qwen2",
        "method": "rtn",
        "precision": "W4A16KV16-g128",
        "weight_bits": 4,
        "activation_bits": 16,
        "kv_bits": 16,
        "group_size": 128,
        "benchmark": "tiny-easy",
        "num_seeds": 2,
        "num_samples": 50,
        "accuracy": 0.8,
        "stderr": 0.05,
        "delta_vs_bf16": -0.1,
        "delta_low": -0.2,
        "delta_high": -0.05,
        "p_value": 0.001,
        "verdict": "risky",
        "thinking_tokens_mean": 100.0,
        "output_tokens_mean": 110.0,
        "truncated_rate": 0.0,
        "unparsed_rate": 0.0,
        "loop_rate": 0.0,
        "status": "done",
        "fingerprint": "f0",
        "source": "measured",
    }
    return {**row, **changes}


def bf16(**changes: Any) -> dict[str, Any]:
    """A row of BF16."""
    none = dict.fromkeys(["delta_vs_bf16", "delta_low", "delta_high", "p_value", "group_size"])
    return cell(**{"method": "bf16", "precision": "W16A16KV16", "weight_bits": 16, "verdict": "", **none, **changes})


def sample(**changes: Any) -> dict[str, Any]:
    """A row of a sample, with changes."""
    row = {
        "benchmark": "tiny-easy",
        "sample_id": "easy-test-0001",
        "seed": 42,
        "thinking_min": None,
        "thinking_max": 64,
        "prompt_tokens": 20,
        "thinking_tokens": 60,
        "answer_tokens": 5,
        "output_tokens": 66,
        "finish_reason": "stop",
        "truncated": False,
        "forced_waits": 0,
        "looped": False,
        "unparsed": False,
        "correct": True,
        "extracted": "516",
        "gold": "516",
        "level": None,
        "text": "thinking</think>\n\\boxed{516}",
    }
    return {**row, **changes}


def test_cells_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Reading a csv gives the table that was written, text that looks like a null or a number included."""
    rows = [
        cell(model="NA", params="", message="", spec="007"),
        bf16(fingerprint="f1", seconds=1.239999, thinking_max=0),
    ]
    table = records.cell_table(rows)
    records.write_cells(tmp_path / "c.csv", table)
    back = records.read_cells(tmp_path / "c.csv")
    pd.testing.assert_frame_equal(back, table)
    assert set(back["model"]) == {"NA", "tiny-qwen2"}
    assert set(back["spec"]) == {"007", "s"}
    assert list(back.columns) == list(records.CELL_COLUMNS)


@example(0.5, 1.0, 0.5, "a\rb")
@settings(max_examples=20, deadline=None)
@given(
    st.floats(0, 1),
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
)
def test_any_numbers_and_text_survive_the_csv(accuracy: float, seconds: float, p_value: float, params: str) -> None:
    """Whatever a table of cells accepts comes back from its csv unchanged; a second writing gives the same bytes."""
    table = records.cell_table([cell(accuracy=accuracy, seconds=seconds, p_value=p_value, params=params)])
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "1.csv", Path(folder) / "2.csv"
        records.write_cells(first, table)
        back = records.read_cells(first)
        records.write_cells(second, back)
        pd.testing.assert_frame_equal(back, table)
        assert first.read_bytes() == second.read_bytes()


def test_numbers_are_rounded_to_what_they_are_worth() -> None:
    """Six decimals for rates, two for seconds and means, three digits for p-values."""
    table = records.cell_table(
        [cell(accuracy=1 / 3, seconds=1.23456, p_value=1.23456e-7, output_tokens_mean=110.987654)]
    )
    row = table.iloc[0]
    assert row["accuracy"] == 0.333333
    assert row["seconds"] == 1.23
    assert row["p_value"] == 1.23e-7
    assert row["output_tokens_mean"] == 110.99


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    """No rows can be written and read."""
    records.write_cells(tmp_path / "c.csv", [])
    assert len(records.read_cells(tmp_path / "c.csv")) == 0


def test_cells_are_sorted_bf16_first_then_by_falling_precision() -> None:
    """The order does not depend on the order of the rows, so that a diff shows only what changed."""
    rows = [
        cell(fingerprint="w3", weight_bits=3, precision="W3A16KV16-g128"),
        cell(fingerprint="w8", weight_bits=8, precision="W8A16KV16"),
        bf16(fingerprint="b"),
        cell(fingerprint="budget", thinking_max=64),
        cell(fingerprint="w4"),
    ]
    for order in (rows, rows[::-1]):
        assert list(records.cell_table(order)["fingerprint"]) == ["b", "w8", "w4", "budget", "w3"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (cell(accuracy=1.5), "accuracy.*1.5"),
        (cell(stderr=-0.1), "stderr"),
        (cell(accuracy=None), "measured to the end has its numbers"),
        (cell(verdict="good"), "verdict"),
        (cell(verdict="not resolved, needs about many samples"), "verdict"),
        (cell(verdict=""), "an interval around it, a p-value and a verdict"),
        (cell(delta_high=-0.15), "an interval around it"),
        (cell(delta_low=None), "an interval around it"),
        (bf16(delta_vs_bf16=0.0), "bf16 has no difference"),
        (bf16(verdict="lossless"), "bf16 has no difference"),
        (cell(status="failed"), "a failed cell has a stage and a message"),
        (cell(status="halted"), "status.*halted"),
        (cell(stage="quantize"), "names no failed stage"),
        (cell(source="paper"), "a row of a paper names its table"),
        (cell(paper="P1 Table 1"), "a row of a paper names its table"),
        (cell(weight_bits=1), "weight_bits"),
        (cell(weight_bits=None), "weight_bits"),
        (cell(model=""), "model"),
        (cell(num_samples=-1), "num_samples"),
        (cell(colour="red"), "no column 'colour'"),
    ],
)
def test_a_cell_that_breaks_a_rule_is_refused(row: dict[str, Any], said: str) -> None:
    """Each rule of the table of cells, with its message."""
    with pytest.raises(ValueError, match=said):
        records.cell_table([row])


def test_a_fingerprint_occurs_once() -> None:
    """Two rows of one cell are refused."""
    with pytest.raises(ValueError, match="fingerprint"):
        records.cell_table([cell(), cell(spec="t")])


def test_all_breaches_are_named_at_once() -> None:
    """One error tells every broken rule."""
    with pytest.raises(ValueError, match="accuracy") as caught:
        records.cell_table([cell(accuracy=2, verdict="good", status="halted")])
    assert all(word in str(caught.value) for word in ("accuracy", "verdict", "status"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truncated": True}, "truncated is finish_reason = length"),
        ({"unparsed": True}, "an unparsed answer is not correct"),
        ({"looped": True}, "only a truncated answer is looped"),
        ({"finish_reason": "abort"}, "finish_reason.*abort"),
        ({"thinking_tokens": -1}, "thinking_tokens"),
        ({"correct": None}, "correct"),
        ({"text": None}, "text"),
        ({"sample_id": ""}, "sample_id"),
    ],
)
def test_a_sample_that_breaks_a_rule_is_refused(change: dict[str, Any], said: str) -> None:
    """Each rule of the table of samples, with its message."""
    with pytest.raises(ValueError, match=said):
        records.sample_table([sample(**change)])


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Reading a parquet file gives the table that was written; plain Python values are accepted."""
    rows = [sample(), sample(seed=43, extracted=None, level="5", correct=False, unparsed=True, text="")]
    records.write_samples(tmp_path / "s.parquet", pd.DataFrame(rows))
    back = records.read_samples(tmp_path / "s.parquet")
    pd.testing.assert_frame_equal(back, records.sample_table(rows))
    assert list(back.columns) == list(records.SAMPLE_COLUMNS)
    assert back["extracted"].isna().tolist() == [False, True]


def test_one_answer_is_one_sample() -> None:
    """A question is answered once per seed and budget."""
    with pytest.raises(ValueError, match="sample_id"):
        records.sample_table([sample(), sample(text="again")])
    assert len(records.sample_table([sample(), sample(thinking_max=128)])) == 2


@pytest.mark.parametrize("content", [b"", b"spec,model\na,b\n", b"<<<<<<< HEAD\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_table_of_cells_is_named(tmp_path: Path, content: bytes) -> None:
    """A foreign, cut or conflicted file is refused with its path."""
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.csv"):
        records.read_cells(path)


def test_a_file_that_is_no_table_of_samples_is_named(tmp_path: Path) -> None:
    """A truncated parquet file is refused with its path."""
    path = tmp_path / "s.parquet"
    records.write_samples(path, [sample()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"s\.parquet"):
        records.read_samples(path)


def test_a_table_changed_by_hand_is_checked_when_read(tmp_path: Path) -> None:
    """An accuracy of 80 in the csv is refused: accuracy is a fraction."""
    path = tmp_path / "c.csv"
    records.write_cells(path, [cell(accuracy=0.8)])
    path.write_text(path.read_text().replace(",0.8,", ",80,"))
    with pytest.raises(ValueError, match="accuracy"):
        records.read_cells(path)


def test_nothing_is_written_if_a_row_is_refused(tmp_path: Path) -> None:
    """The old file stays, and no temporary one."""
    path = tmp_path / "c.csv"
    records.write_cells(path, [cell()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="accuracy"):
        records.write_cells(path, [cell(accuracy=7)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_is_one_line() -> None:
    """A traceback becomes one line of at most 1,000 characters; an empty message still says something."""
    axes = {
        name: value for name, value in bf16().items() if name in ("spec", "model", "method", "precision", "benchmark")
    }
    axes |= {"weight_bits": 16, "activation_bits": 16, "kv_bits": 16, "fingerprint": "f"}
    row = records.cell_table([records.failed_record(axes, "quantize", "no\n  room " + "x" * 2000)]).iloc[0]
    assert row["message"].startswith("no room xxx")
    assert len(row["message"]) == 1000
    assert records.failed_record(axes, "quantize", "")["message"] == "no message"


def test_axes_of_a_cell_are_those_of_its_variant() -> None:
    """The columns that say what was asked, from a cell of the plan."""
    method = RtnParams.model_validate({"precision": "W3A16KV16-g128", "symmetric": False})
    variant = SimpleNamespace(method=method, model=SimpleNamespace(id="tiny-qwen2"))
    asked = SimpleNamespace(
        variant=variant,
        benchmark=SimpleNamespace(name="tiny-hard"),
        budget=SimpleNamespace(min=None, max=64),
        seeds=(42, 43),
        fingerprint="f" * 64,
    )
    axes = records.cell_axes(asked, "quickstart", 50)
    told = {name: axes[name] for name in ("method", "precision", "params", "weight_bits", "group_size", "thinking_max")}
    assert told == {
        "method": "rtn",
        "precision": "W3A16KV16-g128",
        "params": "asymmetric",
        "weight_bits": 3,
        "group_size": 128,
        "thinking_max": 64,
    }
    assert (axes["num_seeds"], axes["num_samples"], axes["calibration_source"]) == (2, 50, "")
    variant.method = Bf16Params()
    assert records.cell_axes(asked, "quickstart", 50)["group_size"] is None


def test_a_missing_column_of_numbers_is_null_and_of_text_empty() -> None:
    """What a row does not say is null, or "" for text."""
    row = records.cell_table([cell()]).iloc[0]
    assert math.isnan(row["seconds"]) if isinstance(row["seconds"], float) else row["seconds"] is pd.NA
    assert row["engine"] == ""
