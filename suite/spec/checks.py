"""Rules that need more than one value: names that exist, sizes, budgets against lengths, duplicates, excludes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from suite.spec import fits
from suite.spec.configs import config_of
from suite.spec.errors import RuleError, nearest
from suite.spec.matrix import BenchmarkRef, Exclude, Generation, ModelRef
from suite.spec.methods import Bf16Params, MethodParams
from suite.spec.precision import PACKED_GROUP
from suite.spec.sources import check_source, local_path

Value = TypeVar("Value")
Report = Callable[..., None]  # (key_path, rule, hint, value)


@dataclass(frozen=True)
class Placed(Generic[Value]):
    """A value of a spec with where it stands: the table's key path, and that of each swept value in it."""

    value: Value
    path: str
    origin: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def at(self, *keys: str) -> str:
        """The key path of one key of this table, or of a table in it."""
        return self.origin.get(keys, ".".join((self.path, *keys)))


@dataclass(frozen=True)
class Parts:
    """The tables of a spec that could be read."""

    models: list[Placed[ModelRef]]
    methods: list[Placed[MethodParams]]
    benchmarks: list[Placed[BenchmarkRef]]
    excludes: list[Placed[Exclude]]
    generation: Generation | None  # None: it could not be read
    num_seeds: int


def check(parts: Parts, report: Report, complete: bool) -> None:
    """Report every broken rule. `complete`: every table could be read, so that "nothing matches" can be said."""
    _models(parts, report)
    _benchmarks(parts, report)
    _budgets(parts, report)
    complete = _methods(parts, report, complete) and complete
    _calibrations(parts, report)
    _packed(parts, report)
    _seeds(parts, report)
    _excludes(parts, report, complete)
    for model in parts.models:
        _against_config(model, parts, report)


def _models(parts: Parts, report: Report) -> None:
    seen: dict[str, str] = {}
    for model in parts.models:
        ref = model.value
        if ref.id in seen:
            report(model.at("id"), f"this model is there already, in {seen[ref.id]}", "keep it once", ref.id)
        seen.setdefault(ref.id, model.path)
        try:
            where = local_path(ref)
        except RuleError as error:
            report(model.at("id"), error.rule, error.hint, ref.id)
            continue
        if where is None and ref.revision is None:
            hint = f'add revision = "<commit>"; `git ls-remote https://huggingface.co/{ref.id} HEAD` prints it'
            report(
                f"{model.path}.revision",
                f"{ref.id} is no folder here but a Hub model: those are pinned to a commit",
                hint,
            )
        if where is not None and ref.revision is not None:
            hint = "remove the key: the bytes of its files are its identity"
            report(model.at("revision"), "a model on this machine has no revision", hint, ref.revision)


def _benchmarks(parts: Parts, report: Report) -> None:
    from suite import benchmarks

    seen: dict[str, str] = {}
    for benchmark in parts.benchmarks:
        ref = benchmark.value
        if ref.name in seen:
            report(
                benchmark.at("name"), f"this benchmark is there already, in {seen[ref.name]}", "keep it once", ref.name
            )
        seen.setdefault(ref.name, benchmark.path)
        if ref.name not in benchmarks.names():
            report(benchmark.at("name"), "unknown benchmark", nearest(ref.name, benchmarks.names()), ref.name)
        elif ref.num_samples is not None and ref.num_samples > benchmarks.size(ref.name):
            rule = f"{ref.name} has {benchmarks.size(ref.name)} questions"
            hint = "ask for at most that many, or leave the key out for all of them"
            report(benchmark.at("num_samples"), rule, hint, ref.num_samples)
        elif ref.data is not None and benchmarks.get(ref.name).embedded:
            report(benchmark.at("data"), f"{ref.name} is generated and reads no files", "remove the key", ref.data)
        elif ref.data is not None:
            try:
                benchmarks.identity(ref.name, ref.folder)
            except ValueError as error:
                report(benchmark.at("data"), str(error), "a path is relative to where the command runs", ref.data)
        if ref.name in benchmarks.names():
            _execution(benchmark, benchmarks.get(ref.name).executes_code, report)


def _execution(benchmark: Placed[BenchmarkRef], executes_code: bool, report: Report) -> None:
    """Programs that a model wrote are run where the spec says so, and nowhere else."""
    ref, key = benchmark.value, "execute_code"
    if executes_code and ref.execute_code is None:
        hint = f'allow it with {key} = "isolated": each runs in a sandbox of its own, or not at all'
        report(f"{benchmark.path}.{key}", f"{ref.name} executes the programs that the model writes", hint)
    elif not executes_code and ref.execute_code is not None:
        report(benchmark.at(key), f"{ref.name} executes no code", "remove the key", ref.execute_code)


def _budgets(parts: Parts, report: Report) -> None:
    if parts.generation is None:
        return
    lists = [(b.value.thinking_budgets, f"{b.path}.thinking_budgets") for b in parts.benchmarks]
    lists.append((parts.generation.thinking_budgets, "generation.thinking_budgets"))
    limit = parts.generation.max_tokens
    for budgets, path in lists:
        for i, budget in enumerate(budgets or ()):
            for key in ("min", "max"):
                tokens = getattr(budget, key)
                if tokens is not None and tokens >= limit:
                    hint = "lower it, or raise generation.max_tokens: thinking and answer share it"
                    report(f"{path}[{i}].{key}", f"leaves no room for an answer in max_tokens = {limit}", hint, tokens)


def _methods(parts: Parts, report: Report, complete: bool) -> bool:
    """Whether every model that a method is restricted to is in the spec."""
    ids = [model.value.id for model in parts.models]
    all_there = True
    for index, method in enumerate(parts.methods):
        params = method.value
        for i, model in enumerate(params.models or ()):
            if complete and model not in ids:
                all_there = False
                report(f"{method.path}.models[{i}]", "not a model of this spec", nearest(model, ids), model)
        for other in parts.methods[:index]:
            if other.value.identity() == params.identity() and _share_a_model(other.value, params):
                rule = f"the same variant stands in {other.at('precision')}: its cells would be counted twice"
                report(method.at("precision"), rule, "remove one, or change a parameter", str(params.precision))
                break
    return all_there


def _share_a_model(one: MethodParams, other: MethodParams) -> bool:
    return one.models is None or other.models is None or bool(set(one.models) & set(other.models))


def _packed(parts: Parts, report: Report) -> None:
    """What is served as codes has a kernel's groups, and there is something to serve so."""
    if parts.generation is None or not parts.generation.packed:
        return
    for method in parts.methods:
        precision = method.value.precision
        if precision.packs_weights and precision.group_size not in (None, PACKED_GROUP):
            rule = "packed weights have groups of 128 inputs, or one grid a row"
            report(method.at("precision"), rule, "use -g128, or generation.packed = false", str(precision))
    precisions = [method.value.precision for method in parts.methods]
    if precisions and not any(precision.packs_weights or precision.packs_cache for precision in precisions):
        rule = "no variant has weights or a cache of 3 or 4 bits"
        report("generation.packed", rule, "remove the key, or add such a precision", True)


def _seeds(parts: Parts, report: Report) -> None:
    if parts.generation is not None and parts.generation.temperature == 0 and parts.num_seeds > 1:
        rule = f"at temperature 0 the {parts.num_seeds} seeds give the same answers, counted {parts.num_seeds} times"
        report("generation.temperature", rule, "keep one seed, or raise the temperature", 0)


def _excludes(parts: Parts, report: Report, complete: bool) -> None:
    known = {
        "model": [model.value.id for model in parts.models],
        "method": sorted({method.value.name for method in parts.methods}),
        "precision": sorted({str(method.value.precision) for method in parts.methods}),
        "benchmark": [benchmark.value.name for benchmark in parts.benchmarks],
    }
    for exclude in parts.excludes:
        before = complete
        for key, values in known.items():
            wanted = getattr(exclude.value, key)
            if wanted is not None and complete and wanted not in values and not (key == "method" and wanted == "bf16"):
                report(exclude.at(key), f"no {key} of this spec is called so", nearest(wanted, values), wanted)
                before = False
        if before:
            _exclude_matches(exclude, parts, report)
    rows = [method.value for method in parts.methods]
    if complete and parts.benchmarks and rows and all(_left_out(parts, *cell) for cell in _cells(parts, rows)):
        report("exclude", "nothing is left of the matrix", "remove an exclude")


def _exclude_matches(exclude: Placed[Exclude], parts: Parts, report: Report) -> None:
    rows = [method.value for method in parts.methods]
    shown = {key: value for key, value in exclude.value if value is not None}
    if exclude.value.method == "bf16" or exclude.value.precision == "W16A16KV16":
        hint = "exclude the model or the benchmark without a method: that leaves out BF16 as well"
        report(exclude.path, "BF16 cannot be left out alone: every drop is against it", hint, shown)
    elif not any(exclude.value.matches(*cell) for cell in _cells(parts, [Bf16Params(), *rows])):
        report(
            exclude.path, "no cell of this spec has all of these at once", "correct it, or remove the exclude", shown
        )


def _cells(parts: Parts, rows: list[MethodParams]) -> list[tuple[ModelRef, MethodParams, BenchmarkRef]]:
    return [
        (model.value, row, benchmark.value)
        for model in parts.models
        for row in rows
        if row.models is None or model.value.id in row.models
        for benchmark in parts.benchmarks
    ]


def _left_out(parts: Parts, model: ModelRef, method: MethodParams, benchmark: BenchmarkRef) -> bool:
    return any(exclude.value.matches(model, method, benchmark) for exclude in parts.excludes)


def _against_config(model: Placed[ModelRef], parts: Parts, report: Report) -> None:
    """What is known of a model's config tells: its context length, its family, and whether each method fits it."""
    try:
        config = config_of(model.value)
    except ValueError as error:
        report(model.at("id"), f"config.json cannot be read: {error}", "write the model anew", model.value.id)
        return
    context = config.get("max_position_embeddings")
    if isinstance(context, int) and parts.generation is not None and parts.generation.max_tokens >= context:
        rule = f"{model.value.id} has a context of {context} tokens, prompt included"
        report("generation.max_tokens", rule, "lower it", parts.generation.max_tokens)
    methods = [
        method for method in parts.methods if method.value.quantizes and _meets(parts, model.value, method.value)
    ]
    unknown = fits.unknown_family(config) if methods else None
    if unknown is not None:
        report(model.at("id"), unknown.rule, unknown.hint, model.value.id)
    for method in methods:
        _calibration_fits(context, model.value, method, report)
        for misfit in fits.misfits(config, model.value, method.value):
            place = model if misfit.of_model else method
            report(place.at(misfit.key), misfit.rule, misfit.hint, misfit.value)


def _meets(parts: Parts, model: ModelRef, method: MethodParams) -> bool:
    """Whether any cell of the method on this model is left."""
    cells = [cell for cell in _cells(parts, [method]) if cell[0] == model]
    return any(not _left_out(parts, *cell) for cell in cells)


def _calibration_fits(context: Any, model: ModelRef, method: Placed[MethodParams], report: Report) -> None:
    calibration = method.value.calibration
    if calibration is not None and isinstance(context, int) and calibration.seq_len > context:
        rule = f"{model.id} has a context of {context} tokens"
        report(method.at("calibration", "seq_len"), rule, "lower it", calibration.seq_len)


def _calibrations(parts: Parts, report: Report) -> None:
    """Sources are known names, or files that are there."""
    for method in parts.methods:
        calibration = method.value.calibration
        if calibration is None:
            continue
        for key in ("source", "data"):
            value = getattr(calibration, key)
            try:
                check_source(value, of_problems=key == "data" and calibration.source == "self", named=key == "source")
            except RuleError as error:
                report(method.at("calibration", key), error.rule, error.hint, value)
