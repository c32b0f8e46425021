"""Whole reports: golden Markdown, a page that needs nothing else, and inputs that lack something."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from suite import report
from suite.records import cell_table
from suite.report.text import points
from suite.spec import Spec

from .factory import MESSAGE, Records, make_records, make_spec
from .update_goldens import GOLDEN

Write = Callable[[Records], tuple[str, str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a report and returns its Markdown and its HTML."""

    def run(records: Records) -> tuple[str, str]:
        paths = report.write(tmp_path, records.spec, records.cells, records.samples.get, cell_table([]))
        assert [path.name for path in paths] == [f"{records.spec.name}.md", f"{records.spec.name}.html"]
        assert [path.parent for path in paths] == [tmp_path / "reports"] * 2
        return paths[0].read_text(), paths[1].read_text()

    return run


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    VOID = ("meta", "link", "line", "circle", "rect", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.anchors: set[str] = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.anchors |= {value or "" for name, value in attrs if name == "id"}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in ("td", "th") for tag in self.open):
            self.rows[-1][-1] += data + " "


def test_markdown_is_golden(tmp_path: Path) -> None:
    """The report of fixed records, with a failed cell and one not run yet, is the committed one."""
    records = make_records(failed=[("W4A16KV16-g128", "tiny-hard"), ("W8A16KV16-g128", "tiny-easy")])
    path, _ = report.write(tmp_path, records.spec, records.cells, records.samples.get, cell_table([]), planned=26)
    assert path.read_text() == GOLDEN.read_text(), "if that is meant: python -m tests.report.update_goldens"


def test_same_records_same_bytes(tmp_path: Path) -> None:
    """Twice, and with the records in another order."""
    records = make_records(levels=True)
    cells = records.cells
    written = []
    for folder, table in (("a", cells), ("b", cells), ("c", cells.sample(frac=1, random_state=1))):
        paths = report.write(tmp_path / folder, records.spec, table, records.samples.get, cell_table([]))
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1] == written[2]


def test_the_page_needs_nothing_else(write: Write) -> None:
    """No script, no address, nothing to load: it can be mailed."""
    _, html = write(make_records(levels=True))
    page = Page(html)
    assert "script" not in page.tags
    for name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:,")), value
    assert not re.search(r"https?://|@import|url\(", html)


def test_links_lead_somewhere(write: Write) -> None:
    """Every entry of the navigation has its section."""
    page = Page(write(make_records(levels=True))[1])
    links = [value for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert len(links) >= 10
    assert {link[1:] for link in links} <= page.anchors


def test_every_accuracy_is_in_the_table(write: Write) -> None:
    """With its difference and both bounds under it."""
    records = make_records()
    rows = [" ".join(" ".join(row).split()) for row in Page(write(records)[1]).rows]
    for cell in records.cells.query("thinking_min.isna() and thinking_max.isna()").itertuples():
        assert any(points(cell.accuracy) in row and cell.method in row for row in rows)
        if cell.method != "bf16":
            low, high = (f"{abs(100 * bound):.1f}" for bound in (cell.delta_low, cell.delta_high))
            assert any(re.search(rf"\[[−+]?{low}, [−+]?{high}\]", row) and cell.precision in row for row in rows)


def test_drawings_are_well_formed_and_say_what_they_show(write: Write) -> None:
    """Each svg parses as XML, and is an image with a text that has its numbers."""
    _, html = write(make_records(levels=True))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 4 + 2 + 3 + 1 + 3 + 3  # drops, precisions, levels, budgets, lengths, flips
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert re.search(r"\d", root.get("aria-label") or "")
        assert "nan" not in drawing


def test_text_is_escaped(write: Write) -> None:
    """Neither the question nor a message of a failed cell can break the page or the table."""
    spec = make_spec(question='Is <b>4</b> < 16 & "enough" | for *all*?')
    records = make_records(spec, failed=[("W4A16KV16-g128", "*")])
    for row in records.rows:
        row["message"] = row.get("message") and "KeyError: '<lm_head>' | a\nb"
    markdown, html = write(records)
    assert "Is &lt;b&gt;4&lt;/b&gt; &lt; 16 &amp; &#34;enough&#34; | for *all*?" in html
    assert r"Is \<b\>4\</b\> \< 16 & " in markdown
    line = next(line for line in markdown.splitlines() if "lm_head" in line.replace("\\", ""))
    assert len(re.findall(r"(?<!\\)\|", line)) == 5  # four columns
    Page(html)


def test_failed_cells_are_listed(write: Write) -> None:
    """With stage, benchmark and message, and they are counted at the top."""
    markdown, html = write(make_records(failed=[("W3A16KV16-g128", "tiny-hard")]))
    assert "24 of 25 cells done, 1 failed" in markdown
    assert MESSAGE in html
    (row,) = [row for row in Page(html).rows if "quantize " in row]
    assert [field.strip() for field in row] == ["rtn W3A16KV16-g128", "quantize", "tiny-hard", MESSAGE]


@pytest.mark.parametrize("failed", [[("bf16", "*")], [("*", "*")], [("*", "tiny-hard")], [("bf16", "tiny-easy")]])
def test_what_is_missing_is_said(write: Write, failed: list[tuple[str, str]]) -> None:
    """Without BF16, without anything, without a benchmark: a sensible page without a nan."""
    markdown, html = write(make_records(failed=failed))
    page = Page(html)
    assert "failed" in page.anchors
    assert "nan" not in markdown.replace("finance", "")
    assert "None" not in markdown
    if failed == [("bf16", "*")]:
        assert "There is no bf16 to compare with." in markdown
        assert "drops" not in page.anchors
        assert "No comparison with bf16 could be made." in markdown


def test_nothing_measured_yet(tmp_path: Path) -> None:
    """The report of an empty registry says how to fill it."""
    spec = make_spec()
    markdown, html = report.write(tmp_path, spec, cell_table([]), lambda _: None, cell_table([]), planned=25)
    assert "Nothing has been measured yet." in markdown.read_text()
    assert "suite run specs/synthetic.toml" in html.read_text()


def test_cells_not_run_yet_are_counted(tmp_path: Path) -> None:
    """After an interrupted run."""
    records = make_records()
    some = records.cells.query("benchmark == 'tiny-easy'")
    path, _ = report.write(tmp_path, records.spec, some, records.samples.get, cell_table([]), planned=25)
    assert "5 of 25 cells done, 20 not run yet" in path.read_text()


def test_without_samples_the_means_are_still_shown(tmp_path: Path) -> None:
    """A registry can outlive its store."""
    records = make_records()
    path, page = report.write(tmp_path, records.spec, records.cells, lambda _: None, cell_table([]))
    assert "The samples of 25 cells are not in the store" in path.read_text()
    assert "lengths" in Page(page.read_text()).anchors


def test_two_models_have_a_table_each(write: Write) -> None:
    """And captions that tell their panels apart."""
    records = make_records(make_spec(models=("org/Model-A", "org/Model-B")))
    markdown, html = write(records)
    assert "**org/Model-A**" in markdown
    assert "**org/Model-B**" in markdown
    assert "org/Model-B: tiny-hard" in html


def test_with_many_variants_the_table_comes_first(write: Write) -> None:
    """Sentences before the table where they are few, after it where they would push it off the screen."""
    few, many = make_spec(), make_spec(models=("A", "B", "C"))
    for spec, table_first in ((few, False), (many, True)):
        markdown, _ = write(make_records(spec))
        assert (markdown.index("## Results") < markdown.index("## In short")) == table_first


def test_nothing_is_left_beside_the_report(write: Write, tmp_path: Path) -> None:
    """The temporary files of the atomic write are gone."""
    write(make_records())
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["synthetic.html", "synthetic.md"]


def test_a_paper_that_shares_nothing_is_said(tmp_path: Path) -> None:
    """The spec names a table, but none of its rows fits."""
    spec: Spec = make_spec(paper={"name": "P1", "table": "Table 1"})
    records = make_records(spec)
    path, _ = report.write(tmp_path, spec, records.cells, records.samples.get, cell_table([]))
    assert "P1 Table 1 is named by the spec, but shares no model, method, precision and benchmark" in path.read_text()
