"""How rounded keys and values lie in memory: written by `kv_append_quantize`, read by `kv_decode_attention`.

One cache holds the keys, or the values, of one layer. A slot is one token's place; which slot a token has is up to
the engine (a block table, or batch * capacity + position). D = head_dim:

    codes        uint8    [kv_heads, slots, D bits / 8]: D / 8 words; word j holds codes j, j + D/8, ..., j + 7D/8
      4 bits     bytes 4j to 4j + 3: the 32 bits of word j, lowest first
      3 bits     bytes 2j and 2j + 1: the 16 lower ones of its 24 bits; byte D/4 + j: the others
    scale        float32  [kv_heads, slots]        one grid per token and head
    zero_point   uint8    [kv_heads, slots]
    or, static:  scale, zero_point float32 [kv_heads, D], one grid per channel, for keys before RoPE

    x^ = scale * (code - zero_point)

Codes are from 0 to 2^bits - 1; a symmetric grid's are moved up by 2^(bits-1), and so is its zero point. With the scale
in float32 the cache stands for exactly what `suite.numerics.dynamic` rounds to; a 16-bit scale would save 1.5 % of the
bytes and change numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cache:
    """Rounded keys or values of one layer. Raises: ValueError if the tensors do not fit one another."""

    codes: Tensor  # uint8 [kv_heads, slots, head_dim * bits / 8]
    scale: Tensor  # float32 [kv_heads, slots], static: [kv_heads, head_dim]
    zero_point: Tensor  # uint8 [kv_heads, slots], static: float32 [kv_heads, head_dim]
    bits: int
    static: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (3, 4):
            raise ValueError(f"{self.bits} bits: rule: a cache holds codes of 3 or 4 bits")
        heads, slots, _ = self.codes.shape
        fits = (heads, self.head_dim if self.static else slots)
        if self.scale.shape != fits or self.zero_point.shape != fits:
            shapes = tuple(self.scale.shape), tuple(self.zero_point.shape)
            raise ValueError(f"scale and zero point {shapes} beside codes {tuple(self.codes.shape)}: rule: both {fits}")

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.codes.shape[-1] * 8 // self.bits

    def dequantize(self, slots: Tensor | None = None) -> Tensor:
        """The float32 keys or values of `slots` (int64), or of every slot: [slots, kv_heads, head_dim]."""
        codes, scale, zero_point = self.codes, self.scale, self.zero_point
        if slots is not None:
            codes = codes[:, slots]
            scale, zero_point = (x if self.static else x[:, slots] for x in (scale, zero_point))
        axis = 1 if self.static else 2
        steps = unpack(codes, self.bits).float() - zero_point.float().unsqueeze(axis)  # [kv_heads, slots, head_dim]
        return (scale.unsqueeze(axis) * steps).transpose(0, 1).contiguous()


def empty(slots: int, kv_heads: int, head_dim: int, bits: int, device: torch.device | str = "cpu") -> Cache:
    """Room for `slots` tokens with a grid each: zeros. Raises: ValueError if codes would not fill bytes."""
    if head_dim % 8 or bits not in (3, 4):
        raise ValueError(f"head_dim {head_dim}, {bits} bits: rule: a multiple of 8, and 3 or 4 bits")
    codes = torch.zeros(kv_heads, slots, head_dim * bits // 8, dtype=torch.uint8, device=device)
    scale = torch.zeros(kv_heads, slots, device=device)
    return Cache(codes, scale, torch.zeros(kv_heads, slots, dtype=torch.uint8, device=device), bits)


def empty_static(slots: int, low: Tensor, high: Tensor, bits: int) -> Cache:
    """Room for `slots` tokens on given asymmetric ranges `low`, `high` [kv_heads, head_dim], widened to hold zero."""
    room = empty(slots, low.shape[0], low.shape[1], bits, low.device)
    return Cache(room.codes, *static_grid(low, high, bits), bits, static=True)


def static_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, zero point) of asymmetric ranges [kv_heads, head_dim], each widened to hold zero, in float32."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return scale.contiguous(), torch.round(-low / scale)


def token_bytes(head_dim: int, bits: int) -> int:
    """Bytes of one token's key and value of one head: codes, two scales, two zero points."""
    return 2 * (head_dim * bits // 8 + 4 + 1)


def pair_in(buffer: Tensor, kv_heads: int, head_dim: int, bits: int) -> tuple[Cache, Cache]:
    """Keys and values that share the bytes of a buffer (uint8, in a row) with room for `token_bytes` a slot and head.

    Raises: ValueError if the buffer is not made of whole slots.
    """
    slots, rest = divmod(buffer.numel(), kv_heads * token_bytes(head_dim, bits))
    if rest or not buffer.is_contiguous():
        raise ValueError(f"a buffer of {buffer.numel()} bytes: rule: slots of {kv_heads} heads in a row, and no more")
    width = head_dim * bits // 8
    sizes = [kv_heads * slots * size for size in (4, 4, width, width, 1, 1)]  # what needs alignment comes first
    parts = buffer.view(-1).split(sizes)
    scales = [part.view(torch.float32).view(kv_heads, slots) for part in parts[:2]]
    codes = [part.view(kv_heads, slots, width) for part in parts[2:4]]
    zeros = [part.view(kv_heads, slots) for part in parts[4:]]
    keys, values = (Cache(*part, bits) for part in zip(codes, scales, zeros, strict=True))
    return keys, values


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., head_dim] to bytes [..., head_dim * bits / 8]."""
    planes = codes.to(torch.int64).unflatten(-1, (8, -1))  # [..., planes, words]
    words = (planes << torch.arange(0, 8 * bits, bits, device=codes.device)[:, None]).sum(-2)
    whole = 32 if bits == 4 else 16
    low = torch.stack([words >> shift & 255 for shift in range(0, whole, 8)], -1).flatten(-2)
    return (low if bits == 4 else torch.cat([low, words >> 16], -1)).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., head_dim * bits / 8] to codes [..., head_dim], uint8."""
    count = packed.shape[-1] // bits
    low = packed[..., : count * (4 if bits == 4 else 2)].to(torch.int64).unflatten(-1, (count, -1))
    words = (low << torch.arange(0, 8 * low.shape[-1], 8, device=packed.device)).sum(-1)  # [..., words]
    if bits == 3:
        words = words | packed[..., count * 2 :].to(torch.int64) << 16
    shifts = torch.arange(0, 8 * bits, bits, device=packed.device)[:, None]
    return ((words.unsqueeze(-2) >> shifts) & (2**bits - 1)).flatten(-2).to(torch.uint8)
