"""Online operators in the live engine: transformers' tokens and log-probabilities in float32, switched at will."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from suite import zoo
from suite.engine.engine import Engine
from suite.engine.plugin_plan import Operators
from suite.engine.pool import EnginePool
from suite.modeling import Hadamard, LinearOperators, QuantizedModel, dense, load_checkpoint
from suite.modeling.adapter import to_transformers

from .conftest import StartEngine
from .test_engine import requests
from .variants import (
    KINDS,
    Variant,
    diagonals,
    hadamards,
    kroneckers,
    static_keys,
    variant,
    without_rounding,
    write_random,
)

pytestmark = pytest.mark.engine

PROMPTS = ["What is 3+4?", "b=2;a=b*7;a?", "Is 91 prime? Say why."]
LENGTH = 16
Greedy = list[tuple[list[int], torch.Tensor]]


@pytest.fixture(scope="module", params=["tiny-qwen2", "Qwen3", "Llama"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, and a random one of each other family."""
    if request.param == "tiny-qwen2":
        return zoo.model_path(request.param)
    return write_random(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def served(checkpoint: Path, another_engine: StartEngine) -> Engine:
    """An engine of that checkpoint."""
    return another_engine(checkpoint, max_model_len=256)


@pytest.fixture(scope="module")
def bfloat16(another_engine: StartEngine) -> Engine:
    """An engine of the embedded model in bfloat16."""
    return another_engine(zoo.model_path("tiny-qwen2"), max_model_len=256, dtype="bfloat16")


def operators(model: QuantizedModel) -> Operators:
    """As the engine takes them."""
    return Operators(model.linear_operators, model.attention_operators, model.operator_tensors)


def swap(engine: Engine, model: QuantizedModel) -> None:
    """Serve a quantized model."""
    engine.swap(model.state_dict(), operators(model))


def same(one: Greedy, other: Greedy) -> bool:
    """The same tokens and, bit for bit, the same log-probabilities."""
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def greedy(engine: Engine) -> Greedy:
    """Prompt and greedy continuation of every prompt, and the log-probability of each token but the first."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    sampling = SamplingParams(
        temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=0, prompt_logprobs=0, detokenize=False
    )
    for i, prompt in enumerate(PROMPTS):
        engine._llm.add_request(str(i), tokens_input(engine._prompt(prompt)), sampling)
    results = {}
    while engine._llm.has_unfinished_requests():
        for result in engine._llm.step():
            if result.finished:
                tokens = [*result.prompt_token_ids, *result.outputs[0].token_ids]
                given = [*result.prompt_logprobs[1:], *result.outputs[0].logprobs]
                found = [entry[token].logprob for entry, token in zip(given, tokens[1:], strict=True)]
                results[int(result.request_id)] = (tokens, torch.tensor(found))
    return [results[i] for i in range(len(PROMPTS))]


@torch.no_grad()
def reference(found: Greedy, model: QuantizedModel, dtype: torch.dtype) -> torch.Tensor:
    """Log-probabilities of transformers for the same tokens and all others, [tokens of all prompts, vocabulary]."""
    module = to_transformers(model, dtype)
    return torch.cat(
        [torch.log_softmax(module(torch.tensor([tokens])).logits[0, :-1].float(), -1) for tokens, _ in found]
    )


def compared(
    found: Greedy, model: QuantizedModel, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """(how far each token's log-probability is from transformers', whether it was generated and not its choice)."""
    expected = reference(found, model, dtype)
    tokens = torch.cat([torch.tensor(tokens[1:]) for tokens, _ in found])
    generated = torch.cat([torch.arange(len(tokens)) >= len(tokens) - LENGTH for _, tokens in found])
    distance = torch.cat([logprobs for _, logprobs in found]) - expected.gather(-1, tokens[:, None])[:, 0]
    return distance.abs(), generated & (expected.argmax(-1) != tokens)


def assert_as_near_as_transformers(engine: Engine, kind: Callable[[Variant], None]) -> None:
    """A bfloat16 engine is as near to the float32 model as transformers in bfloat16 is."""
    model = variant(engine.model_path, kind)
    swap(engine, model)
    found = greedy(engine)
    exact, rounded = (reference(found, model, dtype) for dtype in (torch.float32, torch.bfloat16))
    tokens = torch.cat([torch.tensor(tokens[1:]) for tokens, _ in found])[:, None]
    error = (rounded - exact).gather(-1, tokens).abs().mean()
    assert compared(found, model)[0].mean() < 2 * error + 0.01


def test_without_operators_it_is_plain_transformers(served: Engine, checkpoint: Path) -> None:
    """The plugin is there, and does nothing."""
    distance, differs = compared(greedy(served), load_checkpoint(checkpoint))
    assert distance.max() < 1e-4
    assert not differs.any()


@pytest.mark.parametrize("kind", [hadamards, kroneckers, diagonals])
def test_transforms_equal_transformers(served: Engine, checkpoint: Path, kind: Callable[[Variant], None]) -> None:
    """Where nothing is rounded: prompts, and what is generated with the cache, every token."""
    model = without_rounding(variant(checkpoint, kind))
    swap(served, model)
    distance, differs = compared(greedy(served), model)
    assert distance.max() < 1e-4
    assert not differs.any()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_equals_transformers(served: Engine, checkpoint: Path, kind: Callable[[Variant], None]) -> None:
    """Every operator of every family. Where a number lies within float32's noise of a tie, it may fall the other way.

    Then what follows it is a step's effect away; so most tokens are held to 1e-4, and the rest to a small effect.
    """
    model = variant(checkpoint, kind)
    swap(served, model)
    found = greedy(served)
    distance, differs = compared(found, model)
    assert distance.median() < 1e-5
    assert (distance < 1e-4).float().mean() > 0.6
    assert distance.max() < 0.5
    assert not (differs & (distance < 1e-4)).any()
    assert compared(found, load_checkpoint(checkpoint))[0].median() > 1e-3  # the operators did something


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_as_transformers(bfloat16: Engine, kind: Callable[[Variant], None]) -> None:
    """In the type that cells run in."""
    assert_as_near_as_transformers(bfloat16, kind)


def test_operators_come_and_go(served: Engine, checkpoint: Path) -> None:
    """On, others, off, on: each time the very same tokens and log-probabilities, whatever was served before."""
    first, second = variant(checkpoint, kroneckers), variant(checkpoint, static_keys)
    served.swap()
    seen = [greedy(served)]
    for model in (first, second, None, first, None, second):
        swap(served, model) if model is not None else served.swap()
        seen.append(greedy(served))
    assert same(seen[0], seen[3])
    assert same(seen[0], seen[5])
    assert same(seen[1], seen[4])
    assert same(seen[2], seen[6])
    assert not same(seen[0], seen[1])
    assert not same(seen[1], seen[2])


def test_a_head_of_its_own_comes_and_goes(another_engine: StartEngine, tmp_path: Path) -> None:
    """Tied to untied and back: a fresh engine's tokens each time; the embedding is not the head's."""
    tied = write_random(tmp_path / "tied", "Qwen3")
    model = variant(tied, hadamards)
    embedding = dense(model.weights["model.embed_tokens.weight"])
    generator = torch.Generator().manual_seed(1)
    model.weights["lm_head.weight"] = (embedding + 0.1 * torch.randn(embedding.shape, generator=generator)).bfloat16()
    shutil.copytree(tied, tmp_path / "untied")
    save_file(dict(model.state_dict()), tmp_path / "untied" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "untied" / "config.json").write_text(json.dumps(config))
    model.config = config

    engine, fresh = (another_engine(tmp_path / name, max_model_len=256) for name in ("tied", "untied"))
    before = greedy(engine)
    swap(engine, model)
    after = greedy(engine)
    fresh.swap(None, operators(model))
    assert same(after, greedy(fresh))
    assert compared(after, model)[0].median() < 1e-5
    engine.swap()
    assert same(greedy(engine), before)
    assert not same(before, after)


def test_a_stored_variant_is_served_by_the_workers(
    engine: Engine, pool: EnginePool, tiny_model: Path, tmp_path: Path
) -> None:
    """With its operators, beside the checkpoint: completions as in this process."""
    model = variant(tiny_model, static_keys)
    model.save(tmp_path)
    batch = requests(4)
    jobs = [pool.submit(folder, str(folder), batch) for folder in (tmp_path, None, tmp_path, None)]
    plain = engine.generate(batch)
    swap(engine, model)
    with_operators = engine.generate(batch)
    engine.swap()
    assert [job.result().completions for job in jobs] == [with_operators, plain] * 2
    assert plain != with_operators


def test_what_does_not_fit_changes_nothing(engine: Engine, pool: EnginePool, tiny_model: Path, tmp_path: Path) -> None:
    """Unknown names, tensors that do not fit: an error that names the layer, and the engine serves on as before."""
    before = engine.generate(requests(2))
    for name in ("model.layers.4.mlp.down_proj", "model.layers.0.self_attn", "lm_head"):
        with pytest.raises(ValueError, match=f"{name}'.*rule: a decoder linear or an attention"):
            engine.swap(None, Operators({name: LinearOperators(Hadamard())}))
    model = variant(tiny_model, diagonals)
    model.operator_tensors["scale"] = torch.ones(7)
    with pytest.raises(ValueError, match=r"mlp.gate_proj.*'scale' has shape \(7,\): rule: \(128,\)"):
        swap(engine, model)
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"mlp.gate_proj.*'scale' has shape"):
        pool.submit(tmp_path, "misfit", requests(1)).result()
    assert engine.usable
    assert engine.generate(requests(2)) == before


def test_the_plugin_travels_to_other_processes() -> None:
    """It is part of vLLM's configuration, which workers get as a pickle; nothing is registered."""
    from suite.engine.plugin import OnlineConfig

    assert type(pickle.loads(pickle.dumps(OnlineConfig()))) is OnlineConfig


def test_numba_may_be_there_before_the_engine(engine: Engine) -> None:
    """vLLM's start looks into every module, and used to end where numba's library had been loaded."""
    import numba  # noqa: F401
    from llvmlite.binding import ffi
    from vllm.triton_utils.dispatcher import _rebind_kernels

    from suite.engine.engine import _make_scannable

    ffi.lib._fntab.pop("__dict__", None)
    _make_scannable()
    _rebind_kernels([])
