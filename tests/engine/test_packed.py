"""Packed caches and weights: what they hold is what the other engine rounds to, so tokens are the same in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from suite import zoo
from suite.engine.engine import Engine
from suite.engine.packed_plan import Sequences, packed_weights, plan_packed
from suite.engine.plugin_plan import AttentionPlan, Geometry, plan_attention
from suite.kernels import packed_weight
from suite.kernels.kv_cache import token_bytes
from suite.kernels.kv_decode_attention import Pages
from suite.kernels.packed_weight import dequantize
from suite.methods import quantize_
from suite.modeling import (
    AttentionOperators,
    Hadamard,
    Kronecker,
    QuantizedWeight,
    load_checkpoint,
)
from suite.spec import precision
from suite.spec.methods import RtnParams
from suite.spec.precision import Precision

from .conftest import StartEngine
from .test_plugin import assert_as_near_as_transformers, compared, greedy, operators, same, swap
from .tiny_model import write_model
from .variants import Variant, after_rope, mxfp4, static_keys, variant, write_random

ATTENTION = "model.layers.0.self_attn"
Kind = Callable[[Variant], None]


def rotated(bits: int, symmetric: bool = False) -> Kind:
    """As QuaRot: keys rotated, both per token."""

    def kind(v: Variant) -> None:
        op = after_rope(bits, symmetric=symmetric)
        v.attention(AttentionOperators(rotation=Hadamard(), key=op, value=op))

    return kind


def symmetric(bits: int) -> Kind:
    """The same on grids around zero."""
    return rotated(bits, symmetric=True)


def learned(bits: int) -> Kind:
    """As FlatQuant: a rotation that is not orthogonal, and clips of each end, other ones for keys and values."""

    def kind(v: Variant) -> None:
        right = v.random("k.right", 32, 32)
        inverse = v.tensor("q.right", torch.linalg.inv(v.model.operator_tensors[right]).mT.contiguous())
        clips = {name: v.uniform(name, 1, 0.8, 1.0) for name in ("k.low", "k.high", "v.low", "v.high")}
        key, value = (after_rope(bits, clip_low=clips[f"{x}.low"], clip_high=clips[f"{x}.high"]) for x in "kv")
        v.attention(AttentionOperators(Kronecker(None, right), Kronecker(None, inverse), key, value))

    return kind


def static(bits: int) -> Kind:
    """As KVQuant*: keys on a range per channel before RoPE, and before the bias where there is one."""
    return partial(static_keys, bits=bits)


KINDS = [rotated, symmetric, learned, static]


@pytest.fixture(scope="module", params=["Qwen2", "Qwen3", "Llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_model(folder) if request.param == "Qwen2" else write_random(folder, request.param)


@pytest.fixture(scope="module")
def dense(checkpoint: Path, another_engine: StartEngine) -> Engine:
    """An engine that keeps numbers."""
    return another_engine(checkpoint, max_model_len=256)


@pytest.mark.engine
@pytest.mark.parametrize("bits", [4, 3])
def test_a_packed_cache_holds_what_is_rounded(
    checkpoint: Path, dense: Engine, another_engine: StartEngine, bits: int
) -> None:
    """The other engine's tokens and log-probabilities, prompts and what is generated, with operators that change.

    A number within float32's noise of a tie may fall the other way: then what follows is a step's effect away.
    """
    packed = another_engine(checkpoint, max_model_len=256, cache_bits=bits)
    for kind in KINDS:
        model = variant(checkpoint, kind(bits))
        swap(packed, model)
        found = greedy(packed)
        swap(dense, model)
        expected = greedy(dense)
        distance = torch.cat([(a[1] - b[1]).abs() for a, b in zip(found, expected, strict=True) if a[0] == b[0]])
        assert len(distance) > 0
        assert distance.median() < 1e-5
        against_transformers, differs = compared(found, model)
        assert against_transformers.median() < 1e-5
        assert not (differs & (against_transformers < 1e-4)).any()
        assert compared(found, load_checkpoint(checkpoint))[0].median() > 1e-3  # the operators did something
    swap(packed, variant(checkpoint, KINDS[0](bits)))
    assert same(greedy(packed), greedy(packed))


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_is_as_near_as_transformers(another_engine: StartEngine, kind: Callable[[int], Kind]) -> None:
    """In the type that cells run in."""
    path = zoo.model_path("tiny-qwen2")
    engine = another_engine(path, max_model_len=256, dtype="bfloat16", cache_bits=4)
    assert_as_near_as_transformers(engine, kind(4))


@pytest.mark.engine
def test_a_packed_cache_has_room_for_more_tokens(another_engine: StartEngine, tmp_path: Path) -> None:
    """In the same bytes: as many times more as a token's bytes are fewer."""
    path = write_model(tmp_path / "model")
    blocks = []
    for bits in (None, 4, 3):
        engine = another_engine(path, max_model_len=256, cache_bits=bits)
        config = engine._llm.vllm_config.cache_config
        blocks.append(config.num_gpu_blocks * config.block_size)
    in_float32 = 2 * 32 * 4
    assert blocks[1] / blocks[0] == pytest.approx(in_float32 / token_bytes(32, 4), rel=0.02)
    assert blocks[2] / blocks[0] == pytest.approx(in_float32 / token_bytes(32, 3), rel=0.02)


@pytest.mark.engine
def test_what_a_packed_cache_cannot_hold_is_refused(another_engine: StartEngine, tmp_path: Path) -> None:
    """Other bits, no rounding at all, MXFP4: an error that names the attention, and the engine serves on as before."""
    path = write_model(tmp_path / "model")
    engine = another_engine(path, max_model_len=256, cache_bits=4)
    swap(engine, variant(path, rotated(4)))
    before = greedy(engine)
    for kind, rule in ((rotated(3), "this engine's cache holds 4"), (mxfp4, "holds both, as integer codes")):
        with pytest.raises(ValueError, match=f"{ATTENTION}: keys.*rule: .*{rule}"):
            swap(engine, variant(path, kind))
    with pytest.raises(ValueError, match="holds both, as integer codes"):
        engine.swap()
    assert engine.usable
    assert same(greedy(engine), before)


@pytest.mark.engine
@pytest.mark.parametrize("text", ["W4A16KV16-g128", "W3A16KV16-g128", "W4A8KV16", "W3A16KV16"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_weights_are_the_weights(engine: Engine, tiny_model: Path, text: str, symmetric: bool) -> None:
    """Codes multiplied as they are: as the dequantized weights, in float32, and gone with the next swap."""
    model = load_checkpoint(tiny_model)
    quantize_(model, RtnParams(precision=Precision.parse(text), symmetric=symmetric))
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedWeight):  # not rounded to bfloat16, as codes are not
            model.weights[name] = replace(weight, dtype=torch.float32)
    codes = packed_weights(model)
    assert len(codes) == 7 * 4
    swap(engine, model)
    expected = greedy(engine)
    engine.swap(model.state_dict(), operators(model), codes)
    found = greedy(engine)
    engine.swap(model.state_dict(), operators(model))
    assert same(greedy(engine), expected)
    engine.swap()
    assert not same(found, expected)  # it is another product: sums come in another order
    distance = torch.cat([(a[1] - b[1]).abs() for a, b in zip(found, expected, strict=True) if a[0] == b[0]])
    assert len(distance) > 0
    assert distance.median() < 1e-5


def test_which_weights_are_packed(tiny_model: Path) -> None:
    """Those of 3 and 4 bits; a whole row's grid is each group's; other groups than of 128 are refused by name."""
    model = load_checkpoint(tiny_model)
    quantize_(model, RtnParams(precision=Precision.parse("W8A16KV16-g128")))
    assert packed_weights(model) == {}
    model = load_checkpoint(tiny_model)
    quantize_(model, RtnParams(precision=Precision.parse("W3A16KV16")))
    for name, packed in packed_weights(model).items():
        weight = model.weights[f"{name}.weight"]
        assert isinstance(weight, QuantizedWeight)
        assert torch.equal(dequantize(packed), replace(weight, dtype=torch.float32).dequantize())
    model = load_checkpoint(tiny_model)
    quantize_(model, RtnParams(precision=Precision.parse("W4A16KV16-g64")))
    with pytest.raises(ValueError, match=r"layers.0.*: grid .*rule: groups of 128"):
        packed_weights(model)


def test_plans_and_kernels_mean_the_same() -> None:
    """What a spec may ask to be packed is what can be: planning imports no kernel, so both say it."""
    assert (precision.PACKABLE, precision.PACKED_GROUP) == (packed_weight.BITS, packed_weight.GROUP)


SEQUENCES = [(40, 40), (33, 1), (1, 1), (70, 7), (64, 64), (5, 1)]  # tokens of each, and how many of them are new


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_single_tokens_in_one_pass(tiny_model: Path, kind: Callable[[int], Kind], bits: int) -> None:
    """Sequences of all kinds, on scattered pages of memory that held anything: as plain attention over rounded keys."""
    torch.manual_seed(0)
    model = variant(tiny_model, kind(bits))
    shape = Geometry(num_heads=4, num_kv_heads=2, head_dim=32, has_bias=True, has_key_norm=False)
    bias, angle = torch.randn(64), torch.randn(128, 16)
    plan = plan_packed(ATTENTION, shape, operators(model), bits, bias, (angle.cos(), angle.sin()))
    rounding = plan_attention(ATTENTION, shape, operators(model))
    pages = Pages(torch.randperm(18, dtype=torch.int32).view(6, 3), torch.tensor([n for n, _ in SEQUENCES]).int(), 32)
    buffer = torch.randint(0, 256, (18 * 32 * 2 * token_bytes(32, bits),), dtype=torch.uint8)
    projected = [torch.randn(n, (4 + 2 + 2) * 32) for n, _ in SEQUENCES]  # without the bias

    def through(around: AttentionPlan, qkv: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention gets them: what the model and a plan do before."""
        offset = torch.cat([torch.zeros(128), bias, torch.zeros(64)])
        qkv = around.on_projected(qkv.clone(), offset) if around.before_bias else qkv + offset
        q, k, v = qkv.split([128, 64, 64], -1)
        q, k = (turned(x.unflatten(-1, (-1, 32)), angle[at]).flatten(-2) for x in (q, k))
        q, k, v = around.on_attention(q, k, v) if around.on_attention else (q, k, v)
        return tuple(x.unflatten(-1, (-1, 32)) for x in (q, k, v))

    expected = []
    for (tokens, new), qkv in zip(SEQUENCES, projected, strict=True):
        q, k, v = (x.transpose(0, 1) for x in through(rounding, qkv, torch.arange(tokens)))
        expected.append(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1)[-new:])
    for old in (True, False):  # first what is there before, then the pass that is looked at
        spans = [(0, n - new) if old else (n - new, n) for n, new in SEQUENCES]
        at = torch.cat([torch.arange(*span) for span in spans])
        slots = torch.cat([pages.slots(b, last)[first:] for b, (first, last) in enumerate(spans)])
        starts = [0, *accumulate(last - first for first, last in spans)]
        lengths = torch.tensor([last for _, last in spans]).int()
        sequences = Sequences(replace(pages, lengths=lengths), starts, slots)
        rows = torch.cat([qkv[first:last] for qkv, (first, last) in zip(projected, spans, strict=True)])
        found = plan.attend(*through(plan.around, rows, at), buffer, sequences, 32**-0.5)
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-5, rtol=1e-4)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """RoPE of [tokens, heads, head_dim] by angles [tokens, head_dim / 2]."""
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
