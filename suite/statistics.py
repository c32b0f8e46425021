"""Statistics: how sure one can be of an accuracy and of a difference from BF16.

The question is the unit. A question asked under several seeds gives answers that resemble each other, so its answers
are averaged first and the spread is taken over questions (clustering); and the quantized model is compared with BF16
on the same questions and seeds (pairing), which cancels what a hard question does to both.

    d_q   = mean over seeds of (correct - correct under bf16)      one number a question, in [-1, 1]
    delta = mean of d_q over the Q questions                       what is reported, not adjusted

Interval and p-value are normal, after adding two questions, one lost (-1) and one gained (+1):

    m = sum d / (Q + 2),   v = (sum d^2 + 2) / (Q + 2) - m^2,   s = sqrt(v / (Q + 2))
    interval: m -+ z s,    p = 2 Phi(-|m| / s)

With one seed this is exactly the adjusted Wald interval of Bonett and Price (2012, Journal of Educational and
Behavioral Statistics 37, 479-488). The two questions keep the interval open where nothing flipped: 0 flips in 50
questions do not prove "lossless". Simulated coverage of the 95 % interval (`tests/test_statistics.py`): 0.95 to 0.97
from 120 questions on; with fewer questions, or few flips, more. The questions count as a sample of such questions;
nothing is said of other kinds. A table holds many p-values: see `holm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

if TYPE_CHECKING:
    import pandas as pd

LOSSLESS, RISKY = -0.01, -0.03  # arXiv:2504.04823: up to 1 point lost is lossless, up to 3 fair, more is risky
LEVEL = 0.95
POWER = 0.8
MAX_SAMPLES_SAID = 1_000_000


@dataclass(frozen=True)
class Paired:
    """A difference from BF16 in accuracy (a fraction), its 95 % interval, and what flipped, in answers.

    `variance` is that of one question's difference (adjusted), from which a larger experiment can be planned.
    """

    delta: float
    low: float
    high: float
    p_value: float
    flips_lost: int
    flips_gained: int
    num_questions: int
    variance: float


def accuracy_stderr(by_question: Iterable[float]) -> float:
    """Standard error of the mean over questions, each the mean of its answers. NaN for a single question."""
    values = np.asarray(list(by_question), dtype=float)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def accuracy_interval(by_question: Iterable[float], level: float = LEVEL) -> tuple[float, float]:
    """The interval of an accuracy, clustered by question: normal, after adding two questions right and two wrong.

    With one seed: Agresti and Coull's "plus four". Open also where all answers are right.
    """
    values = np.concatenate([np.asarray(list(by_question), dtype=float), [0.0, 0.0, 1.0, 1.0]])
    half = float(ndtri((1 + level) / 2)) * values.std() / math.sqrt(len(values))
    return max(0.0, float(values.mean() - half)), min(1.0, float(values.mean() + half))


def paired_difference(samples: pd.DataFrame, bf16_samples: pd.DataFrame) -> Paired:
    """The difference of two tables of samples that answer the same questions under the same seeds (formula above).

    Raises: ValueError if they do not.
    """
    ours, theirs = _correct_by_answer(samples), _correct_by_answer(bf16_samples)
    if not ours.index.equals(theirs.index):
        only = ours.index.symmetric_difference(theirs.index)
        raise ValueError(
            f"{len(only)} answers have no counterpart, the first is (question, seed) = {only[0]}: a difference is "
            "taken on the same questions and seeds; run both with the same seeds and num_samples"
        )
    difference = ours - theirs
    per_question = difference.groupby(level="sample_id").mean().to_numpy()
    low, high, p_value, variance = _adjusted_normal(per_question)
    return Paired(
        delta=float(per_question.mean()),
        low=low,
        high=high,
        p_value=p_value,
        flips_lost=int((difference < 0).sum()),
        flips_gained=int((difference > 0).sum()),
        num_questions=len(per_question),
        variance=variance,
    )


def _correct_by_answer(samples: pd.DataFrame) -> pd.Series:
    return samples.set_index(["sample_id", "seed"])["correct"].astype(float).sort_index()


def _adjusted_normal(per_question: np.ndarray) -> tuple[float, float, float, float]:
    """(low, high, p, variance of one question) with one question lost and one gained added."""
    values = np.concatenate([per_question, [-1.0, 1.0]])
    mean, variance = float(values.mean()), float(values.var())
    stderr = math.sqrt(variance / len(values))
    half = float(ndtri((1 + LEVEL) / 2)) * stderr
    p_value = 2 * float(ndtr(-abs(mean) / stderr))
    return max(-1.0, mean - half), min(1.0, mean + half), min(1.0, p_value), variance


def verdict(paired: Paired) -> str:
    """ "lossless", "fair" or "risky" where the whole interval says so, else how many questions would settle it.

    lossless: low >= -0.01.   fair: -0.03 <= low and high < -0.01.   risky: high < -0.03.
    """
    if paired.low >= LOSSLESS:
        return "lossless"
    if paired.high < RISKY:
        return "risky"
    if paired.low >= RISKY and paired.high < LOSSLESS:
        return "fair"
    needed = samples_needed(paired)
    if needed > MAX_SAMPLES_SAID:
        return f"not resolved, needs more than {MAX_SAMPLES_SAID:,} samples"
    return f"not resolved, needs about {needed:,} samples"


def samples_needed(paired: Paired) -> int:
    """Questions, under as many seeds as now, after which the verdict is reached with a probability of 0.8.

        N = variance * ((z_0.975 + z_0.8) / distance)^2,  rounded up to two digits

    `distance`: from the observed delta, taken as the truth, to the nearest limit (-0.01, -0.03) that the interval must
    clear. So it is as uncertain as delta is, and grows without bound where delta lies on a limit.
    """
    distance = min(abs(paired.delta - limit) for limit in (LOSSLESS, RISKY))
    if paired.delta > LOSSLESS:
        distance = paired.delta - LOSSLESS
    z = float(ndtri((1 + LEVEL) / 2) + ndtri(POWER))
    needed = paired.variance * (z / max(distance, 1e-6)) ** 2
    return _two_digits_up(max(needed, paired.num_questions + 1))


def _two_digits_up(value: float) -> int:
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def holm(p_values: Iterable[float | None]) -> list[float]:
    """Holm's adjusted p-values: what is below 0.05 may be said although many were looked at. None and NaN stay NaN."""
    # pd.NA, which a nullable column gives, compares to neither.
    values = np.array([float(p) if isinstance(p, (int, float)) else math.nan for p in p_values], dtype=float)
    adjusted = np.full(len(values), math.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return [float(p) for p in adjusted]


def cell_record(
    axes: Mapping[str, Any],
    samples: pd.DataFrame,
    bf16_samples: pd.DataFrame | None,
    *,
    seconds: float | None,
    peak_memory_gib: float | None,
    engine: str,
) -> dict[str, Any]:
    """The row of a cell that was measured: `axes` (records.cell_axes), what its samples say, how it differs from BF16.

    `bf16_samples` None: BF16's own cell, or a cell whose BF16 is not there ("no baseline" is then its verdict).
    Raises: ValueError if there are not num_samples questions under num_seeds seeds each.
    """
    by_question = samples.groupby("sample_id", sort=False)["correct"]
    expected = (axes["num_samples"], axes["num_seeds"])
    if len(by_question) != expected[0] or not (by_question.size() == expected[1]).all():
        raise ValueError(
            f"{len(samples)} samples of {len(by_question)} questions: the cell asks {expected[0]} questions under "
            f"{expected[1]} seeds each; run it again, the missing ones are then generated"
        )
    stderr = accuracy_stderr(by_question.mean())
    return {
        **axes,
        "accuracy": float(samples["correct"].mean()),
        "stderr": None if math.isnan(stderr) else stderr,
        **_difference(axes, samples, bf16_samples),
        "thinking_tokens_mean": float(samples["thinking_tokens"].mean()),
        "output_tokens_mean": float(samples["output_tokens"].mean()),
        "output_tokens_p90": float(samples["output_tokens"].astype(float).quantile(0.9)),
        "truncated_rate": float(samples["truncated"].mean()),
        "unparsed_rate": float(samples["unparsed"].mean()),
        "loop_rate": float(samples["looped"].mean()),
        "seconds": seconds,
        "peak_memory_gib": peak_memory_gib,
        "engine": engine,
        "status": "done",
        "source": "measured",
    }


def _difference(axes: Mapping[str, Any], samples: pd.DataFrame, bf16_samples: pd.DataFrame | None) -> dict[str, Any]:
    if axes["method"] == "bf16":
        return {"verdict": ""}
    if bf16_samples is None:
        return {"verdict": "no baseline"}
    paired = paired_difference(samples, bf16_samples)
    return {
        "delta_vs_bf16": paired.delta,
        "delta_low": paired.low,
        "delta_high": paired.high,
        "p_value": paired.p_value,
        "verdict": verdict(paired),
        "flips_lost": paired.flips_lost,
        "flips_gained": paired.flips_gained,
    }
