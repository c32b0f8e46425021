"""Budget forcing inside vLLM: one V1 logits processor that applies the rules of `budget` to requests that carry one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from suite.engine.budget import BudgetRule, BudgetState, Phase

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

GREEDY_BELOW = 1e-5  # vLLM samples greedily below this temperature


class ThinkingBudgetProcessor(LogitsProcessor):
    """Holds the state of each request in the batch that has a budget; without any, a step costs one comparison."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.requests: dict[int, tuple[BudgetState, float]] = {}  # row -> (state, temperature)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises: ValueError for a budget that breaks a rule."""
        BudgetRule.from_extra_args(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """Moving and forcing change greedy sampling too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Rows come, go and move."""
        process_dict_updates(self.requests, batch_update, _new_request)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Change `logits` [batch, vocab] in place, before temperature, top-k and top-p."""
        if not self.requests:
            return logits
        forced: list[tuple[int, int]] = []
        moves: dict[tuple[tuple[int, ...], int], list[tuple[int, float]]] = {}  # (from, onto) -> [(row, temperature)]
        for row, (state, temperature) in self.requests.items():
            step, rule = state.next(), state.rule
            if isinstance(step, int):
                forced.append((row, step))
            elif step is Phase.WAIT_FOR_END:
                moves.setdefault(((rule.end, *rule.stop), rule.wait[0]), []).append((row, temperature))
            elif step is Phase.END_FOR_EOS and rule.stop:
                moves.setdefault((rule.stop, rule.end), []).append((row, temperature))
        for (sources, target), at in moves.items():
            self._move(logits, sources, target, at)
        if forced:
            rows, tokens = self._tensors(forced, torch.long, torch.long)
            logits[rows] = -torch.inf
            logits[rows, tokens] = 0.0
        return logits

    def _move(self, logits: torch.Tensor, sources: tuple[int, ...], target: int, at: list[tuple[int, float]]) -> None:
        """Move the probability of `sources` onto `target` in the rows of `at`, each with its temperature."""
        rows, temperature = self._tensors(at, torch.long, torch.float32)
        columns = torch.tensor([target, *sources], device=self.device)
        picked = logits[rows[:, None], columns]  # [rows, 1 + sources]
        scale = temperature.clamp(min=GREEDY_BELOW)
        merged = scale * torch.logsumexp(picked / scale[:, None], dim=1)
        logits[rows[:, None], columns[1:]] = -torch.inf
        logits[rows, target] = torch.where(temperature < GREEDY_BELOW, picked.amax(dim=1), merged)

    def _tensors(self, pairs: Sequence[tuple[float, ...]], *dtypes: torch.dtype) -> list[torch.Tensor]:
        columns = zip(*pairs, strict=True)
        return [torch.tensor(c, dtype=d, device=self.device) for c, d in zip(columns, dtypes, strict=True)]


def _new_request(
    params: SamplingParams, _prompt: list[int] | None, output: list[int]
) -> tuple[BudgetState, float] | None:
    rule = BudgetRule.from_extra_args(params.extra_args)
    return None if rule is None else (BudgetState(rule, output), params.temperature)
