"""Budget forcing: how long a model may think, and how long it must. Pure rules; `processor` applies them to logits.

n is the number of output tokens, END the token </think>, `wait` and `cue` token strings; `cue` starts with END.

    n < min, thinking     the probability of END and of every end-of-sequence token moves onto wait[0], before top-k and
                          top-p; with logits l at temperature T: l'[wait[0]] = T * logsumexp(l[wait[0], END, EOS] / T).
                          That is: sample, and write `wait` where thinking would have ended. Its rest is forced.
    min <= n < max        the same move from EOS onto END: thinking ends, the output does not.
    n == max, thinking    `cue` is forced: END, then the rest. max = 0 forces it directly after the prompt.
    thinking ended        nothing, but for the rest of a forced cue.

Every token before END counts as thinking: forced ones too, and a <think> that the model writes itself. `max` wins over
a `wait` that is still being written.

The state is a function of the output tokens alone (END at index max can only have been forced, since an earlier END
would have ended thinking), so preemption, recomputation and changes of the batch cannot disturb it. The price: below
the minimum a "Wait" of the model's own looks like a forced one. It is completed and counted like one.

Source: budget forcing of s1 (arXiv:2501.19393). Deviation: there END is suppressed and "Wait" appended in a new round
of generation; here one round does both, and the minimum is a number of tokens instead of a number of "Wait"s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Phase(Enum):
    """What the rules do to the next token's distribution."""

    FREE = "free"
    WAIT_FOR_END = "wait for end"  # END and EOS become wait[0]
    END_FOR_EOS = "end for eos"  # EOS becomes END


@dataclass(frozen=True)
class BudgetRule:
    """One request's budget, in tokens and token ids. `stop` are the end-of-sequence tokens."""

    min: int | None
    max: int | None
    wait: tuple[int, ...]
    cue: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def end(self) -> int:
        """The token that ends thinking."""
        return self.cue[0]

    def __post_init__(self) -> None:
        low, high = self.min or 0, self.max
        if low < 0 or (high is not None and high < low):
            raise ValueError(f"thinking budget min={self.min}, max={self.max}: rule: 0 <= min <= max")
        if not self.cue:
            raise ValueError("the answer cue is empty: rule: it starts with </think>")
        if low and (not self.wait or self.wait[0] in (self.end, *self.stop)):
            raise ValueError(f"wait={self.wait}: rule: at least one token, and none that ends thinking or the output")

    def to_extra_args(self) -> dict[str, Any]:
        """The rule as plain data, for `SamplingParams.extra_args`."""
        return {EXTRA_ARGS_KEY: (self.min, self.max, self.wait, self.cue, self.stop)}

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> BudgetRule | None:
        """The rule that a request carries, or None."""
        data = (extra_args or {}).get(EXTRA_ARGS_KEY)
        return None if data is None else cls(*data)


EXTRA_ARGS_KEY = "suite_thinking_budget"


class BudgetState:
    """Follows one request's output. `output` may be a live list that the engine appends to; each token is read once."""

    def __init__(self, rule: BudgetRule, output: Sequence[int]) -> None:
        self.rule = rule
        self.output = output
        self.end_at: int | None = None
        self.waits = 0
        self._wait_at: int | None = None  # start of the last wait begun below the minimum
        self._read = 0

    def next(self) -> Phase | int:
        """What happens to the next token: a phase, or the id of a forced token."""
        self._catch_up()
        rule, n = self.rule, self._read
        if self.end_at is not None:
            written = n - self.end_at
            return rule.cue[written] if self.end_at == rule.max and written < len(rule.cue) else Phase.FREE
        if n == rule.max:
            return rule.end
        if self._wait_at is not None and self._in_wait(n):
            return rule.wait[n - self._wait_at]
        return Phase.WAIT_FOR_END if n < (rule.min or 0) else Phase.END_FOR_EOS

    def _catch_up(self) -> None:
        rule = self.rule
        for i in range(self._read, len(self.output)):
            token = self.output[i]
            if self.end_at is not None:
                break
            if token == rule.end:
                self.end_at = i
            elif i < (rule.min or 0) and token == rule.wait[0] and not self._in_wait(i):
                self._wait_at, self.waits = i, self.waits + 1
        self._read = len(self.output)

    def _in_wait(self, i: int) -> bool:
        """Whether token i belongs to a wait that began before it."""
        return self._wait_at is not None and i - self._wait_at < len(self.rule.wait)
