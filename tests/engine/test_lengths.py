"""Thinking lengths and repetition, on token ids."""

from __future__ import annotations

import random

import pytest

from suite.engine.lengths import is_looped, thinking_length

THINK, END = 5, 6


@pytest.mark.parametrize(
    ("prompt", "output", "expected"),
    [
        ([1, THINK], [7, 8, END, 9, END, 9], 2),  # up to the first END
        ([1, THINK], [END, 9], 0),
        ([1, THINK], [7, 8, 9], 3),  # thinking never ended
        ([1, THINK, END], [7, 8, 9], 0),  # ended in the prompt already
        ([1], [7, 8, 9], 0),  # a model that does not think
        ([1], [THINK, 7, END, 9], 2),  # opened by the model itself
        ([1], [THINK, 7], 2),
        ([1, THINK], [], 0),
    ],
)
def test_thinking_length(prompt: list[int], output: list[int], expected: int) -> None:
    """Tokens before the first END, all of them if it is missing, none without thinking."""
    assert thinking_length(prompt, output, THINK, END) == expected


def test_thinking_length_without_tags() -> None:
    """A tokenizer without the tags: nothing is thinking."""
    assert thinking_length([1, 2], [7, 8], None, None) == 0


@pytest.mark.parametrize("period", [1, 2, 7, 31, 128, 512])
def test_loops_are_found(period: int) -> None:
    """A tail of four periods is a loop, even if the last one is cut anywhere; its length is all that is needed."""
    rng = random.Random(period)
    block = [rng.randrange(1000) for _ in range(period)]
    head = [rng.randrange(1000) for _ in range(300)]
    assert is_looped(head + block * max(4, -(-64 // period)))
    assert is_looped(head + block * max(5, 1 + -(-64 // period)) + block[: period // 3])


def test_what_is_no_loop() -> None:
    """Random text, three periods, a short run, a loop that ended, one token changed, nothing."""
    rng = random.Random(1)
    text = [rng.randrange(50) for _ in range(3000)]
    block = text[:100]
    changed = block * 4
    changed[150] += 1
    for tokens in (text, text + block * 3, text + [7] * 40, block * 6 + text[:200], text + changed, []):
        assert not is_looped(tokens)
    assert not is_looped(text[:513] * 4)  # longer than the longest period
