"""The logits processor on plain tensors: probabilities move exactly, and only in the rows of their owners."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from suite.engine.budget import BudgetRule

EOS, END, WAIT, VOCABULARY = 0, 1, 2, 30
CUE = (END, 7, 8)

pytestmark = pytest.mark.engine


def processor_with(*rows: tuple[BudgetRule | None, float, list[int]]):  # type: ignore[no-untyped-def]
    """A processor whose batch has these (rule, temperature, output so far)."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from suite.engine.processor import ThinkingBudgetProcessor

    processor = ThinkingBudgetProcessor(SimpleNamespace(), torch.device("cpu"), False)
    added = [
        (i, SamplingParams(temperature=temperature, extra_args=rule and rule.to_extra_args()), [], output)
        for i, (rule, temperature, output) in enumerate(rows)
    ]
    processor.update_state(BatchUpdate(len(rows), removed=[], added=added, moved=[]))
    return processor


def logits(rows: int) -> torch.Tensor:
    """Logits in which no token is negligible."""
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))


def chances(row: torch.Tensor, temperature: float) -> torch.Tensor:
    """The distribution that is sampled from."""
    return torch.softmax(row.double() / temperature, dim=0)


@pytest.mark.parametrize("temperature", [0.1, 0.6, 1.0, 1.7])
@pytest.mark.parametrize(
    ("rule", "sources", "target"),
    [
        (BudgetRule(5, None, (WAIT,), CUE, (EOS, 9)), [END, EOS, 9], WAIT),
        (BudgetRule(2, 50, (WAIT,), CUE, (EOS, 9)), [EOS, 9], END),
        (BudgetRule(None, 50, (WAIT,), CUE, (EOS, 9)), [EOS, 9], END),
    ],
)
def test_probability_moves_exactly(rule: BudgetRule, sources: list[int], target: int, temperature: float) -> None:
    """At any temperature: the law of sampling first and then replacing the sources by the target."""
    before = logits(1)
    after = processor_with((rule, temperature, [20, 21, 22])).apply(before.clone())
    expected = chances(before[0], temperature)
    expected[target] += expected[sources].sum()
    expected[sources] = 0.0
    torch.testing.assert_close(chances(after[0], temperature), expected, atol=1e-7, rtol=1e-5)


def test_greedy_replaces_the_likeliest() -> None:
    """Greedy: the likeliest token first, replaced afterwards; likelihoods of several are not added up."""
    rule = BudgetRule(5, None, (WAIT,), CUE, (EOS,))
    row = torch.full((1, VOCABULARY), -9.0)
    row[0, [END, EOS, WAIT, 20]] = torch.tensor([1.0, 0.9, 0.8, 1.1])
    assert int(processor_with((rule, 0.0, [])).apply(row.clone()).argmax()) == 20
    row[0, END] = 1.2
    assert int(processor_with((rule, 0.0, [])).apply(row.clone()).argmax()) == WAIT


def test_forced_tokens_are_certain() -> None:
    """The cue from the maximum on, one token at a time."""
    rule = BudgetRule(None, 2, (WAIT,), CUE, (EOS,))
    outputs = [[20, 21], [20, 21, END], [20, 21, END, 7], [20, 21, *CUE], [20, END, 7]]
    after = processor_with(*[(rule, 0.6, output) for output in outputs]).apply(logits(5))
    assert [torch.softmax(row, 0).max().item() for row in after[:3]] == [1.0, 1.0, 1.0]
    assert after[:3].argmax(dim=1).tolist() == list(CUE)
    torch.testing.assert_close(after[3:], logits(5)[3:], atol=0, rtol=0)


def test_other_rows_are_untouched_and_moves_are_followed() -> None:
    """Rows without a budget keep every bit; a request that changes its row takes its state along."""
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    rule = BudgetRule(None, 0, (WAIT,), CUE, (EOS,))
    processor = processor_with((None, 0.6, []), (rule, 0.6, []), (None, 1.0, []))
    after = processor.apply(logits(3))
    torch.testing.assert_close(after[[0, 2]], logits(3)[[0, 2]], atol=0, rtol=0)
    assert after[1].isneginf().sum() == VOCABULARY - 1
    processor.update_state(BatchUpdate(3, removed=[], added=[], moved=[(1, 2, MoveDirectionality.SWAP)]))
    assert processor.apply(logits(3)).isneginf().sum(dim=1).tolist() == [0, 0, VOCABULARY - 1]
    processor.update_state(BatchUpdate(2, removed=[2], added=[], moved=[]))
    assert processor.requests == {}


def test_wrong_budgets_are_refused_at_admission() -> None:
    """The engine validates what a request carries before it enters the batch."""
    from vllm import SamplingParams

    from suite.engine.processor import ThinkingBudgetProcessor

    ThinkingBudgetProcessor.validate_params(SamplingParams())
    wrong = {"suite_thinking_budget": (5, 4, (WAIT,), CUE, (EOS,))}
    with pytest.raises(ValueError, match="min <= max"):
        ThinkingBudgetProcessor.validate_params(SamplingParams(extra_args=wrong))
