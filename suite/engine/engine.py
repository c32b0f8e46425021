"""One live vLLM engine in this process: weights are swapped in place, requests are generated in batches.

A swap takes tens of milliseconds where a fresh engine takes many seconds, and its output equals the fresh engine's
token for token (tests/engine/test_engine.py, float32). Every request samples with a generator of its own seed, so its
output depends neither on the order nor on the other requests of the batch, up to how bfloat16 kernels round at other
batch sizes.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.engine import Completion, Request
from suite.engine.budget import BudgetRule, BudgetState
from suite.engine.lengths import is_looped, thinking_length
from suite.engine.settings import EngineSettings, engine_arguments, environment

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams

    from suite.engine.plugin_plan import Operators
    from suite.kernels.packed_weight import Packed

THINK, END_THINK = "<think>", "</think>"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PROGRESS_INTERVAL_S = 0.25


class Engine:
    """Serves the model in the folder `model_path`. Starting imports vLLM and loads the weights. One a process.

    Raises: ValueError if `model_path` holds no checkpoint.
    """

    def __init__(self, model_path: str | Path, settings: EngineSettings | None = None) -> None:
        self.model_path = Path(model_path)
        self.settings = settings or EngineSettings()
        self._shapes = checkpoint_shapes(self.model_path)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        os.environ.update(environment(self.settings))
        import torch
        from transformers import AutoTokenizer

        torch.set_num_threads(self.settings.threads)
        self._llm = _start_vllm(self.model_path, self.settings)
        self._broken = ""
        self._tokenizer: Any = AutoTokenizer.from_pretrained(self.model_path, local_files_only=True)
        self._stop = _stop_tokens(self.model_path, self._tokenizer)
        self._think = self._token(THINK)
        self._end = self._token(END_THINK)
        self._prompts: dict[str, list[int]] = {}

    def swap(
        self,
        weights: Iterable[tuple[str, torch.Tensor]] | None = None,
        operators: Operators | None = None,
        packed: Mapping[str, Packed] | None = None,
    ) -> None:
        """Serve `weights` (names and shapes of the checkpoint, all of them) with `operators`, online ones.

        None: the checkpoint's weights, no operators. An output head that the weights do not have is the embedding; one
        that they have is served, also where the checkpoint has none. Linears named in `packed` multiply by those codes.
        Raises: ValueError for operators that this model cannot serve, which changes nothing, and for names or shapes
        that are missing, unknown or different. Those are found only as they are loaded: the engine is then of no use
        any more.
        """
        from suite.engine import plugin

        self._check_usable()
        bits = self.settings.cache_bits
        (fused,) = self._llm.apply_model(partial(plugin.check, operators=operators, cache_bits=bits, packed=packed))
        stored = checkpoint_tensors(self.model_path) if weights is None else weights
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _checked(stored, self._shapes)})
            self._llm.apply_model(partial(plugin.switch, operators=operators, cache_bits=bits, fused=fused))
            self._llm.reset_prefix_cache()
        except BaseException as error:
            self._broken = f"a swap failed half way: {error}"
            raise

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """Completions in the order of `requests`; `on_progress(tokens, finished)` is called now and then.

        Raises: ValueError for a request that cannot be served as it stands (length, budget), before any is generated.
        """
        self._check_usable()
        prompts = [self._prompt(r.prompt) for r in requests]
        rules = [self._rule(r) for r in requests]
        parameters = [self._parameters(*p) for p in zip(requests, prompts, rules, strict=True)]
        outputs = self._run(prompts, parameters, on_progress)
        return [self._completion(*p) for p in zip(requests, prompts, rules, outputs, strict=True)]

    def close(self) -> None:
        """Free the model. Idempotent."""
        if self._llm is not None:
            self._llm.engine_core.shutdown()
            self._llm = None
            self._broken = "it is closed"

    @property
    def usable(self) -> bool:
        """False once a swap failed half way, or after `close`."""
        return not self._broken

    def _check_usable(self) -> None:
        if self._broken:
            raise RuntimeError(f"this engine is of no use any more: {self._broken}; remedy: start another one")

    def _token(self, text: str) -> int | None:
        """Id of `text` if it is one token, else None."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    def _prompt(self, message: str) -> list[int]:
        if message not in self._prompts:
            self._prompts[message] = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        return self._prompts[message]

    def _rule(self, request: Request) -> BudgetRule | None:
        if request.thinking_min is None and request.thinking_max is None:
            return None
        if self._end is None:
            raise ValueError(
                f"{request.key}: a thinking budget needs {END_THINK} as one token; this tokenizer has none"
            )
        cue, wait = (
            tuple(self._tokenizer.encode(text, add_special_tokens=False)) for text in (request.answer_cue, request.wait)
        )
        if cue[:1] != (self._end,):
            raise ValueError(f"{request.key}: answer_cue {request.answer_cue!r}: rule: it starts with {END_THINK}")
        rule = BudgetRule(request.thinking_min, request.thinking_max, wait, cue, self._stop)
        needed = max((rule.min or 0) + 1, 0 if rule.max is None else rule.max + len(cue) + 1)
        if request.max_tokens < needed:
            raise ValueError(
                f"{request.key}: max_tokens={request.max_tokens} with thinking min={rule.min}, max={rule.max}: rule: "
                f"room for the budget, the answer cue ({len(cue)} tokens) and an answer; remedy: at least {needed}"
            )
        return rule

    def _parameters(self, request: Request, prompt: list[int], rule: BudgetRule | None) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        limit = self._llm.model_config.max_model_len
        if len(prompt) + request.max_tokens > limit:
            raise ValueError(
                f"{request.key}: {len(prompt)} prompt tokens + max_tokens={request.max_tokens} > {limit}: rule: both "
                f"fit into the model's length; remedy: max_tokens <= {limit - len(prompt)}"
            )
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k or 0,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=list(self._stop),
            extra_args=None if rule is None else rule.to_extra_args(),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _run(
        self,
        prompts: list[list[int]],
        parameters: list[SamplingParams],
        on_progress: Callable[[int, int], None] | None,
    ) -> list[tuple[list[int], str]]:
        """(output tokens, finish reason) of each prompt."""
        from vllm.inputs.engine import tokens_input

        outputs: dict[int, tuple[list[int], str]] = {}
        tokens, reported_at = 0, time.monotonic()
        try:
            for i, (prompt, sampling) in enumerate(zip(prompts, parameters, strict=True)):
                self._llm.add_request(str(i), tokens_input(prompt), sampling)
            while self._llm.has_unfinished_requests():
                for result in self._llm.step():
                    outputs[int(result.request_id)] = (
                        list(result.outputs[0].token_ids),
                        result.outputs[0].finish_reason,
                    )
                    tokens += len(result.outputs[0].token_ids)
                if on_progress and time.monotonic() - reported_at >= PROGRESS_INTERVAL_S:
                    on_progress(tokens + self._unfinished_tokens(), len(outputs))
                    reported_at = time.monotonic()
        except BaseException:
            self._llm.abort_request([str(i) for i in range(len(prompts)) if i not in outputs])
            raise
        if on_progress:
            on_progress(tokens, len(outputs))
        return [outputs[i] for i in range(len(prompts))]

    def _unfinished_tokens(self) -> int:
        states = self._llm.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def _completion(
        self, request: Request, prompt: list[int], rule: BudgetRule | None, output: tuple[list[int], str]
    ) -> Completion:
        tokens, finish_reason = output
        assert finish_reason in ("stop", "length"), finish_reason
        written = tokens[:-1] if finish_reason == "stop" else tokens
        thinking = thinking_length(prompt, written, self._think, self._end)
        ended = thinking < len(written) and written[thinking] == self._end
        marks = 0  # </think> and the forced cue: neither thinking nor answer
        waits = 0
        if ended:
            marks = len(rule.cue) if rule is not None and thinking == rule.max else 1
        if rule is not None:
            state = BudgetState(rule, tokens)
            state.next()
            waits = state.waits
        return Completion(
            key=request.key,
            text=self._tokenizer.decode(written, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            prompt_tokens=len(prompt),
            thinking_tokens=thinking,
            answer_tokens=max(0, len(written) - thinking - marks),
            output_tokens=len(tokens),
            finish_reason=finish_reason,
            forced_waits=waits,
            looped=finish_reason == "length" and is_looped(tokens),
        )


def checkpoint_shapes(model_path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors checkpoint, from the files' headers.

    Raises: ValueError if the folder holds none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _checkpoint_files(model_path):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def checkpoint_tensors(model_path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a safetensors checkpoint, one tensor in memory at a time. Raises: as `checkpoint_shapes`."""
    from safetensors import safe_open

    for file in _checkpoint_files(model_path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)


def _checkpoint_files(model_path: Path) -> list[Path]:
    index = model_path / "model.safetensors.index.json"  # where it lists files, others beside them are copies
    listed = json.loads(index.read_text())["weight_map"].values() if index.is_file() else []
    files = sorted({model_path / name for name in listed} or model_path.glob("*.safetensors"))
    if not (model_path / "config.json").is_file() or not files:
        raise ValueError(
            f"model {str(model_path)!r}: rule: a local folder with config.json and *.safetensors; remedy: download the "
            "model first, or name an embedded one"
        )
    return files


def _checked(
    weights: Iterable[tuple[str, torch.Tensor]], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on `weights`, all of them. vLLM itself would keep the old tensor where a name is missing, and only warn.

    Where the checkpoint has no output head (it is tied to the embedding), the engine has one all the same: it gets
    the one that the weights bring, else the embedding.
    """
    tied = HEAD not in shapes and EMBEDDING in shapes
    expected = {**shapes, HEAD: shapes[EMBEDDING]} if tied else shapes
    missing = set(expected)
    embedding = None
    for name, tensor in weights:
        if name not in expected:
            raise ValueError(f"weight {name!r}: rule: a name of the checkpoint, which has {len(shapes)} others")
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"weight {name!r} has shape {tuple(tensor.shape)}: rule: the checkpoint's, {expected[name]}"
            )
        missing.discard(name)
        if name == EMBEDDING:
            embedding = tensor
        yield name, tensor
    if tied and missing == {HEAD} and embedding is not None:
        missing.clear()
        yield HEAD, embedding
    if missing:
        names = sorted(missing & shapes.keys())
        raise ValueError(f"weights {names} are missing: rule: a swap brings every tensor of the checkpoint")


def _stop_tokens(model_path: Path, tokenizer: Any) -> tuple[int, ...]:
    """End-of-sequence tokens: the tokenizer's and those of generation_config.json."""
    stops = {tokenizer.eos_token_id} - {None}
    file = model_path / "generation_config.json"
    listed = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    return tuple(sorted(stops | set(listed if isinstance(listed, list) else [] if listed is None else [listed])))


def _start_vllm(model_path: Path, settings: EngineSettings) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from suite.engine import plugin
    from suite.engine.processor import ThinkingBudgetProcessor

    _make_scannable()
    _register_model_class(model_path)
    arguments = engine_arguments(model_path, settings)
    with contextlib.ExitStack() as stack:
        if settings.cache_bits is not None:
            from suite.engine import packed_attention

            chosen = packed_attention.chosen(settings.cache_bits, settings.device)
            arguments["attention_backend"] = stack.enter_context(chosen)
        config = EngineArgs(**arguments, logits_processors=[ThinkingBudgetProcessor]).create_engine_config()
        llm = LLMEngine.from_vllm_config(plugin.configured(config), disable_log_stats=arguments["disable_log_stats"])
    if HEAD not in checkpoint_shapes(model_path):
        llm.apply_model(plugin.fill_head)  # the engine's head is its own, see `engine_arguments`
    return llm


def _make_scannable() -> None:
    """vLLM 0.32 looks into whatever any module holds, by its `__dict__`; where numba was imported before, it trips over
    llvmlite's stand-in for its library, which takes every name for a function's."""
    if "llvmlite.binding.ffi" in sys.modules:
        sys.modules["llvmlite.binding.ffi"].lib._fntab["__dict__"] = {}


def _register_model_class(model_path: Path) -> None:
    """Import the model's class here. vLLM would start a process that imports everything again to inspect it."""
    from vllm import ModelRegistry

    for architecture in json.loads((model_path / "config.json").read_text()).get("architectures", []):
        registered = ModelRegistry.models.get(architecture)
        if registered is not None and hasattr(registered, "load_model_cls"):
            ModelRegistry.register_model(architecture, registered.load_model_cls())
