"""RTN on whole models: which layers change, on which grid, and what is refused."""

import pytest
import torch

from suite.methods import quantize_
from suite.modeling import QuantizedModel, QuantizedWeight, decoder_linears
from suite.numerics.quantize import fake_quantize
from suite.spec.methods import Bf16Params, RtnParams
from suite.spec.precision import Precision

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2}


def model() -> QuantizedModel:
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor | QuantizedWeight] = {
        "model.embed_tokens.weight": torch.randn(10, 128, generator=generator).bfloat16(),
        "model.layers.0.self_attn.q_proj.bias": torch.randn(16, generator=generator).bfloat16(),
    }
    for name in decoder_linears(CONFIG):
        weights[f"{name}.weight"] = torch.randn(16, 256, generator=generator).bfloat16()
    return QuantizedModel(CONFIG, weights)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("precision", ["W8A16KV16-g128", "W4A16KV16-g128", "W3A16KV16-g128", "W4A16KV16"])
def test_every_decoder_linear_and_nothing_else(precision: str, symmetric: bool) -> None:
    """Each linear becomes its own rounding, on its own grid; embeddings and biases stay as they are."""
    before, after = model(), model()
    params = RtnParams(precision=Precision.parse(precision), symmetric=symmetric)
    quantize_(after, params)
    linears = {f"{name}.weight" for name in decoder_linears(CONFIG)}
    assert len(linears) == 14
    for (name, original), (_, rounded) in zip(before.state_dict(), after.state_dict(), strict=True):
        if name in linears:
            p = params.precision
            expected = fake_quantize(original, p.weight_bits, p.group_size, symmetric).to(torch.bfloat16)
            assert torch.equal(rounded, expected)
            assert not torch.equal(rounded, original)
        else:
            assert torch.equal(rounded, original)
    assert after.weight_only


def test_bf16_changes_nothing() -> None:
    """The reference method leaves every tensor alone."""
    before, after = model(), model()
    quantize_(after, Bf16Params())
    for (_, a), (_, b) in zip(before.state_dict(), after.state_dict(), strict=True):
        assert torch.equal(a, b)


def test_nan_is_refused_by_name() -> None:
    """A NaN in one layer is an error that names the layer: never a quantized model with a hole."""
    broken = model()
    weight = broken.weights["model.layers.1.mlp.up_proj.weight"]
    assert isinstance(weight, torch.Tensor)
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: 1 of 4096 weights are NaN"):
        quantize_(broken, RtnParams(precision=Precision.parse("W4A16KV16-g128")))


def test_group_that_does_not_divide_is_refused_by_name() -> None:
    """A group size that does not divide a layer's width names the layer."""
    with pytest.raises(ValueError, match=r"q_proj\.weight: group size 96 does not divide the 256 inputs"):
        quantize_(model(), RtnParams(precision=Precision.parse("W4A16KV16-g96")))
