"""The rules of budget forcing, without an engine: against a loop that spells them out round by round."""

from __future__ import annotations

import random

import pytest

from suite.engine.budget import BudgetRule, BudgetState, Phase

END, EOS, WAIT, PLAIN = 1, 0, 2, 9
CUE = (END, 7, 8)


def rule(low: int | None = None, high: int | None = None, wait: tuple[int, ...] = (WAIT,)) -> BudgetRule:
    """A budget over the tokens above."""
    return BudgetRule(low, high, wait, CUE, (EOS,))


def driven(budget: BudgetRule, proposals: list[int]) -> list[int]:
    """What comes out if the model wants to write `proposals` and the state has the last word."""
    output: list[int] = []
    state = BudgetState(budget, output)
    for wanted in proposals:
        match state.next():
            case int(forced):
                token = forced
            case Phase.WAIT_FOR_END if wanted in (END, EOS):
                token = budget.wait[0]
            case Phase.END_FOR_EOS if wanted == EOS:
                token = END
            case _:
                token = wanted
        output.append(token)
        if token == EOS:
            break
    return output


def by_rounds(budget: BudgetRule, proposals: list[int]) -> list[int]:
    """The same by rounds: think until END; append `wait` and think on if that was too early; cut at the maximum."""
    wanted = iter(proposals)
    output: list[int] = []

    def write(tokens: tuple[int, ...]) -> None:
        for token in tokens:
            if len(output) < len(proposals):
                next(wanted)
                output.append(token)

    low, high = budget.min or 0, budget.max
    while len(output) < len(proposals):
        if high is not None and len(output) >= high:
            del output[high:]  # a wait may have run over it
            wanted = iter(proposals[high:])
            write(budget.cue)
            break
        token = next(wanted)
        if token in (END, EOS, budget.wait[0]) and len(output) < low:
            output.append(budget.wait[0])
            write(budget.wait[1:])
        elif token in (END, EOS):
            output.append(END)
            break
        else:
            output.append(token)
    for token in wanted:
        output.append(token)
        if token == EOS:
            break
    return output


@pytest.mark.parametrize("seed", range(300))
def test_state_equals_rounds(seed: int) -> None:
    """Any budget, any proposals: the state machine and the spelled-out rounds write the same."""
    rng = random.Random(seed)
    low, high = sorted(rng.sample(range(40), 2))
    wait = tuple([WAIT, 3, 4, WAIT][: rng.randint(1, 4)])
    budget = rule(rng.choice([None, low]), rng.choice([None, high]), wait)
    proposals = [rng.choice([END, EOS, WAIT, 3, *[PLAIN] * 8]) for _ in range(rng.randint(1, 80))]
    assert driven(budget, proposals) == by_rounds(budget, proposals)


def test_state_is_a_function_of_the_output() -> None:
    """A state made anew from the output so far (after a preemption, say) agrees with one that saw every step."""
    rng = random.Random(0)
    budget = rule(10, 25, (WAIT, 3, 4))
    output: list[int] = []
    live = BudgetState(budget, output)
    for _ in range(60):
        fresh = BudgetState(budget, list(output))
        step = live.next()
        assert fresh.next() == step
        assert fresh.waits == live.waits
        output.append(step if isinstance(step, int) else rng.choice([WAIT, PLAIN, PLAIN]))


def test_max_zero_forces_the_cue_at_once() -> None:
    """No thinking at all: the cue comes directly after the prompt, then the model is free."""
    assert driven(rule(high=0), [PLAIN] * 5) == [*CUE, PLAIN, PLAIN]


def test_end_at_the_maximum_is_the_forced_one() -> None:
    """An END one token before the maximum is the model's own and brings no cue."""
    assert driven(rule(high=3), [PLAIN, PLAIN, END, PLAIN, EOS]) == [PLAIN, PLAIN, END, PLAIN, EOS]
    assert driven(rule(high=2), [PLAIN, PLAIN, END, PLAIN, PLAIN, EOS]) == [PLAIN, PLAIN, *CUE, EOS]


def test_waits_are_counted_once_each() -> None:
    """A wait of several tokens counts once, whichever of its tokens look like its first."""
    output = [WAIT, 3, WAIT, PLAIN, WAIT, 3, WAIT, END]
    state = BudgetState(rule(8, None, (WAIT, 3, WAIT)), output)
    state.next()
    assert state.waits == 2


def test_extra_args_round_trip() -> None:
    """What travels in the sampling parameters is the rule."""
    budget = rule(3, 9, (WAIT, 3))
    assert BudgetRule.from_extra_args(budget.to_extra_args()) == budget
    assert BudgetRule.from_extra_args(None) is None


@pytest.mark.parametrize(
    ("low", "high", "wait", "message"),
    [
        (5, 4, (WAIT,), "min <= max"),
        (-1, None, (WAIT,), "0 <= min"),
        (5, None, (), "at least one token"),
        (5, None, (END,), "none that ends"),
    ],
)
def test_impossible_budgets_are_refused(low: int, high: int | None, wait: tuple[int, ...], message: str) -> None:
    """The error names the rule."""
    with pytest.raises(ValueError, match=message):
        rule(low, high, wait)
