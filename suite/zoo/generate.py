"""A small batched sampler for the zoo's own networks: dev accuracy while a recipe is developed, without an engine.

The key-value cache is a pair of tensors per layer, ``[rows, kv_heads, length, head_dim]``. Rows consume their prompts
in lock step with generation and are dropped when they end. Benchmarks are served by the engine, never by this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from suite.zoo.network import Block, Network, rope_tables
from suite.zoo.tokenizer import encode_tokens, token_ids
from suite.zoo.traces import END

# Called with a row's output so far and the token just drawn; returns the tokens to write instead (usually that one).
Steer = Callable[[int, list[int], int], list[int]]


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token per row of ``logits [rows, vocabulary]``; temperature 0 is greedy."""
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return order.gather(1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(1)


class _Cache:
    def __init__(self, network: Network, rows: int, length: int) -> None:
        shape, weight = network.shape, network.model.embed_tokens.weight
        size = (rows, shape.kv_heads, length, shape.head_dim)
        self.layers = [(weight.new_zeros(size), weight.new_zeros(size)) for _ in range(shape.layers)]

    def keep(self, rows: Tensor) -> None:
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]


def _attend(block: Block, x: Tensor, cache: tuple[Tensor, Tensor], positions: Tensor, length: int) -> Tensor:
    """Attention of one new token per row, ``x [rows, 1, hidden]``, at `positions` of the cache."""
    attention, shape = block.self_attn, block.self_attn.shape
    cos, sin = (table[:, None, None].to(x.dtype) for table in rope_tables(shape.head_dim, positions))
    q, k, v = attention.project(block.input_layernorm(x), cos, sin)
    keys, values = cache
    rows = torch.arange(len(x))
    keys[rows, :, positions], values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
    q = q.reshape(len(x), shape.kv_heads, -1, shape.head_dim)
    scores = (q @ keys[:, :, :length].mT).float() * shape.head_dim**-0.5
    future = torch.arange(length) > positions[:, None]
    weights = scores.masked_fill(future[:, None, None], -torch.inf).softmax(-1).to(x.dtype)
    return attention.o_proj((weights @ values[:, :, :length]).reshape(len(x), 1, -1))


def _step(network: Network, cache: _Cache, ids: Tensor, positions: Tensor) -> Tensor:
    x, length = network.model.embed_tokens(ids)[:, None], int(positions.max()) + 1
    for block, layer in zip(network.blocks, cache.layers, strict=True):
        x = x + _attend(block, x, layer, positions, length)
        x = x + block.mlp(block.post_attention_layernorm(x))
    return network.logits(network.model.norm(x))[:, 0]


@torch.inference_mode()
def generate(
    network: Network,
    prompts: Sequence[list[str]],
    *,
    max_tokens: int = 2048,
    temperature: float = 0.6,
    top_p: float = 0.95,
    seed: int = 0,
    forced: Steer | None = None,
) -> list[list[int]]:
    """Completions of tokenized prompts as ids, each ending with the end token unless cut at `max_tokens`.

    Prompts are consumed in lock step with generation (a row still inside its prompt ignores what was drawn).
    """
    end, generator = token_ids()[END], torch.Generator().manual_seed(seed)
    written = [encode_tokens(prompt) for prompt in prompts]
    starts = [len(ids) for ids in written]
    alive = torch.arange(len(prompts))
    cache = _Cache(network, len(prompts), max(starts) + max_tokens)
    position = 0
    while len(alive):
        ids = torch.tensor([written[row][position] for row in alive.tolist()])
        logits = _step(network, cache, ids, torch.full((len(alive),), position))
        drawn = sample(logits, temperature, top_p, generator).tolist()
        position += 1
        keep = []
        for i, row in enumerate(alive.tolist()):
            if len(written[row]) == position:
                tokens = forced(row, written[row][starts[row] :], drawn[i]) if forced else [drawn[i]]
                written[row].extend(tokens)
            last = len(written[row]) - 1 == position and written[row][-1] == end
            if not last and len(written[row]) - starts[row] <= max_tokens:
                keep.append(i)
        if len(keep) < len(alive):
            index = torch.tensor(keep, dtype=torch.long)
            alive = alive[index]
            cache.keep(index)
    return [ids[start : start + max_tokens] for ids, start in zip(written, starts, strict=True)]
