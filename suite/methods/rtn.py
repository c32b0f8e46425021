"""Round to nearest: every weight to the closest point of its group's min-max grid.

    w^ = s * (clamp(round(w / s) + z) - z),   s and z from the smallest and largest weight of the group

Needs no data and does not look at activations, so it is the floor that every other method is compared with.
Does not quantize activations or the KV cache.
Source: arXiv:2601.14888 eq. 1 (symmetric by default, as its W3G128 rows); the quantizer is `suite.numerics.quantize`.
Deviation: none.
"""

from torch import Tensor

from suite.modeling import QuantizedModel, QuantizedWeight, decoder_linears
from suite.numerics.quantize import quantize, weight_grid
from suite.spec.methods import RtnParams


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> QuantizedWeight:
    """One weight [out, in] on its own grid."""
    grid = weight_grid(weight, bits, group_size, symmetric)
    return QuantizedWeight(quantize(weight, grid), grid, weight.dtype)


def quantize_(model: QuantizedModel, params: RtnParams) -> None:
    """Round every decoder linear of the model. Raises: ValueError naming the layer that cannot be quantized."""
    precision = params.precision
    for linear in decoder_linears(model.config):
        name = f"{linear}.weight"
        weight = model.weights[name]
        assert isinstance(weight, Tensor), f"{name} is quantized already"
        try:
            model.weights[name] = round_to_nearest(
                weight, precision.weight_bits, precision.group_size, params.symmetric
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
