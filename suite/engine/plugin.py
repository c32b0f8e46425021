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
) -> None:
    """Raises: ValueError naming the layer of which model or cache cannot serve what `switch` gets. Changes nothing."""
    _plans(model, operators or Operators(), cache_bits)
    _packed_weights(model, packed or {})


def switch(
    model: nn.Module,
    operators: Operators | None,
    cache_bits: int | None,
    packed: Mapping[str, Packed] | None,
) -> None:
    """Serve with `operators`, or with none, from the next forward pass on. Raises: as `check`, changing nothing.

    `cache_bits`: of the packed cache that the engine was started with. `packed`: weights by their linear's name.
    """
    inputs, attentions = _plans(model, operators or Operators(), cache_bits)
    weights = _packed_weights(model, packed or {})
    for handle in model.__dict__.get("online_hooks", []):
        handle.remove()
    model.online_hooks = []
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            attention = attentions.get(name.removesuffix(f".{QKV}"))
            online = inputs[name], attention.around if isinstance(attention, PackedPlan) else attention
            module.online = None if online == (None, None) else online
            module.packed = weights.get(name)
        elif name in attentions:
            plan = attentions[name]
            if isinstance(plan, PackedPlan):
                module.attn.packed, plan = plan, plan.around
            model.online_hooks += _hooks(module, plan)


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
    model: nn.Module, operators: Operators, cache_bits: int | None
) -> tuple[dict[str, Step | None], dict[str, AttentionPlan | PackedPlan]]:
    """What happens to the input of each linear, fused as vLLM has it, and in each attention, by their names.

    Raises: ValueError naming the layer.
    """
    if cache_bits is None and operators == Operators():
        return {name: None for name, module in model.named_modules() if isinstance(module, LinearBase)}, {}
    operators = operators.to(next(model.parameters()).device)
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
    plans: dict[str, AttentionPlan | PackedPlan] = {}
    for name in attentions:
        module = model.get_submodule(name)
        if cache_bits is None:
            plans[name] = plan_attention(name, _geometry(module), operators)
        else:
            table = _rope_table(name, module, next(model.parameters()).dtype)
            plans[name] = plan_packed(name, _geometry(module), operators, cache_bits, _key_bias(module), table)
    return inputs, plans


def _rope_table(name: str, attention: nn.Module, dtype: torch.dtype) -> Tensor:
    """Cosines, then sines, [positions, head_dim]. Raises: ValueError if not the halves of whole heads are turned."""
    rope = attention.rotary_emb
    if not rope.is_neox_style or rope.rotary_dim != attention.head_dim:
        raise ValueError(f"{name}: RoPE of {rope.rotary_dim} numbers: rule: of all {attention.head_dim}, in halves")
    return rope.cos_sin_cache.to(dtype)


def _key_bias(attention: nn.Module) -> Tensor | None:
    projection = attention.qkv_proj
    first, width = (count * projection.head_size for count in (projection.num_heads, projection.num_kv_heads))
    return None if projection.bias is None else projection.bias.data[first : first + width].clone()


def _packed_weights(model: nn.Module, packed: Mapping[str, Packed]) -> dict[str, Packed]:
    """Weights of linears as vLLM fuses them. Raises: ValueError for a linear of which only a part comes packed."""
    device = next(model.parameters()).device
    weights = {}
    for name, module in model.named_modules():
        parts = (
            [packed[part] for part in _parts(model, name) if part in packed] if isinstance(module, LinearBase) else []
        )
        if parts and len(parts) < len(_parts(model, name)):
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
