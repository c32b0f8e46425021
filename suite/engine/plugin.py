"""Online operators inside the live vLLM engine: its out-of-tree quantization "suite".

Weights are served unquantized (a quantized weight arrives dequantized), so the class below is vLLM's own linear method
with room for what the served variant declares:

- before a product, on the input of the fused `qkv_proj`, `gate_up_proj` and of `o_proj`, `down_proj`: the transform and
  the activation quantizer that all linears fused in it share;
- after `qkv_proj`: keys before the bias is added, or before RoPE;
- after `k_norm`, where there is one (Qwen3): keys before RoPE;
- as attention takes them, after RoPE: queries and keys rotated, keys and values rounded. So it is what was rounded that
  enters the cache.

An engine with a packed cache (`packed_attention`) rounds keys and values as it stores them, so there only queries are
rotated before. A linear whose weight comes packed multiplies by its codes (`wna16_matmul`); the unpacked weight stays,
for the next swap.

All of it is one mutable place per module, `online`, and hooks that are there only while a variant needs them: `switch`
puts them there and takes them away. Without operators the tokens are vLLM's own, and so is the time, up to the reading
of one attribute per product.

`switch` runs where the model lives, so it is handed to vLLM's `apply_model`; the configuration is set on `VllmConfig`
(`configured`), which travels to workers, however they are started: nothing has to be registered in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import (
    LinearBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from suite.engine.packed_plan import PackedPlan, plan_packed
from suite.engine.plugin_plan import AttentionPlan, Geometry, Operators, Step, plan_attention, plan_linear
from suite.kernels.packed_weight import Packed, joined
from suite.kernels.wna16_matmul import wna16_matmul

NAME, QKV = "suite", "qkv_proj"


@register_weight_loader_v2_supported_method  # as its base class: vLLM decides by the name of the class
class OnlineLinearMethod(UnquantizedLinearMethod):
    """vLLM's unquantized linear, with the operators of `layer.online` around the product."""

    def create_weights(self, layer: nn.Module, *arguments: Any, **attributes: Any) -> None:
        """As the base class; no operators yet, and no packed weight."""
        super().create_weights(layer, *arguments, **attributes)
        layer.online = layer.packed = None

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of `x` [tokens, in] and the layer's weight, [tokens, out]."""
        online: tuple[Step | None, AttentionPlan | None] | None = layer.online
        if online is None:
            return self.product(layer, x, bias)
        on_input, attention = online
        if on_input is not None:
            x = on_input(x)
        if attention is None or attention.on_projected is None:
            return self.product(layer, x, bias)
        return attention.on_projected(self.product(layer, x, None if attention.before_bias else bias), bias)

    def product(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """By the layer's weight, or by its codes."""
        packed: Packed | None = layer.packed
        if packed is None:
            return super().apply(layer, x, bias)
        return wna16_matmul(x, packed, None if bias is None else bias.to(x.dtype))  # a CPU's bias is in float32


class OnlineConfig(QuantizationConfig):
    """Every linear of the decoder gets an `OnlineLinearMethod`; embedding and head stay vLLM's own."""

    def get_name(self) -> str:
        """What vLLM calls it."""
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Operators compute in float32, whatever the model's dtype is."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any device: operators are plain torch."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: operators come with a swap."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OnlineConfig:
        """There is nothing to configure."""
        return cls()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of a linear layer; None: vLLM's own."""
        return OnlineLinearMethod() if isinstance(layer, LinearBase) else None


def configured(config: VllmConfig) -> VllmConfig:
    """`config` with the plugin in it, in place.

    The model's own `quantization` stays None, as for BF16: vLLM chooses kernels and fusions by it, and imports every
    quantization that it knows (half a second) if it is set.
    """
    config.quant_config = OnlineConfig()
    return config


def check(
    model: nn.Module, operators: Operators | None, cache_bits: int | None, packed: Mapping[str, Packed] | None
) -> dict[str, Packed]:
    """The weights `packed`, by their linear's name, as the model fuses them: what `switch` takes. Changes nothing.

    `cache_bits`: of the packed cache that the engine was started with.
    Raises: ValueError naming the layer of which model or cache cannot serve what is asked.
    """
    _plans(model, operators, cache_bits)
    return _fused(model, packed or {})


def switch(
    model: nn.Module,
    operators: Operators | None,
    cache_bits: int | None,
    fused: Mapping[str, Packed],
) -> None:
    """Serve with `operators`, or with none, from the next forward pass on. Raises: as `check`, changing nothing."""
    inputs, attentions, packed = _plans(model, operators, cache_bits)
    for handle in model.__dict__.get("online_hooks", []):
        handle.remove()
    model.online_hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            online = inputs.get(name), attentions.get(name.removesuffix(f".{QKV}"))
            module.online = None if online == (None, None) else online
            module.packed = fused.get(name)
        elif name in attentions:
            module.attn.packed = packed.get(name)
            model.online_hooks += _hooks(module, attentions[name])


def fill_head(model: nn.Module) -> None:
    """Give an output head of its own the embedding's weights: what a tied checkpoint, which has no head, means."""
    (head,), (embedding,) = _heads(model), _embeddings(model)
    head.weight.data.copy_(embedding.weight.data)
    head.quant_method.process_weights_after_loading(head)  # on CPU the product runs on a packed copy


def _hooks(attention: nn.Module, plan: AttentionPlan) -> list[RemovableHandle]:
    handles = []
    on_normed_key, on_attention = plan.on_normed_key, plan.on_attention
    if on_normed_key is not None:
        handles.append(attention.k_norm.register_forward_hook(lambda norm, inputs, keys: on_normed_key(keys)))
    if on_attention is not None:  # vLLM's models call it with queries, keys and values
        handles.append(attention.attn.register_forward_pre_hook(lambda attn, inputs: on_attention(*inputs)))
    return handles


def _plans(
    model: nn.Module, operators: Operators | None, cache_bits: int | None
) -> tuple[dict[str, Step | None], dict[str, AttentionPlan], dict[str, PackedPlan]]:
    """What happens to the input of each linear, fused as vLLM has it, around each attention, and over packed caches.

    By their names. Raises: ValueError naming the layer.
    """
    if operators is None and cache_bits is None:
        return {}, {}, {}
    operators = (operators or Operators()).to(next(model.parameters()).device)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LinearBase)}
    parts = {name: _parts(model, name) for name in linears}
    attentions = [name.removesuffix(f".{QKV}") for name in linears if name.endswith(QKV)]
    known = {part for fused in parts.values() for part in fused}
    unknown = [*(operators.linear_operators.keys() - known), *(operators.attention_operators.keys() - {*attentions})]
    if unknown:
        raise ValueError(f"operators for {min(unknown)!r}: rule: a decoder linear or an attention of the served model")
    for name, module in linears.items():
        if module.tp_size > 1:
            raise ValueError(f"{name}: {module.tp_size} devices hold parts of a row: rule: operators see it whole")
    inputs = {name: plan_linear(parts[name], module.input_size, operators) for name, module in linears.items()}
    shapes = {name: _geometry(model.get_submodule(name)) for name in attentions}
    if cache_bits is None:
        return inputs, {name: plan_attention(name, shapes[name], operators) for name in attentions}, {}
    halves = cache(partial(_rope_halves, dtype=next(model.parameters()).dtype))  # layers share one
    packed = {}
    for name in attentions:
        module = model.get_submodule(name)
        rope = module.rotary_emb
        if not rope.is_neox_style or rope.rotary_dim != module.head_dim:
            raise ValueError(f"{name}: RoPE of {rope.rotary_dim} numbers: rule: of all {module.head_dim}, in halves")
        packed[name] = plan_packed(name, shapes[name], operators, cache_bits, _key_bias(module), halves(rope))
    return inputs, {name: plan.around for name, plan in packed.items()}, packed


def _rope_halves(rope: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [positions, head_dim / 2]."""
    cos, sin = rope.cos_sin_cache.to(dtype).chunk(2, -1)
    return cos.contiguous(), sin.contiguous()


def _key_bias(attention: nn.Module) -> Tensor | None:
    projection = attention.qkv_proj
    first, width = (count * projection.head_size for count in (projection.num_heads, projection.num_kv_heads))
    return None if projection.bias is None else projection.bias.data[first : first + width].clone()


def _fused(model: nn.Module, packed: Mapping[str, Packed]) -> dict[str, Packed]:
    """Weights of linears as vLLM fuses them. Raises: ValueError for a linear of which only a part comes packed."""
    device = next(model.parameters()).device
    weights = {}
    for name in [name for name, module in model.named_modules() if isinstance(module, LinearBase)]:
        wanted = _parts(model, name)
        parts = [packed[part] for part in wanted if part in packed]
        if 0 < len(parts) < len(wanted):
            raise ValueError(f"{name}: packed in part: rule: what is multiplied together is packed together")
        if parts:
            weights[name] = joined(parts).to(device)
    return weights


def _parts(model: nn.Module, name: str) -> list[str]:
    """Checkpoint names of the linears that vLLM fuses into the linear `name`; its own if there are none."""
    parent, _, last = name.rpartition(".")
    return [f"{parent}.{part}" for part in getattr(model, "packed_modules_mapping", {}).get(last, [last])]


def _geometry(attention: nn.Module) -> Geometry:
    projection = attention.qkv_proj
    return Geometry(
        num_heads=projection.num_heads,
        num_kv_heads=projection.num_kv_heads,
        head_dim=projection.head_size,
        has_bias=projection.bias is not None,
        has_key_norm=hasattr(attention, "k_norm"),
    )


def _heads(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, ParallelLMHead)]


def _embeddings(model: nn.Module) -> list[nn.Module]:
    tables = (module for module in model.modules() if isinstance(module, VocabParallelEmbedding))
    return [module for module in tables if not isinstance(module, ParallelLMHead)]
