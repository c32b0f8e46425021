"""Numbers as a report writes them: accuracies in points (per cent), a true minus sign, one digit after the point."""

from collections.abc import Sequence

from suite.report.intervals import Interval

MARKS = {"lossless": "✓", "fair": "~", "risky": "✗", "not resolved": "?", "no baseline": "?"}
NOTHING = "–"


def points(fraction: float | None) -> str:
    """0.8421 -> "84.2"."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """-0.031 -> "−3.1"; what rounds to zero has no sign."""
    value = round(100 * fraction, 1)
    return "0.0" if value == 0 else f"{'+' if value > 0 else '−'}{abs(value):.1f}"


def change(interval: Interval) -> str:
    """A difference with its bounds: "−3.1 [−5.2, −1.0]"."""
    return f"{signed(interval.value)} [{signed(interval.low)}, {signed(interval.high)}]"


def bounds(interval: Interval | None) -> str:
    """The bounds of an accuracy: "[81.0, 86.9]"."""
    return "" if interval is None else f"[{points(interval.low)}, {points(interval.high)}]"


def lost(number: int) -> str:
    """Answers lost: 3 -> "−3"."""
    return f"−{number}" if number else "0"


def count(value: float | None) -> str:
    """1234.5 -> "1,234"; None -> a dash."""
    return NOTHING if value is None else f"{value:,.0f}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def plural(number: int, noun: str) -> str:
    """A number with its noun: "1 cell", "2 cells"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def kind(verdict: str) -> str:
    """A verdict without its number: "not resolved, needs about 900 samples" -> "not resolved"."""
    return verdict.split(",")[0]


def duration(seconds: float) -> str:
    """95.2 -> "1 min 35 s"."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"
