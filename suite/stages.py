"""The stages of a cell, each a function of inputs and parameters to what is stored. No stage knows of another's files.

traces:    checkpoint x training problems  -> completions            (one per batch; where methods ask for them)
calibrate: source x tokenizer              -> windows of tokens      (one per model x calibration)
statistics: checkpoint x tokens            -> Hessians, block by block (where several variants share them)
quantize:  checkpoint x method x tokens    -> quantized model        (one per variant)
generate:  variant x requests              -> completions            (one per batch)
score:     cell's questions x completions  -> samples                (one per cell)
"""

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite import benchmarks
from suite.calibration.documents import documents
from suite.calibration.traces import problems, trace_requests, transcripts
from suite.engine import Completion, Request, request_seed
from suite.identity import fingerprint
from suite.plan import CalibrationSet, Cell, Variant, expected_tokens, expected_trace_tokens
from suite.spec.methods import GptqParams

if TYPE_CHECKING:
    from torch import Tensor

COMPLETION_COLUMNS = (
    "prompt_tokens",
    "thinking_tokens",
    "answer_tokens",
    "output_tokens",
    "finish_reason",
    "forced_waits",
    "looped",
    "text",
)
# One batch is what a killed run may have to repeat. It is cut from the whole plan of a variant, never from what is left
# of it, so that an interrupted batch is repeated with the very same neighbours.
BATCH_SIZE = 256
TRACE_BATCH_SIZE = 64  # long answers: a batch is what a killed run repeats
TOKENS, REPORT = "tokens.safetensors", "report.json"


@dataclass(frozen=True)
class Batch:
    """Requests of one variant that are generated together and stored as one artifact."""

    variant: Variant
    requests: tuple[Request, ...]
    expected: tuple[int, ...]  # tokens that each is expected to take; bears on no number

    def only(self, keys: Collection[str]) -> "Batch":
        """The batch without the requests that are not among `keys`."""
        kept = [(r, tokens) for r, tokens in zip(self.requests, self.expected, strict=True) if r.key in keys]
        return Batch(self.variant, tuple(r for r, _ in kept), tuple(tokens for _, tokens in kept))

    @property
    def inputs(self) -> dict[str, object]:
        """What the batch's fingerprint is made from."""
        return {"variant": self.variant.fingerprint, "requests": [request.key for request in self.requests]}

    @property
    def fingerprint(self) -> str:
        """Identity of the completions: the variant's bytes and every request."""
        return fingerprint(**self.inputs)


@dataclass(frozen=True)
class TraceBatch:
    """Training problems that a model answers together, stored as one artifact."""

    name: str  # for its folder
    model_fingerprint: str
    requests: tuple[Request, ...]
    expected_tokens: int  # bears on no number

    @property
    def inputs(self) -> dict[str, object]:
        """What the batch's fingerprint is made from."""
        return {"model": self.model_fingerprint, "traces": [request.key for request in self.requests]}

    @property
    def fingerprint(self) -> str:
        """Identity of the answers: the model's bytes and every request."""
        return fingerprint(**self.inputs)


def trace_batches(wanted: CalibrationSet, context: int) -> list[TraceBatch]:
    """What a model answers for a calibration on its own answers, in batches of at most `TRACE_BATCH_SIZE`.

    Raises: OSError if the problems cannot be had; ValueError if there are too few.
    """
    requests = trace_requests(problems(wanted.calibration, wanted.model), context)
    cuts = range(0, len(requests), TRACE_BATCH_SIZE)
    hands = [tuple(requests[cut : cut + TRACE_BATCH_SIZE]) for cut in cuts]
    name, key, each = wanted.model.short_name, wanted.model_fingerprint, expected_trace_tokens(wanted)
    return [TraceBatch(name, key, hand, each * len(hand)) for hand in hands]


def calibrate(
    wanted: CalibrationSet,
    checkpoint: Path,
    folder: Path,
    requests: Sequence[Request] = (),
    completions: Mapping[str, Completion] | None = None,
) -> None:
    """Write the tokens of a calibration set and its report under `folder`.

    `requests` and their `completions` are the model's own answers, where the source is "self".
    Raises: OSError if a public set cannot be had; ValueError if there is too little text.
    """
    from safetensors.numpy import save_file

    from suite.calibration.report import calibration_report
    from suite.calibration.windows import draw

    tokenizer = _tokenizer(checkpoint)
    answers = completions or {}
    texts = transcripts(requests, answers, tokenizer) if wanted.self_generated else documents(wanted.calibration)
    drawn = draw(wanted.calibration, texts, lambda text: tokenizer.encode(text, add_special_tokens=False))
    truncated = sum(answer.finish_reason == "length" for answer in answers.values()) if wanted.self_generated else None
    save_file({"tokens": drawn.tokens}, folder / TOKENS)
    write_report(folder, calibration_report(wanted.calibration, drawn, truncated))


def calibration_overlaps(
    calibrated: Path, checkpoint: Path, questions: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """A stored calibration's report with its overlap with benchmarks (name -> id -> prompt)."""
    from safetensors.numpy import load_file

    from suite.calibration.report import overlaps, with_overlaps

    tokenizer = _tokenizer(checkpoint)
    windows = (tokenizer.decode(row) for row in load_file(calibrated / TOKENS)["tokens"].tolist())
    return with_overlaps(json.loads((calibrated / REPORT).read_text()), overlaps(windows, questions))


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """A calibration's report as JSON under `folder`."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")


def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tokenizer.model_max_length = sys.maxsize  # whole sets are tokenized at once: no warning that they are long
    return tokenizer


def quantize(
    variant: Variant,
    checkpoint: Path,
    folder: Path,
    calibrated: Path | None = None,
    unfinished: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Quantize a checkpoint as the variant says and write the model under `folder`.

    `calibrated`: the folder of the variant's calibration set, where its method looks at data. `unfinished`: where
    finished blocks are kept until the model is saved, to go on from after an interruption. `statistics`: what
    `collect_statistics` wrote of that set, in place of the data.
    """
    from suite.methods import gptq, quantize_
    from suite.modeling import load_checkpoint

    model = load_checkpoint(checkpoint)
    if statistics is not None:
        assert isinstance(variant.method, GptqParams), "only GPTQ rounds from statistics"
        gptq.quantize_(model, variant.method, statistics=statistics)
    else:
        tokens = None if calibrated is None else _read_tokens(calibrated)
        quantize_(model, variant.method, tokens, checkpoint=unfinished)
    model.save(folder)


def collect_statistics(checkpoint: Path, calibrated: Path, folder: Path) -> None:
    """Write what the full-precision model's linears see of a calibration set: it serves GPTQ at every width."""
    from suite.modeling import load_checkpoint
    from suite.modeling.sequential import collect

    collect(load_checkpoint(checkpoint), _read_tokens(calibrated), folder)


def takes_statistics(variant: Variant) -> bool:
    """Whether the variant depends on its data through statistics of the full-precision model alone."""
    return isinstance(variant.method, GptqParams) and not variant.method.propagate_error


def _read_tokens(calibrated: Path) -> "Tensor":
    from safetensors.torch import load_file

    return load_file(calibrated / TOKENS)["tokens"]


def cell_requests(cell: Cell, questions: Sequence[benchmarks.Question]) -> list[Request]:
    """One request for every question and seed of a cell. Its key has all that bears on the answer but the variant."""
    data, generation = benchmarks.identity(cell.benchmark.name, cell.benchmark.folder), cell.generation
    asked = cell.sampling
    return [
        Request(
            key=fingerprint(benchmark=data, sample=question.id, seed=seed, sampling=asked)[:32],
            prompt=question.prompt,
            seed=request_seed(seed, cell.benchmark.name, question.id),
            max_tokens=generation.max_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
            thinking_min=cell.budget.min,
            thinking_max=cell.budget.max,
            answer_cue=generation.answer_cue,
            wait=generation.wait,
        )
        for question in questions
        for seed in cell.seeds
    ]


def cut_batches(variant: Variant, requests: Mapping[Cell, Sequence[Request]]) -> list[Batch]:
    """All requests of a variant in batches of at most `BATCH_SIZE`, dealt so that each has its share of long ones.

    Longest expected first, because the longest traces decide when a batch ends.
    """
    weighed = [
        (round(expected_tokens(cell) / len(of_cell)), index, request)
        for index, (cell, of_cell) in enumerate(requests.items())
        for request in of_cell
    ]
    weighed.sort(key=lambda item: (-item[0], item[1]))
    count = -(-len(weighed) // BATCH_SIZE)
    hands = [weighed[start::count] for start in range(count)]
    return [Batch(variant, tuple(r for _, _, r in hand), tuple(tokens for tokens, _, _ in hand)) for hand in hands]


def score(
    cell: Cell, questions: Sequence[benchmarks.Question], completions: Mapping[str, Completion]
) -> list[dict[str, object]]:
    """The cell's samples, one row for every question and seed, judged by the benchmark's own metric."""
    ref, by_id = cell.benchmark, {question.id: question for question in questions}
    asked = [(question.id, seed) for question in questions for seed in cell.seeds]
    rows = []
    for (sample_id, seed), request in zip(asked, cell_requests(cell, questions), strict=True):
        completion, question = completions[request.key], by_id[sample_id]
        judged = benchmarks.score(ref.name, question, completion.text, execute_code=ref.execute_code)
        rows.append(
            {"benchmark": ref.name, "sample_id": sample_id, "seed": seed, "level": question.level}
            | {"thinking_min": cell.budget.min, "thinking_max": cell.budget.max}
            | {name: getattr(completion, name) for name in COMPLETION_COLUMNS}
            | {"truncated": completion.finish_reason == "length", "gold": question.gold}
            | asdict(judged)
        )
    return rows


def write_completions(path: Path, completions: Iterable[Completion]) -> None:
    """Completions as parquet, one row each."""
    import pandas as pd

    pd.DataFrame([asdict(completion) for completion in completions]).to_parquet(path, index=False)


def read_completions(path: Path) -> list[Completion]:
    """What `write_completions` wrote."""
    import pandas as pd

    return [Completion(*row) for row in pd.read_parquet(path).itertuples(index=False, name=None)]
