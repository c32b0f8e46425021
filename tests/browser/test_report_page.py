"""The HTML report in a real browser: whole, legible on a phone and in the dark, and on its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.factory import Records, make_records

from suite import report
from suite.records import cell_table
from suite.report.text import points

pytestmark = pytest.mark.browser

DESKTOP, PHONE = 1180, 375
# Every pair of texts of one drawing that overlap, as they are laid out.
OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return texts.flatMap(([a, p], i) => texts.slice(i + 1)
    .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
    .map(([b]) => svg.getAttribute('aria-label').split('.')[0] + ': ' + a + ' | ' + b));
})"""
OUTSIDE = """() => [...document.querySelectorAll('svg text')].filter(t => {
  const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
}).map(t => t.textContent)"""
SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg text')].map(t => {
  const svg = t.closest('svg'), scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return parseFloat(getComputedStyle(t).fontSize) * scale;
}))"""
CONTRAST = """() => {
  const light = c => {
    const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('p, li, td, th, a, summary, figcaption, .mark, svg text')]
    .filter(e => e.textContent.trim() && e.getBoundingClientRect().width)
    .map(e => {
      const style = getComputedStyle(e), ink = e.closest('svg') ? style.fill : style.color;
      return [ratio(ink, ground(e.closest('figure') || e)), e.textContent.trim().slice(0, 40)];
    })
    .sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.fixture(scope="module")
def records() -> Records:
    """Five variants, three benchmarks, one of them under three budgets, with levels, and one failed cell."""
    return make_records(failed=[("W4A16KV16-g128", "tiny-hard")], levels=True)


@pytest.fixture(scope="module")
def written(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page."""
    root = tmp_path_factory.mktemp("report")
    return report.write(root, records.spec, records.cells, records.samples.get, cell_table([]))[1]


@pytest.fixture
def opened(written: Path, visit: Callable[..., Any]) -> Callable[..., Any]:
    """Opens the report."""
    return lambda **how: visit(written.as_uri(), written.as_uri(), **how)


def test_numbers_are_visible(opened: Callable[..., Any], records: Records) -> None:
    """The question, every accuracy of the main table, and the failed cell, on the screen and not only in the source."""
    page = opened().page
    assert page.locator("h1").inner_text() == records.spec.question
    table = page.locator("#results table")
    assert table.is_visible()
    free = records.cells[records.cells["thinking_min"].isna() & records.cells["thinking_max"].isna()]
    shown = table.locator("tbody .main").all_inner_texts()
    for accuracy in free["accuracy"].dropna():
        assert any(text.startswith(points(accuracy)) for text in shown)
    assert sum(text == "failed" for text in shown) == 1
    assert "192 inputs are no multiple of it" in page.locator("#failed").inner_text()


def test_folded_tables_open(opened: Callable[..., Any]) -> None:
    """The numbers of a figure are one click away."""
    page = opened().page
    table = page.locator("#lengths details table")
    assert not table.is_visible()
    page.locator("#lengths summary").click()
    assert table.is_visible()
    assert "rtn" in table.inner_text()


def test_it_stands_alone(opened: Callable[..., Any]) -> None:
    """No error, and nothing is asked of anybody."""
    seen = opened()
    seen.page.wait_for_load_state("networkidle")
    assert seen.errors == []
    assert seen.elsewhere == []


@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP, 1920])
def test_the_page_is_as_wide_as_the_screen(opened: Callable[..., Any], width: int) -> None:
    """Wide tables scroll within themselves; the page does not. No drawing is cut; its texts are apart and legible."""
    page = opened(width=width).page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(SMALLEST) >= (7.5 if width == 320 else 9)


def test_a_wide_table_scrolls_and_keeps_its_names(opened: Callable[..., Any]) -> None:
    """On a phone: the last column can be reached, and the method stays in view."""
    page = opened(width=PHONE).page
    region = page.locator("#results .scroll")
    assert region.evaluate("e => e.scrollWidth > e.clientWidth")
    region.evaluate("e => e.scrollLeft = e.scrollWidth")
    name = page.locator("#results tbody th").nth(1).bounding_box()
    last = page.locator("#results tbody tr").nth(1).locator("td").last.bounding_box()
    assert name["x"] >= 0
    assert last["x"] + last["width"] <= PHONE + 1


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(opened: Callable[..., Any], dark: bool) -> None:
    """At least 4.5 to 1 for every text, by day and by night (WCAG 2, AA)."""
    page = opened(dark=dark).page
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
