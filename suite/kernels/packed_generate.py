"""transformers' generate on packed weights and a packed cache: what the end-to-end timings run.

`pack_linears_` gives every linear of the decoder layers a 4- or 3-bit weight, rounded to nearest. `packed_cache` is a
cache that transformers' models fill and attention reads as it lies: keys after RoPE and values on a grid per token and
head. Prompts are attended to in full precision, as they come; after that each step reads the cache alone.
Not here: padding, prompts in several parts, static keys.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from suite.kernels import kv_cache
from suite.kernels.kv_append_quantize import kv_append_quantize_
from suite.kernels.kv_decode_attention import Pages, kv_decode_attention
from suite.kernels.packed_weight import GROUP, Packed, pack
from suite.kernels.wna16_matmul import wna16_matmul

NAME = "suite_packed"  # of the attention function in transformers
PAGE = 64


class PackedLinear(nn.Module):
    """A linear layer with a packed weight."""

    def __init__(self, weight: Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return wna16_matmul(x, self.weight, self.bias)


def grid_of(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, zero point) [outputs, groups] of a weight's asymmetric min-max grids of 128 inputs, in float32."""
    groups = weight.float().unflatten(-1, (-1, GROUP))  # [outputs, groups, 128]
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = (high - low).clamp(min=1e-5) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def round_to_nearest(weight: Tensor, bits: int) -> Packed:
    """A weight [outputs, inputs] on the grids of `grid_of`."""
    scale, zero = grid_of(weight, bits)
    steps = weight.float().unflatten(-1, (-1, GROUP)) / scale[..., None]
    codes = (torch.round(steps) + zero[..., None]).clamp(0, 2**bits - 1)
    return pack(codes.reshape(weight.shape).to(torch.uint8), scale, zero, bits)


def pack_linears_(model: Any, bits: int) -> None:
    """Replace the linears of the decoder layers of a transformers model."""
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, last = name.rpartition(".")
                packed = PackedLinear(round_to_nearest(module.weight.data, bits), module.bias)
                setattr(layer.get_submodule(parent), last, packed)


@dataclass
class Places:
    """Where the tokens of all layers go: sequence b has slots b * capacity and up."""

    batch: int
    capacity: int
    device: torch.device
    seen: int = 0
    new: Tensor = field(init=False)  # slots of the tokens of this step, [batch * tokens]
    pages: Pages = field(init=False)

    def __post_init__(self) -> None:
        count = self.capacity // PAGE
        table = torch.arange(self.batch * count, dtype=torch.int32, device=self.device).reshape(self.batch, count)
        self.pages = Pages(table, torch.zeros(self.batch, dtype=torch.int32, device=self.device), PAGE)

    def advance(self, tokens: int) -> None:
        """Room for so many more tokens of each sequence. Raises: ValueError if there is none."""
        if self.seen + tokens > self.capacity:
            raise ValueError(f"{self.seen + tokens} tokens in a cache for {self.capacity}: rule: ask for more room")
        first = torch.arange(self.batch, device=self.device)[:, None] * self.capacity
        self.new = (first + torch.arange(self.seen, self.seen + tokens, device=self.device)).flatten()
        self.seen += tokens
        self.pages.lengths.fill_(self.seen)


def packed_cache(model: Any, batch: int, capacity: int, bits: int) -> Any:
    """A cache for `generate(past_key_values=...)`; the model attends through it from now on (`detach` undoes that)."""
    from transformers.cache_utils import Cache, CacheLayerMixin
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    config, device = model.config, model.device
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    places = Places(batch, -(-capacity // PAGE) * PAGE, device)

    class Layer(CacheLayerMixin):
        """Of one decoder layer."""

        is_sliding = False

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index, self.is_initialized = index, True
            slots = places.batch * places.capacity
            self.keys_packed = kv_cache.empty(slots, heads, width, bits, device)
            self.values_packed = kv_cache.empty(slots, heads, width, bits, device)

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Nothing: there is room from the start."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Store [batch, kv_heads, tokens, head_dim]; what comes back is what is new, in full precision."""
            if self.index == 0:
                places.advance(key_states.shape[2])
            keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (key_states, value_states))
            kv_append_quantize_(keys, values, self.keys_packed, self.values_packed, places.new)
            return key_states, value_states

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """(length, offset) for a mask."""
            return places.seen + query_length, 0

        def get_seq_length(self) -> int:
            """Tokens stored."""
            return places.seen

        def get_max_length(self) -> int:
            """Tokens that fit."""
            return places.capacity

        get_max_cache_shape = get_max_length  # its name in transformers before 5.19

    layers = [Layer(index) for index in range(config.num_hidden_layers)]

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, scaling: float, **__: Any) -> tuple[Tensor, None]:
        if q.shape[2] == 1:
            own = layers[module.layer_idx]
            o = kv_decode_attention(q[:, :, 0], own.keys_packed, own.values_packed, places.pages, scale=scaling)
            return o[:, None], None
        o = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        return o.transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    model.config._attn_implementation = NAME
    return Cache(layers=layers)


def detach(model: Any) -> None:
    """Attend as transformers does on its own."""
    model.config._attn_implementation = "sdpa"
