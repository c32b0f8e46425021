"""The registry: merging, two writers at once, queries, and the papers' numbers."""

import csv
import importlib.util
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_records import bf16, cell

from suite import records, registry

ROOT = Path(__file__).parents[1]
PAPER_NUMBERS = ROOT.parent / "shared/reference/paper_results.csv"


def failed(**changes: Any) -> dict[str, Any]:
    """A row of a failed cell."""
    asked = (
        "spec",
        "model",
        "method",
        "precision",
        "weight_bits",
        "activation_bits",
        "kv_bits",
        "benchmark",
        "fingerprint",
    )
    axes = {name: value for name, value in {**cell(), **changes}.items() if name in asked}
    return records.failed_record(axes, "generate", "the worker died")


def test_rows_are_merged_by_fingerprint(tmp_path: Path) -> None:
    """A row replaces the one with its fingerprint; the others stay."""
    registry.update(tmp_path, "s", [cell(fingerprint="a", accuracy=0.1), bf16(fingerprint="b")])
    merged = registry.update(tmp_path, "s", [cell(fingerprint="a", accuracy=0.2), cell(fingerprint="c")])
    assert merged.set_index("fingerprint")["accuracy"].to_dict() == {"a": 0.2, "b": 0.8, "c": 0.8}
    pd.testing.assert_frame_equal(registry.load(tmp_path, "s"), merged)


def test_the_same_rows_give_the_same_file_in_any_order(tmp_path: Path) -> None:
    """The bytes do not depend on the order in which cells were finished."""
    rows = [bf16(fingerprint="b"), *(cell(fingerprint=f"f{i}", thinking_max=i) for i in range(5))]
    registry.update(tmp_path, "one", rows)
    for row in reversed(rows):
        registry.update(tmp_path, "two", [row])
    assert registry.path(tmp_path, "one").read_bytes() == registry.path(tmp_path, "two").read_bytes()


def test_a_failure_gives_way_to_a_result_and_not_the_reverse(tmp_path: Path) -> None:
    """A cell that failed and then ran is done; one that was measured stays so if it can not be measured again."""
    registry.update(tmp_path, "s", [failed(fingerprint="a")])
    assert registry.load(tmp_path, "s")["status"].tolist() == ["failed"]
    registry.update(tmp_path, "s", [cell(fingerprint="a")])
    merged = registry.update(tmp_path, "s", [failed(fingerprint="a")])
    assert merged["status"].tolist() == ["done"]


def test_rows_that_a_changed_spec_left_behind_can_be_dropped(tmp_path: Path) -> None:
    """`keep` names the fingerprints of the plan: the rest goes."""
    registry.update(tmp_path, "s", [cell(fingerprint="old"), cell(fingerprint="a")])
    merged = registry.update(tmp_path, "s", [cell(fingerprint="b")], keep={"a", "b"})
    assert set(merged["fingerprint"]) == {"a", "b"}


def test_a_row_that_breaks_the_schema_changes_nothing(tmp_path: Path) -> None:
    """The table there stays as it is."""
    registry.update(tmp_path, "s", [cell()])
    before = registry.path(tmp_path, "s").read_bytes()
    with pytest.raises(ValueError, match="accuracy"):
        registry.update(tmp_path, "s", [cell(fingerprint="b", accuracy=3)])
    assert registry.path(tmp_path, "s").read_bytes() == before


def test_a_damaged_table_is_named_and_kept(tmp_path: Path) -> None:
    """A csv with conflict markers is not written over."""
    registry.update(tmp_path, "s", [cell()])
    file = registry.path(tmp_path, "s")
    file.write_text("<<<<<<< HEAD\n" + file.read_text())
    with pytest.raises(ValueError, match=r"s\.csv"):
        registry.update(tmp_path, "s", [cell(fingerprint="b")])
    assert file.read_text().startswith("<<<<<<<")


def _write_rows(root: Path, writer: int) -> None:
    for i in range(6):
        registry.update(root, "s", [cell(fingerprint=f"{writer}-{i}")])


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three processes that merge row by row into one table end with all rows."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_rows, args=(tmp_path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    found = set(registry.load(tmp_path, "s")["fingerprint"])
    assert found == {f"{writer}-{i}" for writer in range(3) for i in range(6)}
    assert [file.name for file in registry.path(tmp_path, "s").parent.iterdir()] == ["s.csv"]


def test_all_specs_are_read_together(tmp_path: Path) -> None:
    """Without a name, every spec's rows; with reference, the papers' too."""
    registry.update(tmp_path, "one", [cell(spec="one")])
    registry.update(tmp_path, "two", [cell(spec="two")])
    assert registry.load(tmp_path)["spec"].tolist() == ["one", "two"]
    published = cell(source="paper", paper="P1 Table 1", fingerprint="p", spec="p1")
    records.write_cells(tmp_path / registry.REFERENCE / "p1.csv", [published])
    assert registry.load(tmp_path, include_reference=True)["source"].tolist() == ["measured", "measured", "paper"]


def test_a_spec_without_results_is_named(tmp_path: Path) -> None:
    """A misspelt name is an error that names the tables there are; an empty registry is an empty table."""
    assert len(registry.load(tmp_path)) == 0
    registry.update(tmp_path, "quickstart", [cell()])
    with pytest.raises(ValueError, match=r"quikstart.*there are quickstart"):
        registry.load(tmp_path, "quikstart")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("accuracy > 0.5 and method == 'rtn'", ["a"]),
        ("method in ['bf16', 'gptq']", ["b"]),
        ("thinking_max.isna()", ["b", "a"]),
        ("verdict.str.startswith('not resolved')", []),
    ],
)
def test_queries_are_those_of_pandas(where: str, found: list[str]) -> None:
    """Comparisons, membership, nulls and text."""
    table = records.cell_table([cell(fingerprint="a"), bf16(fingerprint="b")])
    assert registry.query(table, where)["fingerprint"].tolist() == found


@pytest.mark.parametrize("where", ["accuracy >", "colour == 'red'", "accuracy", "1", "@pd", "@table", "accuracy > 'x'"])
def test_a_wrong_query_names_the_columns(where: str) -> None:
    """What is no condition over the columns is an error; the program's own names are out of reach."""
    with pytest.raises(ValueError, match="where = ") as caught:
        registry.query(records.cell_table([cell()]), where)
    assert "accuracy" in str(caught.value)


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    """The papers' rows as they are in the repository."""
    return registry.reference(ROOT)


def test_the_papers_numbers_are_all_there(published: pd.DataFrame) -> None:
    """1,144 printed numbers: 1,006 accuracies, 133 drops, and 5 that follow from others."""
    assert published["accuracy"].notna().sum() == 1006
    assert published["delta_vs_bf16"].notna().sum() == 133
    assert published.groupby("spec").size().to_dict() == {"p1": 768, "p2": 238}
    assert set(published["source"]) == {"paper"}


def line(published: pd.DataFrame) -> pd.DataFrame:
    """One row for each printed line of a table, one column for each benchmark."""
    keys = ["paper", "model", "method", "precision", "params", "calibration_source", "calibration_seq_len"]
    return published.pivot(index=keys, columns="benchmark", values="accuracy")


def test_averages_of_p1_are_the_mean_of_five(published: pd.DataFrame) -> None:
    """All 128 printed averages of P1, within rounding."""
    lines = line(published[published["spec"] == "p1"]).astype(float)
    five = lines[["aime120", "math500", "gsm8k", "gpqa-diamond", "livecodebench"]].mean(axis=1)
    assert len(lines) == 128
    assert (five - lines["avg"]).abs().max() <= 0.0001 + 1e-9


def test_drops_of_p1_are_differences_of_averages(published: pd.DataFrame) -> None:
    """Every printed drop of P1 is average minus BF16's, within rounding; a loss is negative."""
    rows = published[(published["spec"] == "p1") & (published["benchmark"] == "avg")]
    base = rows[rows["method"] == "bf16"].set_index(["paper", "model"])["accuracy"]
    dropped = rows[rows["delta_vs_bf16"].notna()]
    keys = zip(dropped["paper"], dropped["model"], strict=True)
    expected = [a - base[key] for a, key in zip(dropped["accuracy"], keys, strict=True)]
    assert len(dropped) == 107
    assert (pd.Series(expected) - dropped["delta_vs_bf16"].reset_index(drop=True)).abs().max() <= 0.0002 + 1e-9


@pytest.mark.parametrize(
    ("where", "accuracy"),
    [
        ("paper == 'P1 Table 1' and method == 'bf16' and model.str.endswith('1.5B') and benchmark == 'math500'", 0.844),
        ("paper == 'P1 Table 2' and method == 'bf16' and benchmark == 'avg'", 0.7802),
        ("paper == 'P2 Table 5' and params == 'init=rtn+kd row-4' and benchmark == 'math500'", 0.78),
    ],
)
def test_a_printed_number_is_found_by_its_place(published: pd.DataFrame, where: str, accuracy: float) -> None:
    """Numbers read off the papers, and the query that finds exactly them."""
    assert registry.query(published, where)["accuracy"].tolist() == [accuracy]


def test_losses_that_p2_prints_as_positive_are_negative(published: pd.DataFrame) -> None:
    """P2's Table 1 prints losses with a downward arrow."""
    deltas = published.loc[published["paper"] == "P2 Table 1", "delta_vs_bf16"].dropna()
    assert len(deltas) == 6
    assert (deltas < 0).all()


def test_precisions_of_the_papers_are_those_of_specs(published: pd.DataFrame) -> None:
    """Every precision reads back as itself, with the bits that its columns say."""
    from suite.spec.precision import Precision

    for text, rows in published.groupby("precision"):
        parsed = Precision.parse(str(text))
        assert str(parsed) == text
        bits = (parsed.weight_bits, parsed.activation_bits, parsed.kv_bits)
        assert set(zip(rows["weight_bits"], rows["activation_bits"], rows["kv_bits"], strict=True)) == {bits}
        assert set(rows["group_size"].dropna()) == ({parsed.group_size} - {None})


@pytest.mark.skipif(not PAPER_NUMBERS.exists(), reason="../shared/reference/paper_results.csv is not there")
def test_the_reference_is_made_from_its_source(tmp_path: Path) -> None:
    """Converting the source again gives the committed bytes."""
    tool = ROOT / "tools/paper_reference.py"
    subprocess.run([sys.executable, tool, PAPER_NUMBERS, tmp_path], check=True, cwd=ROOT)
    for name in ("p1.csv", "p2.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / registry.REFERENCE / name).read_bytes()


@pytest.mark.skipif(not PAPER_NUMBERS.exists(), reason="../shared/reference/paper_results.csv is not there")
def test_what_the_reference_leaves_out_follows_from_it() -> None:
    """P1 Table 4's differences are its averages' differences, within rounding."""
    with PAPER_NUMBERS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["paper"].startswith("P1") and row["table"] == "Table 4"]
    left_out = [row for row in rows if row["benchmark"] == "Delta_vs_WikiText2"]
    average = {(r["method"], r["calibration"]): float(r["accuracy"]) for r in rows if r["benchmark"] == "Avg"}
    assert len(left_out) == 5
    for row in left_out:
        difference = average[row["method"], row["calibration"]] - average[row["method"], "WikiText2"]
        assert float(row["accuracy"]) == pytest.approx(difference, abs=0.0101)


def test_a_name_that_the_converter_does_not_know_is_named(tmp_path: Path) -> None:
    """A new model in the source is an error that says where to add it."""
    spec = importlib.util.spec_from_file_location("paper_reference", ROOT / "tools/paper_reference.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    source = tmp_path / "numbers.csv"
    source.write_text(
        "paper,table,model,method,w_bits,a_bits,kv_bits,group_size,calibration,calib_seq_len,stage/notes,benchmark,accuracy\n"
        "P1-x,Table 1,GPT-7,BF16,16,16,16,,,,,MATH-500,84.4\n"
    )
    with pytest.raises(ValueError, match=r"GPT-7.*tools/paper_reference\.py"):
        tool.convert(source)
