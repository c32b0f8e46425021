"""The intervals a report adds to those in the records: of one accuracy, and of means over benchmarks. 95% throughout.

One accuracy: `statistics.accuracy_interval` (two questions right and two wrong added), from the record alone. With n
questions, mean p and standard error s over them,

    sum(x**2) = n p**2 + n (n - 1) s**2,   m = (n p + 2) / (n + 4),   v = (sum(x**2) + 2) / (n + 4) - m**2
    interval: m -+ z sqrt(v / (n + 4))

A mean of k independent estimates: the distances from estimate to bound add as squares, for each side by itself,

    low = mean(v) - sqrt(sum((v - v_low)**2)) / k

which for symmetric intervals is the usual one and keeps the asymmetry of the others. Benchmarks are disjoint sets of
questions, so their estimates are independent given the model; the mean says nothing of benchmarks that were not run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from suite.statistics import LOSSLESS, RISKY

Z = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% bounds, as fractions."""

    value: float
    low: float
    high: float

    @property
    def zone(self) -> str:
        """What the whole interval of a difference says: lossless, fair, risky, or not resolved."""
        if self.low >= LOSSLESS:
            return "lossless"
        if self.high < RISKY:
            return "risky"
        return "fair" if self.low >= RISKY and self.high < LOSSLESS else "not resolved"


def accuracy_interval(accuracy: float, stderr: float, num_questions: int) -> Interval:
    """Interval of an accuracy from its clustered standard error; open also where every answer is right."""
    n = num_questions
    squares = n * accuracy**2 + n * (n - 1) * stderr**2
    mean = (n * accuracy + 2) / (n + 4)
    half = Z * math.sqrt(((squares + 2) / (n + 4) - mean**2) / (n + 4))
    return Interval(accuracy, max(0.0, mean - half), min(1.0, mean + half))


def mean_interval(intervals: Sequence[Interval | None]) -> Interval | None:
    """Interval of the mean of independent estimates; None if there are none or one of them is missing."""
    known = [i for i in intervals if i is not None]
    if not known or len(known) != len(intervals):
        return None
    k = len(known)
    value = math.fsum(i.value for i in known) / k
    below = math.sqrt(math.fsum((i.value - i.low) ** 2 for i in known)) / k
    above = math.sqrt(math.fsum((i.high - i.value) ** 2 for i in known)) / k
    return Interval(value, value - below, value + above)
