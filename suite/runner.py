"""Runs a plan: skips what is stored, computes what is not, records every cell. The only place that catches exceptions.

    for each model: one pool of live engines (and one more for each width of packed caches)
    for each variant: calibrate -> quantize -> generate -> score -> record

Engines never wait for the runner: the next variant is quantized and queued while they generate, and what they have
finished is stored and scored meanwhile. The registry is written whenever a variant is done, from the store alone.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite import benchmarks, calibrating, identity, stages
from suite.calibrating import Calibrating, CalibrationError
from suite.engine import Completion, Request
from suite.plan import CalibrationSet, Cell, Plan, Variant, make_variant
from suite.spec import Bf16Params, ModelRef
from suite.store import Store

if TYPE_CHECKING:
    from suite.engine.pool import BatchResult, EnginePool, PoolStats
    from suite.progress import Progress

QuestionSet = tuple[str, int, Path | None]  # benchmark, number of questions, local copies
UNFINISHED = "unfinished"  # in the store: blocks of variants that are being quantized
PROMPT_TOKENS = 4096  # the longest prompt that is provided for beside max_tokens
Questions = dict[QuestionSet, list[benchmarks.Question]]


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result: the stage it failed in and the message."""

    stage: str
    message: str


@dataclass(frozen=True)
class Cost:
    """What one answer took: its share of its batch's engine seconds, and the memory of all engines then."""

    seconds: float
    peak_memory_gib: float
    engine: str


@dataclass
class VariantRun:
    """A variant under way: its pending cells with their requests, what is generated, and what is still in the queue."""

    variant: Variant
    requests: dict[Cell, list[Request]]
    submit: Callable[[stages.Batch], "Future[BatchResult]"]
    completions: dict[str, Completion] = field(default_factory=dict)
    futures: dict[Future["BatchResult"], stages.Batch] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)  # by request key


@dataclass
class Run:
    """One run of one plan over one store: what failed so far, and where progress goes."""

    plan: Plan
    store: Store
    progress: "Progress"
    workers: int | None = None
    failures: dict[str, Failure] = field(default_factory=dict)  # by cell fingerprint
    engine_stats: "list[PoolStats]" = field(default_factory=list)
    throughput: dict[str, float] = field(default_factory=dict)  # tokens/s by model fingerprint
    on_variant: Callable[[], object] = lambda: None  # called whenever the cells of a variant are settled

    def fail(self, cells: list[Cell], stage: str, error: BaseException) -> None:
        """Record the cells as failed; the others go on."""
        failure = Failure(stage, f"{type(error).__name__}: {error}")
        for cell in cells:
            self.failures[cell.fingerprint] = failure
        self.progress.failed(cells, stage, failure.message)


def execute(run: Run) -> None:
    """Bring every cell of the plan into the store, or into `run.failures`."""
    todo = _pending(run, run.plan.cells)
    run.progress.start(run.plan, todo)
    for model in dict.fromkeys(cell.variant.model for cell in todo):
        _run_model(run, [cell for cell in todo if cell.variant.model == model])


def _pending(run: Run, cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if run.store.open("score", cell.fingerprint) is None]


def _question_set(cell: Cell) -> QuestionSet:
    return cell.benchmark.name, cell.num_samples, cell.benchmark.folder


def _run_model(run: Run, todo: list[Cell]) -> None:
    """All cells of one model. One runner at a time: a second one on this store waits, and then finds the work done."""
    variant = todo[0].variant
    fingerprint = variant.model_fingerprint
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(run.store.lock("model", fingerprint, wait=False)):
            run.progress.note(f"another run works on {variant.model.id} in this store: waiting for it")
            stack.enter_context(run.store.lock("model", fingerprint))
            todo = _pending(run, todo)
        todo = [cell for cell in todo if _may_be_scored(run, cell)]
        wanted = calibrating.needed(run.store, (cell.variant for cell in todo))
        answers = any(each.self_generated for each in wanted)  # the model itself gives them, before anything else
        caches = {cell.cache_bits for cell in todo} | ({None} if answers else set())
        for bits in sorted(caches, key=lambda bits: bits or 0):
            _serve(run, variant.model, fingerprint, [cell for cell in todo if cell.cache_bits == bits], bits, wanted)
            wanted = []


def _may_be_scored(run: Run, cell: Cell) -> bool:
    """Whether programs in its answers, if any, can be executed here: known before the first of them is generated."""
    try:
        benchmarks.check_execution(cell.benchmark.name, cell.benchmark.execute_code)
    except Exception as error:
        run.fail([cell], "score", error)
        return False
    return True


def _serve(
    run: Run, model: ModelRef, fingerprint: str, todo: list[Cell], cache_bits: int | None, wanted: list[CalibrationSet]
) -> None:
    """The cells that one kind of engine serves, after the answers that calibrations wait for."""
    from suite.engine.pool import EnginePool
    from suite.engine.settings import EngineSettings

    try:
        checkpoint = identity.local_folder(model)
        context = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
        lengths = {calibrating.longest_answer(wanted, context), run.plan.spec.generation.max_tokens}
        settings = EngineSettings(
            max_model_len=min(context, max(lengths) + PROMPT_TOKENS),
            packed=run.plan.spec.generation.packed,
            cache_bits=cache_bits,
        )
        pool = EnginePool(str(checkpoint), run.workers, settings, run.progress.tokens)
    except Exception as error:
        run.fail(todo, "model", error)
        return
    with contextlib.closing(pool):
        pool.start()  # returns at once: the questions are read while the engines come up
        questions = _load_questions(run, todo)
        baseline = make_variant(model, Bf16Params(), fingerprint).fingerprint
        calibrations = Calibrating(
            run.store, run.progress, pool, baseline, checkpoint, context, _prompts(todo, questions)
        )
        calibrations.start(wanted)
        left = [cell for cell in todo if cell.fingerprint not in run.failures]
        calibrations.share(cell.variant for cell in left)
        _run_variants(run, pool, calibrations, questions, left)
        stats = pool.stats()
        run.engine_stats.append(stats)
        if stats.tokens:
            speed = stats.tokens * stats.num_workers / stats.generate_s
            run.throughput[fingerprint] = speed


def _prompts(todo: list[Cell], questions: Questions) -> dict[str, tuple[str, dict[str, str]]]:
    """Of every benchmark its identity and its questions' prompts, for a calibration's report."""
    names = dict.fromkeys(_question_set(cell) for cell in todo)
    return {
        name: (benchmarks.identity(name, folder), {q.id: q.prompt for q in questions[name, num_samples, folder]})
        for name, num_samples, folder in names
        if (name, num_samples, folder) in questions
    }


def _load_questions(run: Run, todo: list[Cell]) -> Questions:
    questions: Questions = {}
    for key in dict.fromkeys(_question_set(cell) for cell in todo):
        try:
            questions[key] = benchmarks.load(*key)
        except Exception as error:
            run.fail([cell for cell in todo if _question_set(cell) == key], "load", error)
    return questions


def _run_variants(
    run: Run, pool: "EnginePool", calibrations: Calibrating, questions: Questions, todo: list[Cell]
) -> None:
    """Keep the pool's queue filled while taking in what it has finished: answers, and traces to be calibrated on."""
    waiting = list(dict.fromkeys(cell.variant for cell in todo))
    active: list[VariantRun] = []
    while waiting or active or calibrations.futures:
        ready = next((variant for variant in waiting if calibrations.ready(variant)), None)
        if ready and sum(len(under_way.futures) for under_way in active) < 2 * pool.num_workers:
            waiting.remove(ready)
            begun = _begin(run, pool, calibrations, questions, [cell for cell in todo if cell.variant == ready])
            active += [begun] if begun else []
            continue
        under_way_now = [*calibrations.futures, *(f for under_way in active for f in under_way.futures)]
        done, _ = wait(under_way_now, return_when=FIRST_COMPLETED)
        for future in done & calibrations.futures.keys():
            calibrations.take(future)
        for under_way in active:
            for future in done & under_way.futures.keys():
                _store_batch(run, under_way, future)
        for settled in [under_way for under_way in active if not under_way.futures]:
            active.remove(settled)
            _finish(run, settled, questions)


def _begin(
    run: Run, pool: "EnginePool", calibrations: Calibrating, questions: Questions, cells: list[Cell]
) -> VariantRun | None:
    """Quantize a variant and queue the batches that are not stored. None if nothing of it can run."""
    variant = cells[0].variant
    try:
        model_dir = _quantized(run, variant, calibrations)
    except CalibrationError as error:
        run.fail(cells, "calibrate", error.__cause__ or error)
        return None
    except Exception as error:
        run.fail(cells, "quantize", error)
        return None
    planned = [cell for cell in run.plan.cells if cell.variant == variant and _question_set(cell) in questions]
    requests = {cell: stages.cell_requests(cell, questions[_question_set(cell)]) for cell in planned}

    def submit(batch: stages.Batch) -> "Future[BatchResult]":
        return pool.submit(model_dir, variant.fingerprint, list(batch.requests))

    begun = VariantRun(variant, {cell: requests[cell] for cell in cells}, submit)
    _recall(run, begun)
    wanted = {request.key for of_cell in begun.requests.values() for request in of_cell} - begun.completions.keys()
    for batch in stages.cut_batches(variant, requests):
        missing = batch.only(wanted)
        if missing.requests:
            begun.futures[submit(missing)] = missing
    return begun


def _quantized(run: Run, variant: Variant, calibrations: Calibrating) -> Path | None:
    """Folder of the variant's quantized model, made if it is not stored; None for the checkpoint itself."""
    if not variant.method.quantizes:
        return None
    with run.store.lock("quantize", variant.fingerprint):
        artifact = run.store.open("quantize", variant.fingerprint)
        if artifact is None:
            calibrated, statistics = calibrations.calibrated(variant), calibrations.statistics(variant)
            started = time.perf_counter()
            unfinished = run.store.root / UNFINISHED / variant.fingerprint[:16]
            data = variant.calibration.fingerprint if variant.calibration else None
            method = identity.plain({**variant.method.identity(), "calibration": data})
            inputs = {"model": variant.model_fingerprint, "method": method}
            with run.store.create("quantize", variant.name, variant.fingerprint, inputs) as draft:
                stages.quantize(variant, calibrations.checkpoint, draft.path, calibrated, unfinished, statistics)
                draft.measured["seconds"] = time.perf_counter() - started
            shutil.rmtree(unfinished, ignore_errors=True)
            artifact = run.store.open("quantize", variant.fingerprint)
            assert artifact is not None, "an artifact that was just written must be there"
    return artifact.path


def _recall(run: Run, begun: VariantRun) -> None:
    """Take every stored completion of the variant, whichever batch, spec or earlier run it came from."""
    for artifact in run.store.all("generate", f"{begun.variant.name}-{begun.variant.fingerprint[:8]}-"):
        if artifact.inputs["variant"] == begun.variant.fingerprint:
            _keep(begun, stages.read_completions(artifact.path / "completions.parquet"), artifact.measured)


def _keep(under_way: VariantRun, completions: list[Completion], measured: Mapping[str, Any]) -> None:
    tokens = max(sum(completion.output_tokens for completion in completions), 1)
    for completion in completions:
        share = measured["seconds"] * completion.output_tokens / tokens
        under_way.completions[completion.key] = completion
        under_way.costs[completion.key] = Cost(share, measured["peak_memory_gib"], measured["engine"])


def _store_batch(run: Run, under_way: VariantRun, future: Future["BatchResult"]) -> None:
    batch = under_way.futures.pop(future)
    try:
        result = future.result()
        measured = {"seconds": result.seconds, "peak_memory_gib": result.peak_memory_gib, "engine": result.engine}
        name = f"{batch.variant.name}-{batch.variant.fingerprint[:8]}"
        with run.store.create("generate", name, batch.fingerprint, batch.inputs) as draft:
            draft.measured.update(measured)
            stages.write_completions(draft.path / "completions.parquet", result.completions)
        _keep(under_way, result.completions, measured)
        run.progress.batch_done(batch, sum(completion.output_tokens for completion in result.completions))
    except Exception as error:
        keys = {request.key for request in batch.requests}
        parts = {cell: batch.only(keys & {r.key for r in of_cell}) for cell, of_cell in under_way.requests.items()}
        hit = {cell: part for cell, part in parts.items() if part.requests}
        if isinstance(error, ValueError) and len(hit) > 1:  # a request that cannot be served: whose is it?
            under_way.futures |= {under_way.submit(part): part for part in hit.values()}
        else:
            run.fail([cell for cell in hit if cell.fingerprint not in run.failures], "generate", error)


def _finish(run: Run, settled: VariantRun, questions: Questions) -> None:
    """Score the cells of a variant whose batches are all in."""
    for cell, requests in settled.requests.items():
        if cell.fingerprint in run.failures:
            continue
        try:
            samples = stages.score(cell, questions[_question_set(cell)], settled.completions)
            costs = [settled.costs[request.key] for request in requests]
            _store_samples(run, cell, samples, costs)
        except Exception as error:
            run.fail([cell], "score", error)
    run.on_variant()


def _store_samples(run: Run, cell: Cell, samples: list[dict[str, object]], costs: list["Cost"]) -> None:
    from suite import records

    inputs = {"variant": cell.variant.fingerprint, "benchmark": cell.benchmark.name, "budget": str(cell.budget)}
    with run.store.create("score", cell.name, cell.fingerprint, inputs) as draft:
        draft.measured["seconds"] = sum(cost.seconds for cost in costs)
        draft.measured["peak_memory_gib"] = max(cost.peak_memory_gib for cost in costs)
        draft.measured["engine"] = ", ".join(sorted({cost.engine for cost in costs}))
        records.write_samples(draft.path / "samples.parquet", records.sample_table(samples))
