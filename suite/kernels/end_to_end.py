"""Where kernels meet the rest: decoding, GPTQ and a training step at the size of DeepSeek-R1-Distill-Qwen-1.5B.

Weights, tokens and activations are random: time does not depend on them. Each part first compares what the kernels give
with what they replace, then yields its numbers. Decoding runs transformers' own loop without graphs, so with few
sequences it is the launches that are timed.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from suite.kernels import packed_generate
from suite.kernels.fake_quantize import fake_quantize, fake_quantize_ref
from suite.kernels.gptq_block import LARGEST, gptq_block
from suite.kernels.packed_weight import GROUP, dequantize
from suite.kernels.timing import clock

SIZES = {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
PROMPT, NEW = 512, 48  # tokens
SAMPLES, SAMPLE_TOKENS = 128, 2048  # of GPTQ's calibration


@dataclass(frozen=True)
class Number:
    """One line of the report."""

    what: str
    setting: str
    value: float
    unit: str


def model_of(layers: int, device: str, **sizes: int) -> Any:
    """A random Qwen2 in bfloat16."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(**SIZES | {"num_hidden_layers": layers, "vocab_size": 151936} | sizes)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.eval()


def decoding(device: str, layers: int = 28, batches: tuple[int, ...] = (1, 16), **sizes: int) -> Iterator[Number]:
    """Milliseconds a token through `generate`, greedy: bfloat16, packed weights, and a packed cache with them."""
    model = model_of(layers, device, **sizes)
    yield from _decoding("BF16", model, batches)
    for bits in (4, 3):
        model = model_of(layers, device, **sizes)
        weights = [linear.weight.data for linear in _linears(model)]
        packed_generate.pack_linears_(model, bits)
        _compare_linears(model, weights)
        del weights
        yield from _decoding(f"W{bits}", model, batches)
        yield from _decoding(f"W{bits} KV{bits}", model, batches, bits)
        packed_generate.detach(model)
    del model
    _free()


def _linears(model: Any) -> list[nn.Linear]:
    return [m for layer in model.model.layers for m in layer.modules() if isinstance(m, nn.Linear)]


def _compare_linears(model: Any, weights: list[Tensor]) -> None:
    """Of the first layer, against the dequantized weight and the original one."""
    first = [m for m in model.model.layers[0].modules() if isinstance(m, packed_generate.PackedLinear)]
    for packed, weight in zip(first, weights, strict=False):
        x = torch.randn(3, weight.shape[1], device=weight.device, dtype=weight.dtype)
        dense = dequantize(packed.weight)
        expected = nn.functional.linear(
            x.double(), dense.double(), None if packed.bias is None else packed.bias.double()
        )
        off = (packed(x).double() - expected).norm() / expected.norm()
        assert off < 5e-3, f"a packed linear is {off:.2g} off its dequantized weight's"
        assert (dense - weight.float()).norm() < 0.3 * weight.float().norm()


def _decoding(what: str, model: Any, batches: tuple[int, ...], kv_bits: int | None = None) -> Iterator[Number]:
    for batch in batches:
        tokens = torch.randint(0, model.config.vocab_size, (batch, PROMPT), device=model.device)

        def run(new: int, tokens: Tensor = tokens, batch: int = batch) -> float:
            cache = {}
            if kv_bits is not None:
                cache = {"past_key_values": packed_generate.packed_cache(model, batch, PROMPT + NEW + 1, kv_bits)}
            _wait(model.device)
            begin = time.perf_counter()
            mask = torch.ones_like(tokens)
            out = model.generate(
                tokens,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                **cache,
            )
            _wait(model.device)
            assert out.shape == (batch, PROMPT + new)
            return time.perf_counter() - begin

        run(4)
        step_s = (run(NEW) - run(1)) / (NEW - 1)
        yield Number(f"decoding, {what}", f"{batch} x {PROMPT} + {NEW} tokens", 1e3 * step_s, "ms a step")
    if torch.cuda.is_available():
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        size += sum(m.weight.num_bytes for m in model.modules() if isinstance(m, packed_generate.PackedLinear))
        yield Number(f"weights, {what}", "all", size / 2**30, "GiB")


def gptq(device: str, hidden: int = SIZES["hidden_size"], wide: int = SIZES["intermediate_size"]) -> Iterator[Number]:
    """Seconds of one decoder layer, asymmetric 4 bits, groups of 128, order by activation."""
    kv = hidden // 6
    inputs = {
        "q, k, v": (hidden, hidden + 2 * kv),
        "o": (hidden, hidden),
        "gate, up": (hidden, 2 * wide),
        "down": (wide, hidden),
    }
    shared = {}
    hessian_s = round_s = 0.0
    for name, (width, outputs) in inputs.items():
        x = torch.randn(SAMPLE_TOKENS, width, device=device, dtype=torch.bfloat16)
        mixing = torch.randn(width, width, device=device, dtype=torch.bfloat16) / width**0.5
        x = x @ mixing * torch.rand(width, device=device, dtype=torch.bfloat16)  # inputs go together, as real ones do
        weight = torch.randn(outputs, width, device=device) * 0.02
        for _ in range(2):  # the first run compiles
            _wait(device)
            begin = time.perf_counter()
            hessian = torch.zeros(width, width, device=device)
            for _ in range(SAMPLES):
                add_outer_(hessian, x)
            hessian *= 2.0 / SAMPLES
            _wait(device)
            middle = time.perf_counter()
            rounded = gptq_rounded(weight, hessian)
            _wait(device)
            end = time.perf_counter()
        nearest = dequantize(packed_generate.round_to_nearest(weight, 4))
        shared[name] = (error(weight, rounded, hessian), error(weight, nearest, hessian))
        hessian_s, round_s = hessian_s + middle - begin, round_s + end - middle
    for name, (ours, nearest) in shared.items():
        assert ours < 0.9 * nearest, f"{name}: GPTQ errs by {ours:.3g}, rounding to nearest by {nearest:.3g}"
    yield Number("GPTQ, Hessians of a layer", f"{SAMPLES} x {SAMPLE_TOKENS} tokens", hessian_s, "s")
    yield Number("GPTQ, factors and rounding of a layer", "4 bits, groups of 128", round_s, "s")


def add_outer_(sums: Tensor, x: Tensor) -> None:
    """sums += x^T x: bfloat16 inputs, whose products are exact in float32, and float32 sums."""
    sums += torch.mm(x.T, x, out_dtype=torch.float32) if x.is_cuda else x.float().T @ x.float()


def gptq_rounded(weight: Tensor, hessian: Tensor) -> Tensor:
    """The weight rounded under a Hessian, as `suite.numerics.gptq` does it: inputs that matter first, static groups."""
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True).flip(0)  # the first to be rounded is last
    ordered = hessian[order][:, order]
    ordered.diagonal().add_(0.01 * hessian.diagonal().mean())
    lower = torch.linalg.cholesky(ordered)
    reach = (lower / lower.diagonal()).T.contiguous()
    rows = weight.T[order].contiguous()  # [inputs, outputs]
    scale, zero = (t.T.contiguous() for t in packed_generate.grid_of(weight, 4))
    group = order // GROUP
    codes, errors = torch.empty_like(rows), torch.empty_like(rows)
    for stop in range(len(rows), 0, -LARGEST):
        here = slice(max(0, stop - LARGEST), stop)
        moved = rows[here] + reach[here, stop:] @ errors[stop:]
        inner = reach[here, here].contiguous()
        gptq_block(moved, rows[here], inner, scale, zero, group[here], (0, 15), codes[here], errors[here])
    rounded = torch.empty_like(rows)
    rounded[order] = scale[group] * (codes - zero[group])
    return rounded.T


def error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T)."""
    missed = weight - rounded
    return float(((missed @ hessian) * missed).sum())


def training(device: str, layers: int = 2, tokens: int = 2048, **sizes: int) -> Iterator[Number]:
    """Milliseconds of a step (forward, backward, AdamW) of two layers and the head, 3-bit weights in groups of 128."""
    batch = torch.randint(0, 1000, (1, tokens), device=device)
    losses = {}
    roundings: dict[str, Any] = {"unrounded": None, "kernels": fake_quantize, "eager torch": fake_quantize_ref}
    for what, quantize in roundings.items():
        model = model_of(layers, device, **sizes).train()
        for linear in _linears(model) if quantize else []:
            linear.forward = partial(_rounded_product, linear, quantize)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def step(model: Any = model, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            loss: Tensor = model(batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        losses[what] = float(step())
        seconds = clock(step, captured=False)[0] if torch.device(device).type == "cuda" else 0.0
        yield Number(f"training step, {what}", f"{layers} layers, {tokens} tokens, W3", 1e3 * seconds, "ms")
        del model, optimizer, step
        _free()
    off = abs(losses["kernels"] - losses["eager torch"]) / losses["eager torch"]
    assert off < 1e-3, f"losses {losses}: the kernels' is {off:.2g} off the reference's"


def _rounded_product(linear: nn.Linear, quantize: Callable[..., Tensor], x: Tensor) -> Tensor:
    weight = quantize(linear.weight.view(-1, GROUP), 3).view_as(linear.weight)
    return nn.functional.linear(x, weight, linear.bias)


def _wait(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[str], Iterator[Number]]] = {"decoding": decoding, "gptq": gptq, "training": training}
