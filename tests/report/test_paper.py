"""Published numbers beside ours."""

from pathlib import Path

import pandas as pd
import pytest

from suite.records import cell_table, read_cells
from suite.report.layout import arrange
from suite.report.paper import paper_table, published

from .factory import make_records, make_spec

REFERENCE = Path(__file__).parents[2] / "registry" / "reference" / "p1.csv"
PUBLISHED = {"bf16": 0.9, "W4A16KV16-g128": 0.88, "W3A16KV16-g128": 0.7}


def reference(**values: object) -> pd.DataFrame:
    """A published table that names the tiny model and benchmarks its own way."""
    rows = [
        {
            "spec": "p9",
            "model": "Tiny_Qwen2",
            "method": "bf16" if precision == "bf16" else "rtn",
            "precision": "W16A16KV16" if precision == "bf16" else precision,
            "weight_bits": 16 if precision == "bf16" else int(precision[1]),
            "activation_bits": 16,
            "kv_bits": 16,
            "benchmark": benchmark.upper(),
            "accuracy": accuracy,
            "status": "done",
            "source": "paper",
            "fingerprint": f"{precision}{benchmark}",
            "paper": "P9 Table 1",
            **values,
        }
        for precision, accuracy in PUBLISHED.items()
        for benchmark in ("tiny-easy", "tiny-medium", "tiny-hard")
    ]
    return cell_table(rows)


def test_ours_over_theirs() -> None:
    """Matched by the letters of the names; the drop is taken over the same benchmarks."""
    records = make_records()
    (block,) = arrange(records.cells, records.spec).blocks
    table = paper_table(block, published(reference(), "P9 Table 1"))
    assert table is not None
    assert [row[0].text + row[1].text for row in table.rows] == [
        "bf16",
        "rtnW4A16KV16-g128",
        "rtnW3A16KV16-g128",
        "rtn, asymmetricW3A16KV16-g128",
    ]
    assert [value.sub for value in table.rows[1][2:]] == ["paper 88.0"] * 3 + ["paper −2.0"]
    ours = records.cells.query("precision == 'W4A16KV16-g128' and benchmark == 'tiny-hard'")["accuracy"].item()
    assert table.rows[1][4].text == f"{100 * ours:.1f}"


def test_of_several_published_rows_the_one_with_our_parameters_counts() -> None:
    """Two rows that differ in their parameters: each of ours meets its own."""
    extra = reference(params="asymmetric", accuracy=0.5)
    extra["fingerprint"] = "a" + extra["fingerprint"]
    both = pd.concat([reference(), extra])
    records = make_records()
    (block,) = arrange(records.cells, records.spec).blocks
    table = paper_table(block, published(both, "P9 Table 1"))
    assert table is not None
    subs = {row[0].text: row[2].sub for row in table.rows if row[1].text == "W3A16KV16-g128"}
    assert subs == {"rtn": "paper 70.0", "rtn, asymmetric": "paper 50.0"}


def test_what_cannot_be_told_apart_is_not_shown() -> None:
    """Two published rows for one place, and nothing to choose by."""
    twice = reference()
    twice["fingerprint"] = "b" + twice["fingerprint"]
    twice["accuracy"] = 0.1
    records = make_records()
    (block,) = arrange(records.cells, records.spec).blocks
    assert paper_table(block, published(pd.concat([reference(), twice]), "P9 Table 1")) is None


def test_another_table_of_the_paper_is_not_mixed_in() -> None:
    """Only the table that the spec names."""
    assert published(reference(), "P9 Table 2") == ()
    assert published(reference(), "") == ()


@pytest.mark.parametrize(
    "model", ["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "/models/DeepSeek-R1-Distill-Qwen-1.5B"]
)
def test_the_shipped_reference_is_found(model: str) -> None:
    """A Hub id and a local folder of the same model meet the published rows of P1 Table 1."""
    methods = make_spec().methods
    spec = make_spec(models=(model,), methods=methods)
    records = make_records(spec)
    cells = records.cells.replace(
        {"benchmark": {"tiny-easy": "gsm8k", "tiny-medium": "math500", "tiny-hard": "aime120"}}
    )
    gptq = cells.replace({"method": {"rtn": "gptq"}}).query("thinking_min.isna() and thinking_max.isna()")
    (block,) = arrange(gptq).blocks
    table = paper_table(block, published(read_cells(REFERENCE), "P1 Table 1"))
    assert table is not None
    bf16 = dict(zip(table.head, table.rows[0], strict=True))
    assert bf16["aime120"].sub == "paper 21.7"
    assert bf16["math500"].sub == "paper 84.4"
    assert table.rows[1][1].text == "W4A16KV16-g128"
