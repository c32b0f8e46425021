"""One layer's attention over a cache of codes: plain functions of tensors. No vLLM.

A plan of `plugin_plan` rounds keys and values and leaves the rest to vLLM's attention. Here the cache holds codes of 4
or 3 bits and their grids, 138 or 106 bytes a token and head of 128 in place of 512: what is new is rounded as it is
stored (`kv_append_quantize`), what was generated attends to the codes as they lie (`kv_decode_attention`), and a prompt
to its dequantized keys and values. Queries attend to the same rounded numbers as in `plugin_plan`'s, less one rounding:
that of a dequantized key or value to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from suite.engine.plugin_plan import AttentionPlan, Geometry, OnAttention, Operators, check_attention, naming
from suite.kernels.kv_append_quantize import KeyPlan, kv_append_quantize_
from suite.kernels.kv_cache import Cache, pair_in, static_grid
from suite.kernels.kv_decode_attention import Pages, Rope, check_heads, kv_decode_attention
from suite.kernels.packed_weight import BITS, GROUP, Packed, pack
from suite.modeling import AttentionOperators, Hadamard, KeyValueQuantizer, QuantizedModel, QuantizedWeight
from suite.modeling.operators import rotate_key, rotate_query


def packed_weights(model: QuantizedModel) -> dict[str, Packed]:
    """The weights of 3 and 4 bits by the names of their linears. A grid of a whole row is that of each of its groups.

    Raises: ValueError naming the linear whose grid has other groups.
    """
    weights = {}
    for name in model.weights:
        weight = model.weights[name]
        if isinstance(weight, QuantizedWeight) and weight.grid.bits in BITS:
            linear = name.removesuffix(".weight")
            with naming(linear):
                grid, groups = weight.grid, 1 if weight.grid.group_size else max(1, weight.codes.shape[1] // GROUP)
                zero_point = None if grid.zero_point is None else grid.zero_point.repeat(1, groups)
                weights[linear] = pack(weight.codes, grid.scale.repeat(1, groups), zero_point, grid.bits)
    return weights


@dataclass(frozen=True)
class Sequences:
    """What one forward pass brings to the cache: the queries of sequence b are those from `starts`[b] to the next.

    They are the last of the tokens that `pages` has of it, and `slots` [queries], int64, is where their keys go.
    """

    pages: Pages
    starts: list[int]
    slots: Tensor

    @cached_property
    def counts(self) -> list[int]:
        """Queries of each."""
        return [end - start for start, end in zip(self.starts, self.starts[1:], strict=False)]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each. Where the device is another, this waits for it."""
        return self.pages.lengths.tolist()

    @cached_property
    def single(self) -> tuple[Tensor, Pages]:
        """Of the sequences with one query: where those are, and their tokens."""
        chosen = [b for b, count in enumerate(self.counts) if count == 1]
        device, pages = self.pages.table.device, self.pages
        rows, at = (torch.tensor(x, device=device) for x in (chosen, [self.starts[b] for b in chosen]))
        return at, Pages(pages.table[rows], pages.lengths[rows], pages.size)


@dataclass
class Taken:
    """This pass's keys from before RoPE, [tokens, kv_heads * head_dim], between projection and attention."""

    keys: Tensor | None = None


@dataclass(frozen=True)
class PackedPlan:
    """What one attention does. `taken`: where static keys come from, which are rounded before RoPE."""

    bits: int
    keys: KeyPlan
    static: tuple[Tensor, Tensor] | None  # scale and zero point of keys before RoPE, [kv_heads, head_dim]
    rope: Rope | None
    around: AttentionPlan  # what it does to what vLLM hands it, in the places that `plugin_plan` knows
    taken: Taken = field(default_factory=Taken)

    def attend(
        self,
        query: Float[Tensor, "queries heads head_dim"],
        key: Float[Tensor, "queries kv_heads head_dim"],
        value: Float[Tensor, "queries kv_heads head_dim"],
        buffer: Tensor,
        sequences: Sequences,
        scale: float,
    ) -> Float[Tensor, "queries heads head_dim"]:
        """Store keys and values in `buffer` (`kv_cache.pair_in`), and attend, causally."""
        keys, values = pair_in(buffer, key.shape[1], key.shape[2], self.bits)
        if self.static is not None:
            keys = Cache(keys.codes, *self.static, self.bits, static=True)
            assert self.taken.keys is not None, "the projection has not run"
            key, self.taken.keys = self.taken.keys[: len(key)].view_as(key), None
        kv_append_quantize_(key.to(value.dtype), value, keys, values, sequences.slots, self.keys)
        return attend(query, keys, values, sequences, self.rope, scale)


def plan_packed(
    name: str,
    shape: Geometry,
    operators: Operators,
    bits: int,
    bias: Tensor | None,
    halves: tuple[Tensor, Tensor],
) -> PackedPlan:
    """What the attention `name` does over a cache of `bits`.

    `bias` [kv_heads * head_dim] is the key projection's; `halves` are the cosines and sines, [positions, head_dim / 2].
    Raises: ValueError naming it if the cache cannot hold what the operators round to.
    """
    ops, tensors = operators.attention_operators.get(name, AttentionOperators()), operators.operator_tensors
    device = halves[0].device
    with naming(name):
        check_attention(ops, shape, tensors)
        if device.type == "cuda":
            check_heads(shape.num_heads, shape.num_kv_heads, shape.head_dim)
        key, value = _packable(ops, bits)
        heads = (shape.num_kv_heads, shape.head_dim)
        factors = torch.stack([_end_factors(op, tensors) for op in (key, value)]).to(device)
        if key.granularity == "token_head":
            rotation, norm = _rotation(ops, shape.head_dim, tensors, device)
            around = AttentionPlan(None, False, None, _queries_rotated(ops, shape, tensors))
            return PackedPlan(bits, KeyPlan(rotation, norm, None, factors, key.symmetric), None, None, around)
        heads, before_bias = (shape.num_kv_heads, shape.head_dim), key.place == "before_bias"
        static = static_grid(tensors[str(key.low)].reshape(heads), tensors[str(key.high)].reshape(heads), bits)
        rope = Rope(*halves, bias.float().reshape(heads) if before_bias and bias is not None else None)
        taken = Taken()
        around = _taking(taken, shape, before_bias)
        return PackedPlan(bits, KeyPlan(factors=factors), static, rope, around, taken)


def _packable(ops: AttentionOperators, bits: int) -> tuple[KeyValueQuantizer, KeyValueQuantizer]:
    """Quantizers of keys and values that a cache of `bits` can hold. Raises: ValueError."""
    key, value = ops.key, ops.value
    if not (isinstance(key, KeyValueQuantizer) and isinstance(value, KeyValueQuantizer)):
        raise ValueError(f"keys {key}, values {value}: rule: a packed cache holds both, as integer codes")
    if (key.bits, value.bits) != (bits, bits):
        raise ValueError(f"keys of {key.bits} bits, values of {value.bits}: rule: this engine's cache holds {bits}")
    static = key.granularity == "static_channel"
    if static == (key.place == "after_rope") or value.granularity != "token_head":
        raise ValueError(f"{key}, {value}: rule: ranges per channel before RoPE, per token after it, values per token")
    if key.symmetric != value.symmetric or (static and (key.symmetric or ops.rotation is not None)):
        raise ValueError(f"{key}, {value}: rule: both symmetric or neither; static keys neither so, nor rotated")
    return key, value


def _end_factors(op: KeyValueQuantizer, tensors: Mapping[str, Tensor]) -> Tensor:
    """What the low and the high end of a token's range are multiplied by, [2]."""
    ends = [torch.ones(1) if name is None else tensors[name].float().cpu() for name in (op.clip_low, op.clip_high)]
    return op.clip * torch.cat(ends)


def _rotation(
    ops: AttentionOperators, head_dim: int, tensors: Mapping[str, Tensor], device: torch.device
) -> tuple[Tensor | None, float]:
    """(R, norm) with k' = norm * k R; Hadamard's as signs, which bfloat16 holds exactly."""
    if ops.rotation is None:
        return None, 1.0
    unit = torch.eye(head_dim, device=device)[:, None]  # one head, a token for each dimension
    rotation = rotate_key(unit, ops, tensors)[:, 0].contiguous()
    if not isinstance(ops.rotation, Hadamard):
        return rotation, 1.0
    return torch.sign(rotation), rotation.abs().max().item()


def _queries_rotated(ops: AttentionOperators, shape: Geometry, tensors: Mapping[str, Tensor]) -> OnAttention | None:
    if ops.rotation is None:
        return None

    def on_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = query.unflatten(-1, (shape.num_heads, shape.head_dim))
        return rotate_query(heads, ops, tensors).flatten(-2), key, value

    return on_attention


def _taking(taken: Taken, shape: Geometry, before_bias: bool) -> AttentionPlan:
    """Keep keys as they are before RoPE: without their bias, or behind `k_norm` where there is one."""
    first = shape.num_heads * shape.head_dim
    last = first + shape.num_kv_heads * shape.head_dim

    def on_projected(qkv: Tensor, bias: Tensor | None) -> Tensor:
        taken.keys = qkv[:, first:last].clone()
        return qkv if bias is None or not before_bias else (qkv.float() + bias).to(qkv.dtype)

    def on_normed_key(keys: Tensor) -> Tensor:
        taken.keys = keys.clone()
        return keys

    if shape.has_key_norm and not before_bias:
        return AttentionPlan(None, False, on_normed_key, None)
    return AttentionPlan(on_projected, before_bias, None, None)


def attend(
    query: Float[Tensor, "queries heads head_dim"],
    keys: Cache,
    values: Cache,
    sequences: Sequences,
    rope: Rope | None,
    scale: float,
) -> Float[Tensor, "queries heads head_dim"]:
    """Each sequence's queries over all its tokens, which are stored: single queries all at once, prompts one by one."""
    starts, counts = sequences.starts, sequences.counts
    if set(counts) == {1}:
        return kv_decode_attention(query, keys, values, sequences.pages, rope, scale)
    out = torch.empty_like(query)
    if 1 in counts:
        at, pages = sequences.single
        out[at] = kv_decode_attention(query[at], keys, values, pages, rope, scale)
    for b, count in enumerate(counts):
        if count > 1:
            slots = sequences.pages.slots(b, sequences.lengths[b])
            new = slice(starts[b], starts[b + 1])
            out[new] = _attend_prompt(query[new], keys.dequantize(slots), values.dequantize(slots), rope, scale)
    return out


def _attend_prompt(query: Tensor, keys: Tensor, values: Tensor, rope: Rope | None, scale: float) -> Tensor:
    """The last queries [queries, heads, head_dim] of a sequence over all its keys [tokens, kv_heads, head_dim]."""
    length = len(keys)
    at = torch.arange(length, device=keys.device)
    keys = keys if rope is None else rope.apply(keys, at)
    seen = at <= at[length - len(query) :, None]  # [queries, tokens]
    q, k, v = (x.to(query.dtype).transpose(0, 1)[None] for x in (query, keys, values))
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)
