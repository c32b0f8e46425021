"""Models of the three families and variants of them: every kind of online operator, with random tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from suite.modeling import (
    ActivationQuantizer,
    AttentionOperators,
    Diagonal,
    Hadamard,
    KeyValueQuantizer,
    Kronecker,
    LinearOperators,
    Mxfp4Quantizer,
    QuantizedModel,
    head_dim,
    input_width,
    kv_heads,
    layer_names,
    load_checkpoint,
)
from suite.modeling.quantized import tensor_names

from .tiny_model import vocabulary, write_tokenizer

Q, K, V, O = (f"self_attn.{name}_proj" for name in "qkvo")  # noqa: E741
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def write_random(folder: Path, kind: str) -> Path:
    """A random Qwen3 (heads wider than hidden / heads, tied) or Llama (untied) checkpoint with two layers."""
    import transformers

    torch.manual_seed(0)
    changes: dict[str, Any] = {
        "Qwen3": {"hidden_size": 96, "intermediate_size": 160, "head_dim": 32, "tie_word_embeddings": True},
        "Llama": {"hidden_size": 128, "intermediate_size": 224, "tie_word_embeddings": False},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(vocabulary()),
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=vocabulary()["<eos>"],
        pad_token_id=vocabulary()["<pad>"],
        **changes,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


class Variant:
    """A quantized model in the making: what is declared is declared for every layer."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_checkpoint(checkpoint)
        self.generator = torch.Generator().manual_seed(0)

    def linear(self, operators: LinearOperators, *names: str) -> None:
        """Operators of linears, by their names in a layer."""
        for layer in layer_names(self.model.config):
            for name in names:
                self.model.linear_operators[f"{layer}.{name}"] = operators

    def attention(self, operators: AttentionOperators) -> None:
        """Operators of the attention."""
        for layer in layer_names(self.model.config):
            self.model.attention_operators[f"{layer}.self_attn"] = operators

    def tensor(self, name: str, tensor: torch.Tensor) -> str:
        """Store an operator tensor under a name."""
        self.model.operator_tensors[name] = tensor
        return name

    def random(self, name: str, *shape: int) -> str:
        """A well-conditioned matrix, or one a block."""
        noise = torch.randn(*shape, generator=self.generator) * 0.1
        return self.tensor(name, torch.eye(shape[-1]) + noise)

    def uniform(self, name: str, size: int, low: float, high: float) -> str:
        """A vector of numbers between `low` and `high`."""
        return self.tensor(name, low + (high - low) * torch.rand(size, generator=self.generator))

    def width(self, name: str) -> int:
        """Inputs of a linear."""
        return input_width(self.model.config, name)


def activations(v: Variant) -> None:
    """Per token, at several widths: asymmetric, in groups with learned clips, symmetric."""
    v.linear(LinearOperators(activation=ActivationQuantizer(8)), Q, K, V)
    v.linear(LinearOperators(activation=ActivationQuantizer(6, symmetric=True, clip=0.9)), GATE, UP)
    low, high = v.uniform("low", 2, 0.8, 1.0), v.uniform("high", 2, 0.8, 1.0)
    v.linear(LinearOperators(activation=ActivationQuantizer(6, groups=2, clip_low=low, clip_high=high)), O, DOWN)


def hadamards(v: Variant) -> None:
    """As QuaRot: whole rows and blocks, then rounding; queries and keys rotated."""
    v.linear(LinearOperators(Hadamard(), ActivationQuantizer(6, clip=0.9)), DOWN)
    v.linear(LinearOperators(Hadamard(4), ActivationQuantizer(6, clip=0.9)), O)
    v.attention(AttentionOperators(rotation=Hadamard(), key=after_rope(5), value=after_rope(5)))


def kroneckers(v: Variant) -> None:
    """As FlatQuant: both sides, one matrix a block, the left side alone, a rotation that is not orthogonal."""
    hidden, inner, heads = v.width(Q), v.width(DOWN), v.width(O) // head_dim(v.model.config)
    both = Kronecker(v.random("ln.left", 8, 8), v.random("ln.right", hidden // 8, hidden // 8))
    v.linear(LinearOperators(both, ActivationQuantizer(6)), Q, K, V)
    v.linear(LinearOperators(both), GATE, UP)
    v.linear(LinearOperators(Kronecker(v.random("o.left", heads, heads), None)), O)
    blocks = Kronecker(v.random("down.left", 2, 4, 4), v.random("down.right", 2, inner // 8, inner // 8), blocks=2)
    v.linear(LinearOperators(blocks, ActivationQuantizer(6, groups=2)), DOWN)
    right = v.random("k.right", head_dim(v.model.config), head_dim(v.model.config))
    inverse = v.tensor("q.right", torch.linalg.inv(v.model.operator_tensors[right]).mT.contiguous())
    learned = {"clip_low": v.uniform("k.low", 1, 0.8, 1.0), "clip_high": v.uniform("k.high", 1, 0.8, 1.0)}
    v.attention(
        AttentionOperators(
            rotation=Kronecker(None, right), query_rotation=Kronecker(None, inverse), key=after_rope(5, **learned)
        )
    )


def diagonals(v: Variant) -> None:
    """A vector; keys before RoPE, per token (after k_norm where there is one)."""
    v.linear(LinearOperators(Diagonal(v.uniform("scale", v.width(GATE), 0.5, 1.5))), GATE, UP)
    v.attention(AttentionOperators(key=KeyValueQuantizer(5, "before_rope", "token_head"), value=after_rope(4)))


def static_keys(v: Variant, bits: int = 5) -> None:
    """As KVQuant*: keys on a range per channel before RoPE, before the bias where there is one."""
    size = kv_heads(v.model.config) * head_dim(v.model.config)
    has_bias = "model.layers.0.self_attn.k_proj.bias" in v.model.weights
    low, high = v.uniform("low", size, -4.0, -1.0), v.uniform("high", size, 1.0, 4.0)
    place = "before_bias" if has_bias else "before_rope"
    key = KeyValueQuantizer(bits, place, "static_channel", low=low, high=high)
    v.attention(AttentionOperators(key=key, value=after_rope(bits)))


def mxfp4(v: Variant) -> None:
    """Activations, keys and values in blocks of 32."""
    v.linear(LinearOperators(activation=Mxfp4Quantizer("even")), DOWN)
    v.attention(AttentionOperators(key=Mxfp4Quantizer(), value=Mxfp4Quantizer(rounding="half_even")))


def after_rope(bits: int, **options: Any) -> KeyValueQuantizer:
    """Per token and head."""
    return KeyValueQuantizer(bits, "after_rope", "token_head", clip=0.95, **options)


KINDS: list[Callable[[Variant], None]] = [activations, hadamards, kroneckers, diagonals, static_keys, mxfp4]


def variant(checkpoint: Path, kind: Callable[[Variant], None]) -> QuantizedModel:
    """The checkpoint with the operators of a kind; its weights are left as they are."""
    making = Variant(checkpoint)
    kind(making)
    making.model.check()
    return making.model


def without_rounding(model: QuantizedModel) -> QuantizedModel:
    """Its transforms and rotations alone."""
    linears = {name: replace(ops, activation=None) for name, ops in model.linear_operators.items()}
    attentions = {name: replace(ops, key=None, value=None) for name, ops in model.attention_operators.items()}
    named = set().union(*map(tensor_names, [*linears.values(), *attentions.values()]))
    tensors = {name: tensor for name, tensor in model.operator_tensors.items() if name in named}
    return replace(model, linear_operators=linears, attention_operators=attentions, operator_tensors=tensors)
