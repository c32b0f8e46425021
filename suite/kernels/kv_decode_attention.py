"""Attention of one new token over packed keys and values: nothing of the cache is ever there unpacked.

    o = softmax(q K^T / sqrt(head_dim)) V,      K, V = scale * (code - zero_point)

Sequences are split over programs of one warp each, as many as fill the device; each keeps a running softmax (online,
base 2) of all queries that share its key-value head, and a second launch joins the splits. The order of every sum is
fixed. One word of a cache holds a code of each of eight planes of dimensions (`suite.kernels.kv_cache`): shifted by a
plane's offset, the words of a tile are an operand of a tensor-core product, each in the register that it was loaded to.
code - zero_point is exact in bfloat16. Scales of tokens are applied behind the product (keys) and to the probabilities
before it (values): what is rounded to bfloat16, beside queries, is these products with the probabilities.

Two kinds of keys:

    per token and head, after RoPE (QuaRot, SmoothQuant): queries come rotated as the keys were
    static per channel, before RoPE (KVQuant*), with the bias that keys were rounded before, if any:
        k = scale n + bias, n = code - zero_point; RoPE turns the halves k1, k2 by the position's angles, so

        q . RoPE(k) = sum  n1 cos (scale1 q1) + n1 sin (scale1 q2) + n2 cos (scale2 q2) - n2 sin (scale2 q1)
                           + cos (bias1 q1 + bias2 q2) + sin (bias1 q2 - bias2 q1)

        in brackets what a program computes once, as operands; n cos and n sin are rounded to bfloat16 as keys are after
        RoPE elsewhere. `cos` and `sin` are the model's tables, in bfloat16 as in transformers.

Source: arXiv:2307.08691 (online softmax), arXiv:2311.01282 (split over the sequence). Deviation from `suite.numerics`
in what is rounded: the dequantized key and value are not rounded to bfloat16.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from suite.kernels.compile_check import Case
from suite.kernels.kv_cache import Cache
from suite.kernels.kv_decode_kernels import PLANES, _combine_kernel, _kv_decode_attention_kernel
from suite.kernels.timing import Timing

HEAD_DIM = 128
QUERIES = 8  # of a key-value head, at most
BLOCK = 32  # tokens at a time


@dataclass(frozen=True)
class Pages:
    """Where tokens are: token t of sequence b in slot table[b, t // size] * size + t % size; `lengths` [batch], int32.

    A cache [batch * capacity] without pages is the one whose pages have the size of its capacity.
    """

    table: Tensor  # int32 [batch, pages]
    lengths: Tensor  # int32 [batch]
    size: int

    def slots(self, sequence: int, length: int) -> Tensor:
        """Where a sequence's first `length` tokens are, int64."""
        at = torch.arange(length, device=self.table.device)
        return self.table[sequence].long()[at // self.size] * self.size + at % self.size


@dataclass(frozen=True)
class Rope:
    """What is done to static keys behind their dequantization: bias [kv_heads, head_dim] float32 (or None), then RoPE.

    `cos` and `sin` are [positions, head_dim / 2], in the dtype of the queries.
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor | None = None

    def apply(self, k: Tensor, positions: Tensor) -> Tensor:
        """float32 keys [tokens, kv_heads, head_dim] at their positions [tokens]."""
        k = k if self.bias is None else k + self.bias.float()
        first, second = k.chunk(2, -1)
        cos, sin = (table[positions].float()[:, None] for table in (self.cos, self.sin))
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def kv_decode_attention_ref(
    q: Tensor, keys: Cache, values: Cache, pages: Pages, rope: Rope | None = None, scale: float | None = None
) -> Tensor:
    """q [batch, heads, head_dim] over each sequence's tokens: float32, returned in q's dtype. No token: zeros."""
    batch, heads, head_dim = q.shape
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.zeros(batch, heads, head_dim, device=q.device)
    for b, length in enumerate(pages.lengths.tolist()):
        slots = pages.slots(b, length)
        k, v = keys.dequantize(slots), values.dequantize(slots)  # [tokens, kv_heads, head_dim]
        k = k if rope is None else rope.apply(k, torch.arange(length, device=q.device))
        grouped = q[b].float().reshape(k.shape[1], -1, head_dim)  # [kv_heads, queries, head_dim]
        scores = grouped @ k.permute(1, 2, 0) * scale  # [kv_heads, queries, tokens]
        if length:
            out[b] = (scores.softmax(-1) @ v.transpose(0, 1)).reshape(heads, head_dim)
    return out.to(q.dtype)


def _case(bits: int, static: bool) -> Case:
    low, zero = "*i32" if bits == 4 else "*i16", "*fp32" if static else "*u8"
    pointers = {"q_ptr": "*bf16", "k_low_ptr": low, "k_high_ptr": "*u8", "k_scale_ptr": "*fp32", "k_zero_ptr": zero}
    pointers |= {"v_low_ptr": low, "v_high_ptr": "*u8", "v_scale_ptr": "*fp32", "v_zero_ptr": "*u8"}
    pointers |= {"cos_ptr": "*bf16", "sin_ptr": "*bf16", "bias_ptr": "*fp32", "table_ptr": "*i32"}
    pointers |= {"lengths_ptr": "*i32", "sums_ptr": "*fp32", "ends_ptr": "*fp32"}
    sizes = dict.fromkeys(("queries", "slots", "pages", "page_size", "with_bias"), "i32") | {"scale": "fp32"}
    return Case(
        f"kv_decode_attention KV{bits}, {'static' if static else 'token'} keys",
        _kv_decode_attention_kernel,
        pointers | sizes,
        {"BITS": bits, "STATIC": static, "ROWS": QUERIES, "BLOCK": BLOCK, "WIDTH": HEAD_DIM // PLANES.value},
        num_warps=1,
        num_stages=3,
        divisible=("slots", "page_size"),
        needs=("load128", "tensor_core"),
        fp_fusion=True,
    )


_CASES = {(bits, static): _case(bits, static) for bits in (4, 3) for static in (False, True)}
_COMBINE_CASE = Case(
    "kv_decode_attention, joining splits",
    _combine_kernel,
    {"sums_ptr": "*fp32", "ends_ptr": "*fp32", "o_ptr": "*bf16", "splits": "i32"},
    {"BLOCK": 16, "HEAD_DIM": HEAD_DIM},
    needs=("load128",),
    fp_fusion=True,
)
CONFIGURATIONS = (*_CASES.values(), _COMBINE_CASE)


@lru_cache(maxsize=8)
def _programs(device: torch.device) -> int:
    """That run at a time, about: ten warps on each multiprocessor."""
    return 10 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 6


def _views(cache: Cache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(words or their low halves, bytes, scale, zero point) of a cache, as the kernel takes them."""
    return cache.codes.view(torch.int32 if cache.bits == 4 else torch.int16), cache.codes, cache.scale, cache.zero_point


def _by_kernel(q: Tensor, keys: Cache, values: Cache, pages: Pages, rope: Rope | None, scale: float) -> Tensor:
    (batch, heads, head_dim), (kv_heads, slots, _) = q.shape, keys.codes.shape
    longest = pages.table.shape[1] * pages.size
    splits = max(1, min(_programs(q.device) // (batch * kv_heads), longest // (2 * BLOCK)))
    sums = q.new_empty(batch, heads, splits, head_dim, dtype=torch.float32)
    ends = q.new_empty(batch, heads, splits, 2, dtype=torch.float32)
    cos, sin = (q, q) if rope is None else (rope.cos, rope.sin)
    bias = keys.scale if rope is None or rope.bias is None else rope.bias
    places = (cos, sin, bias, pages.table, pages.lengths, sums, ends)
    sizes = (heads // kv_heads, slots, pages.table.shape[1], pages.size, int(bias is not keys.scale))
    case = _CASES[keys.bits, keys.static]
    case.launch(
        (batch, kv_heads, splits), q, *_views(keys), *_views(values), *places, *sizes, scale * math.log2(math.e)
    )
    o = torch.empty_like(q)
    _COMBINE_CASE.launch((batch * heads,), sums, ends, o, splits)
    return o


def kv_decode_attention(
    q: Tensor, keys: Cache, values: Cache, pages: Pages, rope: Rope | None = None, scale: float | None = None
) -> Tensor:
    """`kv_decode_attention_ref`; on CUDA by the kernels: bfloat16, head_dim 128, at most 8 queries a key-value head.

    Raises: ValueError for what does not fit together, and on a CUDA device for other dtypes, sizes or page sizes.
    """
    _check(q, keys, values, rope)
    if not q.is_cuda:
        return kv_decode_attention_ref(q, keys, values, pages, rope, scale)
    _check_for_kernel(q, keys, pages)
    return _by_kernel(q.contiguous(), keys, values, pages, rope, HEAD_DIM**-0.5 if scale is None else scale)


def _check(q: Tensor, keys: Cache, values: Cache, rope: Rope | None) -> None:
    (_, heads, head_dim), kv_heads = q.shape, keys.codes.shape[0]
    if keys.codes.shape != values.codes.shape or keys.bits != values.bits or values.static:
        raise ValueError(
            f"keys {tuple(keys.codes.shape)} of {keys.bits} bits, values {tuple(values.codes.shape)} of {values.bits}: "
            "rule: one shape and width for both, values per token and head"
        )
    if heads % kv_heads or head_dim != keys.head_dim:
        raise ValueError(f"queries {tuple(q.shape)}: rule: a multiple of {kv_heads} heads of {keys.head_dim}")
    if keys.static != (rope is not None):
        raise ValueError(
            f"static keys: {keys.static}, rope: {rope is not None}: rule: static keys are those before RoPE"
        )
    if rope is not None and (rope.cos.dtype != q.dtype or rope.cos.shape[-1] * 2 != head_dim):
        raise ValueError(f"cos {tuple(rope.cos.shape)} {rope.cos.dtype}: rule: [positions, {head_dim // 2}], {q.dtype}")


def check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    """Raises: ValueError for heads that the kernels do not take."""
    if head_dim != HEAD_DIM or heads > QUERIES * kv_heads:
        raise ValueError(
            f"{heads} heads of {head_dim}, {kv_heads} of keys and values: rule: on a CUDA device heads of {HEAD_DIM}, "
            f"at most {QUERIES} queries a key-value head"
        )


def _check_for_kernel(q: Tensor, keys: Cache, pages: Pages) -> None:
    check_heads(q.shape[1], keys.codes.shape[0], q.shape[2])
    if q.dtype != torch.bfloat16:
        raise ValueError(f"queries in {q.dtype}: rule: on a CUDA device in bfloat16")
    if pages.size % BLOCK:
        raise ValueError(f"pages of {pages.size} tokens: rule: a multiple of {BLOCK}")


def timings(device: str) -> Iterator[Timing]:
    """16 sequences of 32,768 tokens with a 7B model's heads, and one with a 1.5B model's, against torch in bfloat16."""
    for batch, tokens, heads, kv_heads in ((16, 32768, 28, 4), (1, 32768, 12, 2)):
        q = torch.randn(batch, heads, HEAD_DIM, device=device, dtype=torch.bfloat16)
        k, v = (torch.randn(batch, kv_heads, tokens, HEAD_DIM, device=device, dtype=torch.bfloat16) for _ in range(2))
        dense = partial(
            torch.nn.functional.scaled_dot_product_attention, q[:, :, None], k, v, scale=HEAD_DIM**-0.5, enable_gqa=True
        )
        angle = torch.arange(tokens, device=device)[:, None] * 1e4 ** -torch.arange(0, 1, 2 / HEAD_DIM, device=device)
        rope = Rope(angle.cos().bfloat16(), angle.sin().bfloat16(), torch.randn(kv_heads, HEAD_DIM, device=device))
        table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
        pages = Pages(table, torch.full((batch,), tokens, dtype=torch.int32, device=device), tokens)
        for bits in (4, 3):
            for static in (False, True):
                values = _random_cache(batch * tokens, kv_heads, bits, device)
                keys = _random_cache(batch * tokens, kv_heads, bits, device, static)
                arguments = (q, keys, values, pages, rope if static else None)
                _compare(*arguments)
                moved = sum(
                    t.numel() * t.element_size() for c in (keys, values) for t in (c.codes, c.scale, c.zero_point)
                )
                yield Timing(
                    "kv_decode_attention", f"KV{bits}, {'static' if static else 'token'} keys, {batch} x {tokens}",
                    partial(kv_decode_attention, *arguments), dense, moved,
                    4 * batch * heads * tokens * HEAD_DIM, "2.2x bf16 at 16 x 32k, 55 % of the floor for KV4",
                    least_speedup=2.2 if batch == 16 else None, least_share=0.55 if bits == 4 and batch == 16 else None,
                    capture_baseline=True,
                )  # fmt: skip


def _random_cache(slots: int, kv_heads: int, bits: int, device: str, static: bool = False) -> Cache:
    codes = torch.randint(0, 256, (kv_heads, slots, HEAD_DIM * bits // 8), device=device, dtype=torch.uint8)
    grids = (kv_heads, HEAD_DIM if static else slots)
    zero = torch.full(grids, 2.0 ** (bits - 1), device=device)
    return Cache(codes, torch.rand(grids, device=device) * 0.1 + 0.1, zero if static else zero.byte(), bits, static)


def _compare(q: Tensor, keys: Cache, values: Cache, pages: Pages, rope: Rope | None) -> None:
    """The first sequence's, against the reference: as near as bfloat16 products of rounded probabilities are."""
    ours = kv_decode_attention(q, keys, values, pages, rope)[:1].float()
    slots = pages.size  # the first sequence's page is the first
    own = [
        Cache(
            c.codes[:, :slots], c.scale if c.static else c.scale[:, :slots],
            c.zero_point if c.static else c.zero_point[:, :slots], c.bits, c.static,
        )
        for c in (keys, values)
    ]  # fmt: skip
    theirs = kv_decode_attention_ref(q[:1], own[0], own[1], Pages(pages.table[:1], pages.lengths[:1], slots), rope)
    off = (ours - theirs.float()).norm() / theirs.float().norm()
    assert off < 2e-2, f"KV{keys.bits}, static {keys.static}: {off:.2g} off the reference"
