"""The table at the end of a run."""

import io

import pandas as pd
from rich.console import Console

from suite.records import cell_table
from suite.report import console_table

from .factory import MESSAGE, make_records, make_spec
from .test_paper import reference


def printed(cells: pd.DataFrame, spec: object = None) -> str:
    """What a terminal of 160 columns shows."""
    out = io.StringIO()
    Console(file=out, width=160).print(console_table(cells, spec))  # type: ignore[arg-type]
    return out.getvalue()


def test_a_row_a_variant_and_what_failed() -> None:
    """Rows in the order of the report; stage and message of what failed below."""
    records = make_records(failed=[("W3A16KV16-g128", "tiny-hard")])
    text = printed(records.cells, records.spec)
    assert text.index("bf16") < text.index("W8A16KV16-g128") < text.index("W3A16KV16-g128")
    assert text.index("tiny-easy") < text.index("tiny-hard")
    assert "quantize" in text
    assert MESSAGE[:40] in text


def test_empty() -> None:
    """An empty registry is no error."""
    assert "Nothing has been measured yet." in printed(cell_table([]))


def test_several_specs_and_papers_have_a_table_each() -> None:
    """As `suite results` without a spec shows them; published numbers have no empty columns of averages."""
    both = pd.concat([make_records(make_spec("one")).cells, make_records(make_spec("two")).cells, reference()])
    text = printed(both)
    assert [text.count(f"{name}: ") for name in ("one", "two", "P9 Table 1")] == [1, 1, 1]
    assert text.count("Average") == 2


def test_a_long_message_is_shown_whole_in_a_narrow_terminal() -> None:
    """Folded, not cut."""
    records = make_records(failed=[("W3A16KV16-g128", "tiny-hard")])
    out = io.StringIO()
    Console(file=out, width=70).print(console_table(records.cells, records.spec))
    assert "divides" in out.getvalue()
