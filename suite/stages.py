"""The stages of a cell, each a function of inputs and parameters to what is stored. No stage knows of another's files.

quantize:  checkpoint x method             -> quantized model        (one per variant)
generate:  variant x requests              -> completions            (one per batch)
score:     cell's questions x completions  -> samples                (one per cell)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from suite import benchmarks
from suite.engine import Completion, Request, request_seed
from suite.identity import fingerprint
from suite.plan import Cell, Variant, expected_tokens, sampling

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


def quantize(variant: Variant, checkpoint: Path, folder: Path) -> None:
    """Quantize a checkpoint as the variant says and write the model under `folder`."""
    from suite.methods import quantize_
    from suite.modeling import load_checkpoint

    model = load_checkpoint(checkpoint)
    quantize_(model, variant.method)
    model.save(folder)


def cell_requests(cell: Cell, questions: Sequence[benchmarks.Question]) -> list[Request]:
    """One request for every question and seed of a cell. Its key has all that bears on the answer but the variant."""
    data, generation = benchmarks.identity(cell.benchmark.name), cell.generation
    asked = sampling(generation, cell.budget)
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
    by_id = {question.id: question for question in questions}
    asked = [(question.id, seed) for question in questions for seed in cell.seeds]
    rows = []
    for (sample_id, seed), request in zip(asked, cell_requests(cell, questions), strict=True):
        completion, question = completions[request.key], by_id[sample_id]
        judged = benchmarks.score(cell.benchmark.name, question, completion.text)
        rows.append(
            {"benchmark": cell.benchmark.name, "sample_id": sample_id, "seed": seed, "level": question.level}
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
