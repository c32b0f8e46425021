"""What a sequence of output tokens consists of: thinking, answer, repetition. Pure functions of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def thinking_length(prompt: Sequence[int], output: Sequence[int], think: int | None, end: int | None) -> int:
    """Output tokens before the first END, without it; all of them if thinking was opened and never ended.

    Thinking is open if the last THINK of the prompt comes after its last END, or if the output writes THINK or END.
    A model without an END token, or one that does not think, has 0.
    """
    if end is None:
        return 0
    if end in output:
        return list(output).index(end)
    return len(output) if think is not None and (_is_open(prompt, think, end) or think in output) else 0


def _is_open(prompt: Sequence[int], think: int, end: int) -> bool:
    last = {token: i for i, token in enumerate(prompt) if token in (think, end)}
    return last.get(think, -1) > last.get(end, -1)


def is_looped(tokens: Sequence[int], max_period: int = 512, min_repeats: int = 4, min_span: int = 64) -> bool:
    """Whether the tail repeats itself exactly: a period p <= max_period over max(min_repeats * p, min_span) tokens.

    The span keeps short runs (the zeros of 10000, a row of dots) from counting. Nearly equal repetitions do not count.
    """
    ids = np.asarray(tokens)
    for period in range(1, max_period + 1):
        span = max(min_repeats * period, min_span)
        if span > len(ids):
            return False
        if ids[-1] == ids[-1 - period] and np.array_equal(ids[-span + period :], ids[-span:-period]):
            return True
    return False
