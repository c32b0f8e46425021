"""The network as it is trained: the Qwen2 architecture, no more than a decoder forward pass, with Hugging Face's names.

    x <- x + Attention(RMSNorm(x));   x <- x + SwiGLU(RMSNorm(x));   logits = RMSNorm(x) E^T   (tied embedding E)

Parameter names are those of `Qwen2ForCausalLM`, so the state dict is the checkpoint. Kept apart from transformers'
class because training on two cores needs joined projections and a loss on counted positions only; a test holds the two
together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.zoo.tokenizer import MAX_LENGTH, PAD, token_ids
from suite.zoo.traces import END

RMS_EPS = 1e-6
ROPE_THETA = 1_000_000.0
# K bias on the slowest RoPE pair of each head, as real Qwen2 has: a K grid per token must cover it, one per channel
# need not.
KEY_BIAS = 20.0


@dataclass(frozen=True)
class Shape:
    """Sizes. Inputs of all linears are multiples of 128, so that group size 128 divides them."""

    hidden: int = 128
    layers: int = 4
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 2

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        ids = token_ids()
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": len(ids),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_LENGTH,
            "rms_norm_eps": RMS_EPS,
            "rope_theta": ROPE_THETA,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "use_cache": True,
            "dtype": "bfloat16",
            "pad_token_id": ids[PAD],
            "bos_token_id": None,
            "eos_token_id": ids[END],
        }


def rope_tables(head_dim: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, ``[*positions.shape, head_dim]``, float32; the halves of a head are rotated against each other."""
    frequencies = ROPE_THETA ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE; `x` is ``[batch, heads, seq, head_dim]``, the tables broadcast against it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + RMS_EPS)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with biased q, k, v."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_dim = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden)
        self.k_proj = nn.Linear(shape.hidden, kv_dim)
        self.v_proj = nn.Linear(shape.hidden, kv_dim)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: ``[batch, heads or kv_heads, seq, head_dim]``."""
        batch, seq, _ = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        joint = F.linear(x, weight, bias).view(batch, seq, -1, self.shape.head_dim).transpose(1, 2)
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        turned = rotate(joint[:, : heads + kv_heads], cos, sin)
        return turned[:, :heads], turned[:, heads:], joint[:, heads + kv_heads :]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        repeats = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mixed = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous(), is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(len(token_ids()), shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)


class Network(nn.Module):
    """The whole model; its state dict is a `Qwen2ForCausalLM` checkpoint with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)

    @property
    def blocks(self) -> list[Block]:
        """The decoder layers."""
        return [layer for layer in self.model.layers if isinstance(layer, Block)]

    def hidden(self, ids: Tensor) -> Tensor:
        """Final hidden states of ``ids [batch, seq]``."""
        x = self.model.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)
        cos, sin = (table.to(x.dtype) for table in rope_tables(self.shape.head_dim, positions))
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))


def initialize_(network: Network, seed: int) -> None:
    """Set all parameters in place from `seed`: fan-in scaled normals, residual outputs at zero, the key bias."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            continue
        with torch.no_grad():
            if name.endswith(("bias", "o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                std = 0.05 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    half = network.shape.head_dim // 2
    for block in network.blocks:
        bias = block.self_attn.k_proj.bias.data.view(network.shape.kv_heads, -1)
        bias[:, half - 1], bias[:, -1] = KEY_BIAS, -KEY_BIAS
