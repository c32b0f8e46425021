"""Uniform integer quantization of weights, in float32.

    symmetric:   s = max|w| / (2^(b-1) - 1)        q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)        w^ = s q
    asymmetric:  s = (hi - lo) / (2^b - 1)         q = clamp(round(w / s) + z, 0, 2^b - 1)               w^ = s (q - z)
                 lo = min(w, 0), hi = max(w, 0), z = round(-lo / s)

over groups of `group_size` neighbouring inputs of one output (`None`: the whole row). Rounding is half to even. The
range always holds zero, so zero is exact. A range below 1e-5 is widened to it: an all-zero group gives zeros, not NaN.
Source: arXiv:2504.04823 (appendix A) and arXiv:2601.14888 eq. 1; constants as in the released code of the former.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST_RANGE = 1e-5


@dataclass(frozen=True)
class Grid:
    """Where a weight's codes lie: `scale` and `zero_point` [out, groups] in float32 (symmetric: no `zero_point`)."""

    scale: Float[Tensor, "out groups"]
    zero_point: Float[Tensor, "out groups"] | None
    bits: int
    group_size: int | None

    @property
    def symmetric(self) -> bool:
        """Whether zero is code zero."""
        return self.zero_point is None

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code, both included."""
        return code_range(self.bits, self.symmetric)


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code of `bits` bits: two's complement if symmetric, else from zero."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def weight_grid(weight: Float[Tensor, "out in"], bits: int, group_size: int | None, symmetric: bool) -> Grid:
    """The min-max grid of a weight. Raises: ValueError if a group does not fit or a value is not finite."""
    w = _grouped(weight, group_size)  # [out, groups, group_size]
    if not torch.isfinite(w).all():
        bad = int((~torch.isfinite(w)).sum())
        raise ValueError(f"{bad} of {w.numel()} weights are NaN or infinite: the checkpoint is damaged or overflowed")
    if symmetric:
        largest = w.abs().amax(-1).clamp(min=SMALLEST_RANGE)
        return Grid(largest / (2 ** (bits - 1) - 1), None, bits, group_size)
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    scale = (high - low).clamp(min=SMALLEST_RANGE) / (2**bits - 1)
    return Grid(scale, torch.round(-low / scale), bits, group_size)


def quantize(weight: Float[Tensor, "out in"], grid: Grid) -> Int[Tensor, "out in"]:
    """Integer codes of a weight on a grid: int8 if symmetric, else uint8."""
    codes = torch.round(_grouped(weight, grid.group_size) / grid.scale[..., None])
    if grid.zero_point is not None:
        codes = codes + grid.zero_point[..., None]
    low, high = grid.code_range
    return codes.clamp(low, high).to(torch.int8 if grid.symmetric else torch.uint8).reshape(weight.shape)


def dequantize(codes: Int[Tensor, "out in"], grid: Grid) -> Float[Tensor, "out in"]:
    """The float32 weight that codes stand for."""
    q = _grouped(codes, grid.group_size)
    if grid.zero_point is not None:
        q = q - grid.zero_point[..., None]
    return (q * grid.scale[..., None]).reshape(codes.shape)


def fake_quantize(
    weight: Float[Tensor, "out in"], bits: int, group_size: int | None, symmetric: bool
) -> Float[Tensor, "out in"]:
    """The weight rounded onto its own min-max grid, in float32."""
    grid = weight_grid(weight, bits, group_size, symmetric)
    return dequantize(quantize(weight, grid), grid)


def _grouped(x: Tensor, group_size: int | None) -> Float[Tensor, "out groups group_size"]:
    width = x.shape[-1]
    size = group_size or width
    if width % size:
        raise ValueError(
            f"group size {size} does not divide the {width} inputs: choose a divisor, or none for per channel"
        )
    return x.float().reshape(x.shape[0], width // size, size)
