"""What a variant's operators come to in one layer of the served model: plain functions of tensors, built at a swap.

The mathematics is that of `suite.modeling.operators`, which transformers runs too; here it meets a layer's shape, and
what does not fit is refused by the layer's name. No vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from suite.modeling import (
    ActivationQuantizer,
    AttentionOperators,
    Diagonal,
    KeyValueQuantizer,
    Kronecker,
    LinearOperators,
)
from suite.modeling.operators import (
    apply_key_operators,
    apply_linear_operators,
    quantize_key_value,
    rotate_key,
    rotate_query,
)

Step = Callable[[Tensor], Tensor]
OnAttention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Operators:
    """The online operators of a variant, as `QuantizedModel` has them: by module name, their tensors by theirs."""

    linear_operators: Mapping[str, LinearOperators] = field(default_factory=dict)
    attention_operators: Mapping[str, AttentionOperators] = field(default_factory=dict)
    operator_tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Operators:
        """With the tensors on `device` in float32, in which operators compute."""
        tensors = {name: tensor.to(device, torch.float32) for name, tensor in self.operator_tensors.items()}
        return replace(self, operator_tensors=tensors)


@dataclass(frozen=True)
class Geometry:
    """Shape of one attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_bias: bool
    has_key_norm: bool


@dataclass(frozen=True)
class AttentionPlan:
    """What happens to queries, keys and values: as they leave the projection, after k_norm, as attention takes them.

    `on_projected` changes [tokens, q + k + v] and returns it; with `before_bias` it gets the product without the bias,
    and adds it. Values are rounded on their way into attention: nothing happens to them before.
    """

    on_projected: Callable[[Tensor, Tensor | None], Tensor] | None
    before_bias: bool
    on_normed_key: Step | None
    on_attention: OnAttention | None


def plan_linear(parts: Sequence[str], width: int, operators: Operators) -> Step | None:
    """What the linears `parts`, fused into one, do to their input [tokens, width] before the product.

    Raises: ValueError naming the linear if they differ, or do not fit.
    """
    of_parts = [operators.linear_operators.get(part, LinearOperators()) for part in parts]
    ops, tensors = of_parts[0], operators.operator_tensors
    for part, other in zip(parts, of_parts, strict=True):
        if other != ops:
            raise ValueError(
                f"{part} has {other}, {parts[0]} has {ops}: rule: what shares an input has equal operators"
            )
    if ops == LinearOperators():
        return None
    with naming(parts[0]):
        for tensor, shape in _linear_shapes(ops, width):
            _check_shape(tensor, shape, tensors)
        apply_linear_operators(_probe(width, tensors), ops, tensors)
    return lambda x: apply_linear_operators(x, ops, tensors)


def plan_attention(name: str, shape: Geometry, operators: Operators) -> AttentionPlan:
    """What the attention `name` does to queries, keys and values.

    Raises: ValueError naming it if that does not fit.
    """
    ops, tensors = operators.attention_operators.get(name, AttentionOperators()), operators.operator_tensors
    with naming(name):
        check_attention(ops, shape, tensors)
    after_norm = ops.key_place == "before_rope" and shape.has_key_norm
    return AttentionPlan(
        on_projected=_on_projected(ops, shape, tensors),
        before_bias=ops.key_place == "before_bias",
        on_normed_key=(lambda keys: quantize_key_value(keys, ops.key, tensors)) if after_norm else None,
        on_attention=_on_attention(ops, shape, tensors),
    )


def _on_projected(
    ops: AttentionOperators, shape: Geometry, tensors: Mapping[str, Tensor]
) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    first = shape.num_heads * shape.head_dim
    last = first + shape.num_kv_heads * shape.head_dim
    before_bias = ops.key_place == "before_bias"
    if not before_bias and (ops.key_place != "before_rope" or shape.has_key_norm):
        return None

    def on_projected(qkv: Float[Tensor, "tokens q+k+v"], bias: Tensor | None) -> Float[Tensor, "tokens q+k+v"]:
        wide = qkv if not before_bias or bias is None else qkv.float() + bias
        keys = wide[:, first:last].unflatten(-1, (shape.num_kv_heads, shape.head_dim))
        key_bias = bias[first:last] if before_bias and bias is not None else None
        keys.copy_(quantize_key_value(keys, ops.key, tensors, key_bias))
        return wide.to(qkv.dtype)

    return on_projected


def _on_attention(ops: AttentionOperators, shape: Geometry, tensors: Mapping[str, Tensor]) -> OnAttention | None:
    if ops.rotation is None and ops.value is None and ops.key_place != "after_rope":
        return None
    together = ops.key == ops.value and ops.key_place == "after_rope"

    def on_attention(
        query: Float[Tensor, "tokens q"], key: Float[Tensor, "tokens kv"], value: Float[Tensor, "tokens kv"]
    ) -> tuple[Float[Tensor, "tokens q"], Float[Tensor, "tokens kv"], Float[Tensor, "tokens kv"]]:
        queries = rotate_query(query.unflatten(-1, (shape.num_heads, shape.head_dim)), ops, tensors)
        keys, values = (x.unflatten(-1, (shape.num_kv_heads, shape.head_dim)) for x in (key, value))
        if together:  # one pass for both
            both = torch.cat((rotate_key(keys.float(), ops, tensors), values), -2)
            keys, values = quantize_key_value(both, ops.key, tensors).to(key.dtype).chunk(2, -2)
        else:
            keys = apply_key_operators(keys, ops, tensors)
            values = quantize_key_value(values, ops.value, tensors)
        return queries.flatten(-2), keys.flatten(-2), values.flatten(-2)

    return on_attention


def check_attention(ops: AttentionOperators, shape: Geometry, tensors: Mapping[str, Tensor]) -> None:
    if isinstance(ops.rotation, Kronecker) and ops.query_rotation is None:
        raise ValueError(f"{ops.rotation}: rule: a Kronecker rotation of keys has one of queries")
    before_bias = ops.key_place == "before_bias"
    if before_bias and (shape.has_key_norm or not shape.has_bias):
        raise ValueError("keys rounded before their bias, but they have none: remedy: before_rope")
    queries, keys = (_probe((heads, shape.head_dim), tensors) for heads in (shape.num_heads, shape.num_kv_heads))
    for op in (ops.key, ops.value):
        if isinstance(op, KeyValueQuantizer):
            for tensor, wanted in _key_value_shapes(op, shape):
                _check_shape(tensor, wanted, tensors)
    quantize_key_value(keys, ops.key, tensors, keys if before_bias else None)
    quantize_key_value(keys, ops.value, tensors)
    apply_key_operators(keys, ops, tensors)
    rotate_query(queries, ops, tensors)


def _linear_shapes(ops: LinearOperators, width: int) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """(operator tensor, shape that it must have); what would otherwise be broadcast. Kronecker's own check is exact."""
    if isinstance(ops.transform, Diagonal):
        yield ops.transform.scale, (width,)
    if isinstance(ops.activation, ActivationQuantizer):
        yield ops.activation.clip_low, (ops.activation.groups,)
        yield ops.activation.clip_high, (ops.activation.groups,)


def _key_value_shapes(op: KeyValueQuantizer, shape: Geometry) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    if op.granularity == "static_channel":
        if op.low is None or op.high is None:
            raise ValueError(f"{op}: rule: static_channel names its ranges, low and high")
        yield op.low, (shape.num_kv_heads * shape.head_dim,)
        yield op.high, (shape.num_kv_heads * shape.head_dim,)
    yield op.clip_low, (1,)
    yield op.clip_high, (1,)


def _check_shape(name: str | None, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    if name is not None and tuple(tensors[name].shape) != shape:
        raise ValueError(f"operator tensor {name!r} has shape {tuple(tensors[name].shape)}: rule: {shape}")


def _probe(shape: int | tuple[int, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """One token of zeros, where the operators' tensors are."""
    sizes = (1, shape) if isinstance(shape, int) else (1, *shape)
    return torch.zeros(sizes, device=next((tensor.device for tensor in tensors.values()), None))


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Whatever does not fit becomes a ValueError that names the layer."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{layer}: operator tensor {error} is missing: rule: the variant brings every one") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{layer}: {error}") from error
