"""Serving: what goes into the engine and what comes out. Light: no torch, no vLLM.

`engine.Engine` serves in this process, `pool.EnginePool` serves in worker processes and is what the runner uses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One question to one sample. Lengths are in tokens.

    `prompt` is the user's message; the engine applies the chat template. `temperature` 0 is greedy.
    `thinking_min` and `thinking_max` bound the tokens before the end of thinking (None: unbounded), see `budget`.
    """

    key: str
    prompt: str
    seed: int
    max_tokens: int
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    thinking_min: int | None = None
    thinking_max: int | None = None
    answer_cue: str = "</think>\n\n**Final Answer**\n\\boxed{"
    wait: str = "Wait"


@dataclass(frozen=True)
class Completion:
    """What the model wrote for the request `key`. Lengths are in tokens.

    - `text`: everything after the prompt but the closing end-of-sequence token; tags such as </think> stay visible.
    - `thinking_tokens`: those before </think>; all of them if thinking never ended, none if the model does not think.
    - `answer_tokens`: those after </think> that the model wrote itself: neither a forced answer cue nor the closing
      end-of-sequence token counts.
    - `output_tokens`: all that was generated, so both of these, </think>, the forced cue and the end-of-sequence token.
    - `finish_reason`: "stop" (the model ended) or "length" (truncated).
    - `forced_waits`: the "Wait"s begun below the minimum of thinking.
    - `looped`: truncated, and the tail repeats itself exactly.
    """

    key: str
    text: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int
    output_tokens: int
    finish_reason: str
    forced_waits: int
    looped: bool


def request_seed(run_seed: int, benchmark: str, sample_id: str) -> int:
    """Seed of one sample: a hash of what names it, so neither order nor batch bears on it. 0 <= seed < 2**31."""
    digest = hashlib.sha256(f"{run_seed}\x1f{benchmark}\x1f{sample_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
