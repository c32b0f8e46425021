"""Panels: marks stand where the numbers are."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from suite.report.intervals import Interval
from suite.report.plots import (
    Flips,
    Lengths,
    Mark,
    Point,
    Series,
    budget_panel,
    category_panel,
    colour,
    drop_panel,
    flip_panel,
    length_panel,
)
from suite.report.svg import Scale, ticks


def elements(drawing: str, css: str) -> list[ElementTree.Element]:
    """Elements of a class, in order."""
    return [e for e in ElementTree.fromstring(drawing).iter() if css in (e.get("class") or "").split()]


def at(element: ElementTree.Element, name: str) -> float:
    """A number of an element."""
    return float(element.get(name) or "nan")


def test_a_difference_stands_between_its_bounds_on_the_scale() -> None:
    """Dot, whisker, zero line and zones share one scale."""
    drawing = drop_panel("t", [Mark("a", Interval(-0.1, -0.15, -0.05), "v-risky")], (-0.2, 0.05))
    (dot,), zero = elements(drawing, "dot"), elements(drawing, "zero")[0]
    whisker = elements(drawing, "whisker")[0]
    low, high, centre, origin = at(whisker, "x1"), at(whisker, "x2"), at(dot, "cx"), at(zero, "x1")
    assert centre - low == pytest.approx(high - centre, abs=0.2)
    assert (origin - centre) / (high - centre) == pytest.approx(2, abs=0.02)
    risky = elements(drawing, "risky")[0]
    assert at(risky, "x") + at(risky, "width") == pytest.approx(origin - 0.03 * (origin - centre) / 0.1, abs=0.2)


def test_a_row_without_a_number_says_why() -> None:
    """No dot, but the note."""
    drawing = drop_panel("t", [Mark("a", None, "", "failed")], (-0.1, 0.1))
    assert not elements(drawing, "dot")
    assert "failed" in drawing


def test_accuracies_are_higher_up_the_higher_they_are() -> None:
    """And the line passes through its dots."""
    points = tuple(Point(x, Interval(y, y - 0.05, y + 0.05)) for x, y in enumerate((0.9, 0.5, 0.7)))
    drawing = category_panel("t", ["bf16", "W4", "W3"], [Series("a", "c1", points)], (0.0, 1.0))
    ys = [at(dot, "cy") for dot in elements(drawing, "dot")]
    assert ys[0] < ys[2] < ys[1]
    line = re.findall(r"[ML]([\d.]+) ([\d.]+)", elements(drawing, "line")[0].get("d") or "")
    assert [float(y) for _, y in line] == pytest.approx(ys, abs=0.1)


def test_long_names_of_steps_are_tilted() -> None:
    """So that they do not run into each other."""
    names = [f"W{bits}A16KV16-g128" for bits in (8, 7, 6, 5, 4, 3)]
    points = tuple(Point(x, Interval(0.5, 0.4, 0.6)) for x in range(6))
    assert "rotate" in category_panel("t", names, [Series("a", "c1", points)], (0.0, 1.0))
    assert "rotate" not in category_panel("t", names[:3], [Series("a", "c1", points[:3])], (0.0, 1.0))


def test_budgets_that_have_no_room_are_left_to_the_table() -> None:
    """Labels never overlap."""
    points = tuple(Point(x, Interval(0.5, 0.4, 0.6), "", f"≤ {x}") for x in (10, 12, 14, 400))
    drawing = budget_panel("t", [Series("a", "c0", points)], 500.0)
    assert "≤ 10<" in drawing
    assert "≤ 12<" not in drawing
    assert "≤ 400<" in drawing


def test_a_histogram_has_the_area_of_its_shares() -> None:
    """A single value fills one bin to the full height; the tick stands at the median."""
    tokens = np.array([100.0] * 9 + [900.0])
    drawing = length_panel("t", [Lengths("a", "c1", tokens, 0.1)], 1000.0)
    corners = [
        tuple(map(float, c)) for c in re.findall(r"[ML]([\d.]+) ([\d.]+)", elements(drawing, "area")[0].get("d") or "")
    ]
    base = max(y for _, y in corners)
    heights = sorted({round(base - y, 1) for _, y in corners}, reverse=True)
    assert heights == pytest.approx([30.0, 30.0 / 9, 0.0], abs=0.11)
    assert "100 · 180, 10.0% cut" in drawing


def test_flips_go_both_ways_from_the_middle() -> None:
    """Twice as many lost, twice as long a bar."""
    drawing = flip_panel("t", [Flips("a", 20, 10, 100)], 0.25)
    (lost,), (gained,) = elements(drawing, "lost"), elements(drawing, "gained")
    assert at(lost, "width") == pytest.approx(2 * at(gained, "width"), abs=0.2)
    assert at(lost, "x") + at(lost, "width") == pytest.approx(at(gained, "x"), abs=0.2)


def test_numbers_that_would_run_into_their_label_get_a_line() -> None:
    """Row by row, in the whole panel."""
    short = flip_panel("t", [Flips("a", 20, 10, 100)], 0.25)
    long = flip_panel("t", [Flips("flatquant W4A4KV4, numina-math-1.5 128 × 4096", 20, 10, 100)], 0.25)
    assert len(elements(short, "number")) == len(elements(long, "number")) == 1
    assert at(elements(short, "number")[0], "y") == at(elements(short, "label")[0], "y")
    assert at(elements(long, "number")[0], "y") > at(elements(long, "label")[0], "y")


def test_names_are_escaped() -> None:
    """A label cannot close an element."""
    ElementTree.fromstring(flip_panel('<t> & "q"', [Flips("a<b> & 'c'", 1, 1, 10)], 0.25))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.38, 0.12), (0, 2048), (0, 7), (0.8, 1), (-0.004, 0.003)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    """Between three and seven of them, evenly spaced, of 1, 2 or 5 times a power of ten."""
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step) + 1e-9))
    )
    assert np.diff(found) == pytest.approx(step)


def test_a_scale_without_extent_has_a_middle() -> None:
    """All values equal is no division by zero."""
    assert Scale(1.0, 1.0, 0.0, 10.0)(1.0) == 5.0
    assert ticks(1.0, 1.0) == [1.0]


def test_colours_are_told_apart_by_dashes_once_they_run_out() -> None:
    """Eight colours, then the same ones dashed; BF16 has its own."""
    assert len({colour(index) for index in range(17)}) == 17
