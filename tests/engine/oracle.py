"""What the engine should write: transformers' logits in float32, and budgets as changes of plain probabilities.

Shares nothing with the engine but the random numbers: vLLM draws one integer per token from the request's generator and
turns it into Gumbel noise; that one operation is vLLM's own, since noise has no independent reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from suite.engine import Request


class Oracle:
    """Writes one request's tokens, one at a time."""

    def __init__(self, model_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.end, self.eos = self.ids("</think>")[0], self.tokenizer.eos_token_id

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def write(self, request: Request) -> str:
        """The text of the completion, without its end-of-sequence token."""
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": request.prompt}], add_generation_prompt=True, return_dict=False
        )
        generator = torch.Generator().manual_seed(request.seed)
        output: list[int] = []
        queue: list[int] = []  # forced tokens that are still to come
        thinking, cache = True, None
        while len(output) < request.max_tokens and output[-1:] != [self.eos]:
            step = torch.tensor([prompt if cache is None else output[-1:]])
            with torch.no_grad():
                result = self.model(step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            draw = int(torch.randint(0, 2**31, (1,), generator=generator))  # forced tokens take their turn too
            if thinking and len(output) == request.thinking_max:
                queue, thinking = self.ids(request.answer_cue), False
            if queue:
                output.append(queue.pop(0))
                continue
            token = self.sample(result.logits[0, -1], request, len(output) if thinking else None, draw)
            output.append(token)
            budgeted = request.thinking_min is not None or request.thinking_max is not None
            if token == self.end and budgeted:
                thinking = False
            wait = self.ids(request.wait)
            if thinking and token == wait[0] and len(output) <= (request.thinking_min or 0):
                queue = wait[1:]
        return self.tokenizer.decode(output[:-1] if output[-1] == self.eos else output)

    def sample(self, logits: torch.Tensor, request: Request, thought: int | None, draw: int) -> int:
        """The next token; `thought` counts the tokens of thinking so far, None once it has ended."""
        greedy = request.temperature == 0
        chance = torch.softmax(logits.double() / (1.0 if greedy else request.temperature), dim=0)
        if thought is not None and (request.thinking_min is not None or request.thinking_max is not None):
            sources, target = ([self.end, self.eos], self.ids(request.wait)[0])
            if thought >= (request.thinking_min or 0):
                sources, target = [self.eos], self.end
            if greedy:
                return target if int(chance.argmax()) in sources else int(chance.argmax())
            chance[target] += chance[sources].sum()
            chance[sources] = 0.0
        if greedy:
            return int(chance.argmax())
        kept = self.filtered(chance, request.top_k, request.top_p)
        noisy = torch.ops._C.fused_gumbel_argmax(kept.log().float()[None], torch.tensor([draw]))
        return int(noisy[0])

    def filtered(self, chance: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
        """Top-k, then the smallest set of tokens that holds `top_p` of what is left."""
        order = chance.argsort(descending=True)
        if top_k is not None:
            chance = chance.clone()
            chance[order[top_k:]] = 0.0
        chance = chance / chance.sum()
        before = chance[order].cumsum(0) - chance[order]
        kept = torch.zeros_like(chance)
        kept[order[before < top_p]] = chance[order[before < top_p]]
        return kept
