"""The matrix of a spec: expand it, leave out what is excluded, give every part its fingerprint.

variant = model x method at one precision;   cell = variant x benchmark x thinking budget (its seeds are pooled)
calibration set = model x calibration: the tokens that all variants share which ask for the same
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from suite import benchmarks
from suite.calibration.documents import source_identity
from suite.calibration.traces import traces_identity
from suite.identity import fingerprint, model_identity
from suite.spec import BenchmarkRef, Bf16Params, Budget, Calibration, Generation, MethodParams, ModelRef, Spec

CALIBRATION_VERSION = 1  # raise it when the same documents give other windows


@dataclass(frozen=True)
class CalibrationSet:
    """Tokens that methods look at: a calibration, tokenized by a model and, if its source is "self", written by it."""

    model: ModelRef
    calibration: Calibration
    model_fingerprint: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Readable and fit for a folder. Not unique: the fingerprint is."""
        return _slug(self.model.short_name, str(self.calibration))

    @property
    def self_generated(self) -> bool:
        """Whether the model's own answers are needed first."""
        return self.calibration.source == "self"


@dataclass(frozen=True)
class Variant:
    """A model as one method leaves it. `fingerprint` covers the model's bytes, the parameters, the code's version."""

    model: ModelRef
    method: MethodParams
    model_fingerprint: str
    fingerprint: str
    calibration: CalibrationSet | None = None

    @property
    def name(self) -> str:
        """Readable and fit for a folder: "tiny-qwen2-rtn-W3A16KV16-g128-asymmetric". Not unique: the fingerprint is."""
        method = self.method
        default = type(method).model_fields["calibration"].default
        calibration = str(method.calibration) if method.calibration not in (None, default) else ""
        precision = "" if self.is_baseline else str(method.precision)
        return _slug(self.model.short_name, method.name, precision, method.label(), calibration)

    @property
    def is_baseline(self) -> bool:
        """Whether this is the model's BF16, which every drop is against."""
        return isinstance(self.method, Bf16Params)


@dataclass(frozen=True)
class Cell:
    """One row of the result: a variant on a benchmark under a thinking budget, over all seeds."""

    variant: Variant
    benchmark: BenchmarkRef
    budget: Budget
    seeds: tuple[int, ...]
    generation: Generation
    fingerprint: str

    @property
    def num_samples(self) -> int:
        """Questions asked, once per seed."""
        return self.benchmark.num_samples or benchmarks.size(self.benchmark.name)

    @property
    def packed(self) -> bool:
        """Whether it is served from codes: the spec asks for it, and the variant has weights or a cache to pack."""
        precision = self.variant.method.precision
        return self.generation.packed and (precision.packs_weights or precision.packs_cache)

    @property
    def cache_bits(self) -> int | None:
        """Bits of the codes that the engine keeps keys and values in; None: it keeps them as numbers."""
        precision = self.variant.method.precision
        return precision.kv_bits if self.generation.packed and precision.packs_cache else None

    @property
    def sampling(self) -> dict[str, Any]:
        """What bears on the text of an answer, beside variant and question.

        The cue and the "Wait" count only under a budget that uses them, packing only where it packs something.
        """
        generation, budget = self.generation, self.budget
        sampled = {
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "top_k": generation.top_k,
            "max_tokens": generation.max_tokens,
            "thinking_min": budget.min,
            "thinking_max": budget.max,
            "answer_cue": None if budget.max is None else generation.answer_cue,
            "wait": None if budget.min is None else generation.wait,
        }
        return sampled | ({"packed": True} if self.packed else {})

    @property
    def name(self) -> str:
        """Readable: variant, benchmark, and the budget if there is one."""
        budget = re.sub(r"\W+", "-", str(self.budget))
        return "-".join(part for part in (self.variant.name, self.benchmark.name, budget) if part)


@dataclass(frozen=True)
class Plan:
    """Everything a spec asks for. `variants` have at least one cell; `excluded` are (what, why)."""

    spec: Spec
    variants: tuple[Variant, ...]
    cells: tuple[Cell, ...]
    excluded: tuple[tuple[str, str], ...]

    @property
    def calibrations(self) -> tuple[CalibrationSet, ...]:
        """What the variants are calibrated on, each once."""
        sets = {v.calibration.fingerprint: v.calibration for v in self.variants if v.calibration is not None}
        return tuple(sets.values())


def make_plan(spec: Spec) -> Plan:
    """The variants (BF16 first per model, once) and cells (grouped per variant) of a spec.

    Raises: ValueError if a model cannot be identified, or if two models of the spec are the same bytes.
    """
    variants: list[Variant] = []
    cells: list[Cell] = []
    excluded: list[tuple[str, str]] = []
    common = _BenchmarkIdentities(spec)
    for variant in _all_variants(spec):
        own: list[Cell] = []
        for benchmark in spec.benchmarks:
            reason = next(
                (e.reason for e in spec.excludes if e.matches(variant.model, variant.method, benchmark)), None
            )
            if reason is None:
                own += [common.cell(variant, benchmark, budget) for budget in budgets_of(benchmark, spec.generation)]
            else:
                excluded.append((f"{variant.name} on {benchmark.name}", reason))
        variants += [variant] if own else []
        cells += own
    _check_distinct(variants)
    return Plan(spec, tuple(variants), tuple(cells), tuple(excluded))


def budgets_of(benchmark: BenchmarkRef, generation: Generation) -> tuple[Budget, ...]:
    """The thinking budgets of a benchmark: its own, else those of [generation]."""
    return benchmark.thinking_budgets or generation.thinking_budgets


def make_variant(model: ModelRef, method: MethodParams, model_fingerprint: str) -> Variant:
    """A variant with its fingerprint. `row_parallel_groups` counts only where it bears on the numbers.

    Raises: ValueError if local calibration data cannot be found.
    """
    groups = model.row_parallel_groups if method.row_sharded else 1
    calibration = calibration_set(model, method, model_fingerprint)
    content = None if calibration is None else calibration.fingerprint  # what the data are, not where they lie
    identity = fingerprint(
        stage="quantize",
        model=model_fingerprint,
        method={**method.identity(), "calibration": content},
        row_parallel_groups=groups,
    )
    sharded = (
        method if groups == method.row_parallel_groups else method.model_copy(update={"row_parallel_groups": groups})
    )
    return Variant(model, sharded, model_fingerprint, identity, calibration)


def calibration_set(model: ModelRef, method: MethodParams, model_fingerprint: str) -> CalibrationSet | None:
    """What a method looks at on this model; None if it looks at no data."""
    asked = method.calibration
    if asked is None:
        return None
    made_by_model = asked.source == "self"
    identity = fingerprint(
        stage="calibrate",
        version=CALIBRATION_VERSION,
        model=model_fingerprint,  # its tokenizer, and its answers
        source=traces_identity(asked, model) if made_by_model else source_identity(asked.source, asked.data),
        windows=[asked.num_samples, asked.seq_len, asked.draw, asked.seed],
    )
    return CalibrationSet(model, asked, model_fingerprint, identity)


def _all_variants(spec: Spec) -> Iterator[Variant]:
    quantized = [method for method in spec.methods if not isinstance(method, Bf16Params)]
    for model in spec.models:
        identity = model_identity(model)
        for method in (Bf16Params(), *quantized):
            if method.models is None or model.id in method.models:
                yield make_variant(model, method, identity)


class _BenchmarkIdentities:
    """Makes cells; asks for each benchmark's identity once, not once a cell."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.identities = {b.name: benchmarks.identity(b.name, b.folder) for b in spec.benchmarks}
        self.sizes = {b.name: b.num_samples or benchmarks.size(b.name) for b in spec.benchmarks}

    def cell(self, variant: Variant, benchmark: BenchmarkRef, budget: Budget) -> Cell:
        cell = Cell(variant, benchmark, budget, self.spec.seeds, self.spec.generation, fingerprint="")
        identity = fingerprint(
            stage="score",
            variant=variant.fingerprint,
            benchmark=self.identities[benchmark.name],
            num_samples=self.sizes[benchmark.name],
            seeds=sorted(cell.seeds),
            sampling=cell.sampling,
            scorer=benchmarks.SCORER_VERSION,
        )
        return replace(cell, fingerprint=identity)


def _check_distinct(variants: list[Variant]) -> None:
    seen: dict[str, Variant] = {}
    for variant in variants:
        other = seen.setdefault(variant.fingerprint, variant)
        if other is not variant:
            raise ValueError(
                f"models {other.model.id!r} and {variant.model.id!r} are the same bytes: their cells would be counted"
                " twice; keep one of them"
            )


def _slug(*parts: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", "-".join(part for part in parts if part)).strip("-")
