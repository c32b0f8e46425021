"""vLLM's side of `packed_plan`: an attention backend whose blocks hold codes, so that as many more of them fit.

vLLM allots blocks by `customize_spec`'s bytes and says where each token goes; what the bytes mean is up to the plan
that the plugin has put on the layer (`plugin.switch`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention import selector
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from suite.engine.packed_plan import PackedPlan, Sequences
from suite.kernels.kv_cache import token_bytes
from suite.kernels.kv_decode_attention import BLOCK, Pages


@contextmanager
def chosen(bits: int, device: str) -> Iterator[AttentionBackendEnum]:
    """The backend to ask for so that an engine, started in this context, keeps codes of `bits`.

    On a CPU vLLM offers no choice: there its own is replaced, and it forgets which one it had chosen.
    """
    backend = AttentionBackendEnum.CPU_ATTN if device == "cpu" else AttentionBackendEnum.CUSTOM
    register_backend(backend, f"{__name__}.{BACKENDS[bits].__name__}")
    selector._cached_get_attn_backend.cache_clear()
    try:
        yield backend
    finally:
        backend.clear_override()
        selector._cached_get_attn_backend.cache_clear()


@dataclass
class PackedMetadata(AttentionMetadata):
    """Of one forward pass."""

    sequences: Sequences
    num_tokens: int


class PackedMetadataBuilder(AttentionMetadataBuilder[PackedMetadata]):
    """Once a forward pass, for all layers."""

    def __init__(self, spec: AttentionSpec, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(spec, layer_names, vllm_config, device)
        self.block_size = spec.block_size

    def build(
        self, common_prefix_len: int, common: CommonAttentionMetadata, fast_build: bool = False
    ) -> PackedMetadata:
        """Sequences as the plan takes them: tables no wider than the longest needs."""
        count, tokens = common.num_reqs, common.num_actual_tokens
        blocks = -(-common.max_seq_len // self.block_size)
        table = common.block_table_tensor[:count, :blocks].contiguous()
        pages = Pages(table, common.seq_lens[:count], self.block_size)
        starts = common.query_start_loc_cpu[: count + 1].tolist()
        return PackedMetadata(Sequences(pages, starts, common.slot_mapping[:tokens]), tokens)


class PackedAttentionImpl(AttentionImpl[PackedMetadata]):
    """Runs the layer's plan."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        asked = (alibi_slopes, sliding_window, logits_soft_cap, kv_sharing_target_layer_name)
        if any(asked) or attn_type != "decoder":
            raise ValueError(
                f"attention with {asked}, {attn_type}: rule: over a packed cache, plain causal attention alone"
            )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads, kv_cache_dtype

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: PackedMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """[tokens, heads, head_dim] into `output`. Raises: RuntimeError if no variant has been swapped in yet."""
        if attn_metadata is None:  # vLLM measures memory
            return output.zero_()
        plan: PackedPlan | None = getattr(layer, "packed", None)
        if plan is None:
            raise RuntimeError("this engine keeps a packed cache: rule: it serves variants that round keys and values")
        count = attn_metadata.num_tokens
        output[:count] = plan.attend(
            query[:count], key[:count], value[:count], kv_cache, attn_metadata.sequences, self.scale
        )
        return output


class Kv4Backend(AttentionBackend):
    """Codes of 4 bits."""

    bits: ClassVar[int] = 4
    forward_includes_kv_cache_update = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float32]

    @staticmethod
    def get_name() -> str:
        """What vLLM calls it."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PackedAttentionImpl]:
        """What computes."""
        return PackedAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PackedMetadataBuilder]:
        """What prepares."""
        return PackedMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Pages of a multiple of the tokens that a kernel takes at a time."""
        return [MultipleOf(BLOCK)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Each layer's bytes in a row."""
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Codes and grids in place of numbers."""
        return replace(spec, dtype=torch.uint8, state_content_bytes=token_bytes(spec.head_size, cls.bits))


class Kv3Backend(Kv4Backend):
    """Codes of 3 bits."""

    bits = 3


BACKENDS: dict[int, type[Kv4Backend]] = {4: Kv4Backend, 3: Kv3Backend}
