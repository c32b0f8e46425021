"""Weights in 4 or 3 bits with a grid for each group of 128 inputs, as `wna16_matmul` reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 128
BITS = (3, 4)
SMALLEST_EXPONENT = 99 << 23  # of a scale, in the bits of a float32: 2^-28


@dataclass(frozen=True)
class Packed:
    """A weight [outputs, inputs] as codes and their grid.

    Word j of a group and output holds the codes of inputs j, j + 16, ..., j + 112 of the group, lowest bits first:

        4 bits     low int32 [groups, outputs, 16]; high is empty
        3 bits     24-bit words: low int16 [groups, outputs, 16] bits 0 to 15, high uint8 likewise bits 16 to 23

    Codes are from 0 to 2^bits - 1; a symmetric grid's are moved up by 2^(bits-1), and so is its zero point. `grid`
    int32 [groups, outputs] holds the zero point in its four highest bits, below it the scale, exactly: the bits of the
    float32 less those of 2^-28, which for scales below 16 fit. That makes 4.25 and 3.25 bits a weight.
    """

    low: Tensor
    high: Tensor
    grid: Tensor
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.grid.shape[1], self.grid.shape[0] * GROUP

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(t.numel() * t.element_size() for t in (self.low, self.high, self.grid))

    @property
    def zero_point(self) -> Tensor:
        """int32 [outputs, groups]."""
        return ((self.grid >> 28) & 15).T

    @property
    def scale(self) -> Tensor:
        """float32 [outputs, groups]."""
        return ((self.grid & 0x0FFFFFFF) + SMALLEST_EXPONENT).view(torch.float32).T

    def copy(self) -> "Packed":
        """In memory of its own."""
        return Packed(self.low.clone(), self.high.clone(), self.grid.clone(), self.bits)

    def to(self, device: torch.device | str) -> "Packed":
        """On another device."""
        return Packed(self.low.to(device), self.high.to(device), self.grid.to(device), self.bits)


def pack(codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Packed:
    """Codes [outputs, inputs] (uint8, symmetric: int8) and their grid [outputs, groups] in the kernel's layout.

    Raises: ValueError for other bits than 3 or 4, and for other groups than 128 neighbouring inputs.
    """
    outputs, inputs = codes.shape
    if bits not in BITS:
        raise ValueError(f"{bits} bits: rule: 3 or 4; remedy: serve the dequantized weight")
    if inputs % GROUP or scale.shape != (outputs, inputs // GROUP):
        raise ValueError(f"grid {tuple(scale.shape)} of a weight {tuple(codes.shape)}: rule: groups of {GROUP} inputs")
    offset = 2 ** (bits - 1) if zero_point is None else 0
    zero = torch.full_like(scale, offset) if zero_point is None else zero_point
    parts = (codes.to(torch.int32) + offset).reshape(outputs, -1, 8, 16)  # [outputs, groups, planes, words]
    shifts = torch.arange(0, 8 * bits, bits, device=codes.device)[:, None]
    words = (parts.long() << shifts).sum(2).transpose(0, 1)  # [groups, outputs, words]
    low = _signed(words, 32).int() if bits == 4 else _signed(words & 0xFFFF, 16).short()
    high = words.new_empty(0) if bits == 4 else words >> 16
    return Packed(low.contiguous(), high.to(torch.uint8).contiguous(), _grid(scale.float(), zero).T.contiguous(), bits)


def _grid(scale: Tensor, zero_point: Tensor) -> Tensor:
    """See `Packed`."""
    exponent = scale.view(torch.int32) - SMALLEST_EXPONENT
    if (exponent < 0).any() or (exponent >= 1 << 28).any():
        raise ValueError(f"scales from {scale.min():g} to {scale.max():g}: rule: at least 2^-28, and below 16")
    return _signed(exponent.long() | zero_point.long() << 28, 32).int()


def _signed(words: Tensor, bits: int) -> Tensor:
    """Unsigned numbers as the signed ones of the same bits."""
    return torch.where(words >> (bits - 1) > 0, words - (1 << bits), words)


def joined(weights: Sequence[Packed]) -> Packed:
    """Weights of the same inputs as one, its outputs theirs in their order. Raises: ValueError if they do not fit."""
    bits, inputs = weights[0].bits, weights[0].shape[1]
    if any((weight.bits, weight.shape[1]) != (bits, inputs) for weight in weights):
        raise ValueError(f"weights of {[(w.bits, w.shape) for w in weights]}: rule: the same bits and inputs")
    low, grid = (torch.cat([getattr(w, name) for w in weights], 1) for name in ("low", "grid"))
    high = weights[0].high if bits == 4 else torch.cat([w.high for w in weights], 1)
    return Packed(low, high, grid, bits)


def unpack(weight: Packed) -> Tensor:
    """Codes [outputs, inputs], uint8, from 0 to 2^bits - 1."""
    words = weight.low.long() & (0xFFFFFFFF if weight.bits == 4 else 0xFFFF)
    if weight.bits == 3:
        words |= weight.high.long() << 16
    shifts = torch.arange(0, 8 * weight.bits, weight.bits, device=words.device)[:, None]
    codes = (words.unsqueeze(2) >> shifts) & (2**weight.bits - 1)  # [groups, outputs, planes, words]
    return codes.transpose(0, 1).reshape(weight.shape).to(torch.uint8)


def dequantize(weight: Packed) -> Tensor:
    """The float32 weight [outputs, inputs] that codes and grid stand for."""
    codes = unpack(weight).reshape(weight.shape[0], -1, GROUP).float()  # [outputs, groups, 128]
    steps = codes - weight.zero_point[..., None]
    return (steps * weight.scale[..., None]).reshape(weight.shape)
