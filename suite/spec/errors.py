"""What is wrong with a spec, in words that say how to mend it.

A `RuleError` is raised where a rule is known (a model's validator, a parser); `load` adds where in which file it
happened and collects every `Problem` of the file into one `SpecError`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class RuleError(ValueError):
    """A value breaks a rule. `key` is the offending key below the validated object, "" for the object itself."""

    def __init__(self, rule: str, hint: str = "", key: str = "") -> None:
        super().__init__(f"{rule}; {hint}" if hint else rule)
        self.rule, self.hint, self.key = rule, hint, key


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a spec. `value` is written as TOML, None where there is no value to show (a missing key)."""

    file: str
    key_path: str
    value: str | None
    rule: str
    hint: str

    def __str__(self) -> str:
        shown = self.key_path if self.value is None else f"{self.key_path} = {self.value}"
        lines = [f"{self.file}: {shown}", f"  {self.rule}"] + ([f"  {self.hint}"] if self.hint else [])
        return "\n".join(lines)


class SpecError(ValueError):
    """Everything that is wrong with one spec, all at once: `problems`, and one paragraph a problem as text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n\n".join(str(problem) for problem in self.problems))


def toml_text(value: Any) -> str:
    """A value as it would be written in TOML, on one line; long ones are cut."""
    text = _toml(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)


def nearest(word: str, known: Iterable[str], quote: bool = True) -> str:
    """A hint that names the nearest known word, or all where none is near. `quote`: they are values, not keys."""
    words = sorted(known)
    show = (lambda w: json.dumps(w, ensure_ascii=False)) if quote else (lambda w: w)
    folded = {w.casefold(): w for w in words}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {show(folded[close[0]])}?"
    if not words:
        return "none is known here"
    more = f" and {len(words) - 20} more" if len(words) > 20 else ""
    return f"known: {', '.join(show(w) for w in words[:20])}{more}"
