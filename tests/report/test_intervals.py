"""Intervals that the report adds to those of the records."""

import math

import numpy as np
import pytest

from suite import statistics
from suite.report.intervals import Interval, accuracy_interval, mean_interval


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.97, 1.0])
def test_an_accuracy_has_the_interval_of_its_answers(seed: int, rate: float) -> None:
    """Mean, standard error and number of questions are enough to give back the interval over the questions."""
    by_question = (np.random.default_rng(seed).random((60, 2)) < rate).mean(axis=1)
    found = accuracy_interval(by_question.mean(), statistics.accuracy_stderr(by_question), 60)
    assert (found.low, found.high) == pytest.approx(statistics.accuracy_interval(by_question), abs=1e-12)


def test_a_perfect_score_is_not_certain() -> None:
    """The interval of 50 right answers of 50 is open downwards, and ends at 1."""
    found = accuracy_interval(1.0, 0.0, 50)
    assert 0.85 < found.low < 0.95
    assert found.high == 1.0


def test_the_mean_of_symmetric_intervals_is_the_usual_one() -> None:
    """Standard errors of independent estimates add as squares."""
    found = mean_interval([Interval(-0.1, -0.13, -0.07), Interval(0.02, -0.02, 0.06)])
    assert found is not None
    half = math.hypot(0.03, 0.04) / 2
    assert (found.value, found.low, found.high) == pytest.approx((-0.04, -0.04 - half, -0.04 + half))


def test_the_mean_keeps_the_sides_apart() -> None:
    """An interval that is long below makes the mean's long below, and only there."""
    found = mean_interval([Interval(0.9, 0.6, 0.91), Interval(0.9, 0.89, 0.91)])
    assert found is not None
    assert found.value - found.low > 5 * (found.high - found.value)


@pytest.mark.parametrize("intervals", [[], [None], [Interval(0.5, 0.4, 0.6), None]])
def test_no_mean_over_what_is_missing(intervals: list[Interval | None]) -> None:
    """An average over some of the benchmarks would pass for one over all of them."""
    assert mean_interval(intervals) is None


def test_coverage_of_the_mean() -> None:
    """In 95% of experiments the interval of an average over three benchmarks holds the true average."""
    rng, rates, hits = np.random.default_rng(7), (0.97, 0.85, 0.6), 0
    for _ in range(2000):
        drawn = [rng.random(60) < rate for rate in rates]
        single = [accuracy_interval(d.mean(), statistics.accuracy_stderr(d), 60) for d in drawn]
        found = mean_interval(single)
        assert found is not None
        hits += found.low <= sum(rates) / 3 <= found.high
    assert 0.93 < hits / 2000 < 0.99


@pytest.mark.parametrize(
    ("low", "high", "zone"),
    [(-0.01, 0.2, "lossless"), (-0.03, -0.011, "fair"), (-0.2, -0.031, "risky"), (-0.02, 0.0, "not resolved")],
)
def test_zones_are_those_of_the_verdicts(low: float, high: float, zone: str) -> None:
    """An averaged difference is called what statistics.verdict calls a difference with the same interval."""
    found = Interval((low + high) / 2, low, high)
    paired = statistics.Paired(found.value, low, high, 0.5, 0, 0, 100, 0.1)
    assert found.zone == zone == statistics.verdict(paired).split(",")[0]
