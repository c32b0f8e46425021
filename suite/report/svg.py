"""Drawing primitives: elements as strings, scales, ticks, axes. Colours are css classes, for light and dark alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH = 330  # of every panel, in its own units; the page scales it


@dataclass(frozen=True)
class Scale:
    """A linear map from values to positions."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)

    def clamp(self, value: float) -> float:
        """Position of a value, kept inside the scale."""
        return self(min(max(value, self.low), self.high))


def element(name: str, content: str = "", /, **attributes: str | float) -> str:
    """An element. `css` stands for class, `_` in a name for `-`; numbers keep one digit, content is taken as it is."""
    shown = "".join(
        f' {"class" if key == "css" else key.replace("_", "-")}="{_value(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{shown}>{content}</{name}>" if content else f"<{name}{shown}/>"


def text(content: str, x: float, y: float, css: str = "", anchor: str = "start") -> str:
    """A line of text."""
    return element("text", escape(content), x=x, y=y, css=f"{css} {anchor}".strip())


def tip(content: str) -> str:
    """What a pointer that rests on the element is shown, and a screen reader reads."""
    return element("title", escape(content))


def path(points: Sequence[tuple[float, float]], closed: bool = False) -> str:
    """The `d` of a polyline."""
    return "M" + "L".join(f"{_value(x)} {_value(y)}" for x, y in points) + ("Z" if closed else "")


def drawing(title: str, description: str, height: float, content: str) -> str:
    """A panel that stands for itself: scales with the page, has a title and a description."""
    label = f"{title}. {description}" if description else title
    return element("svg", content, viewBox=f"0 0 {WIDTH} {_value(height)}", role="img", aria_label=label)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) within [low, high], at most `most` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** floor(log10(rough))
    step = next(power * m for m in (1, 2, 5, 10, 20) if (high - low) / (power * m) <= most - 1 + 1e-9)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def x_axis(scale: Scale, top: float, bottom: float, label: Callable[[float], str], title: str) -> str:
    """Vertical grid lines with their numbers below, and what they count."""
    parts = []
    for value in ticks(scale.low, scale.high):
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, css="grid"))
        parts.append(text(label(value), x, bottom + 14, "tick", "middle"))
    parts.append(text(title, (scale.start + scale.stop) / 2, bottom + 29, "axis", "middle"))
    return "".join(parts)


def y_axis(scale: Scale, left: float, right: float, label: Callable[[float], str]) -> str:
    """Horizontal grid lines with their numbers at the left."""
    parts = []
    for value in ticks(scale.low, scale.high):
        y = scale(value)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, css="grid"))
        parts.append(text(label(value), left - 6, y + 3.5, "tick", "end"))
    return "".join(parts)


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.1f}".removesuffix(".0")
