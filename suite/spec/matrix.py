"""A spec: the question a TOML file asks, as frozen values. Rules that need one value alone are checked here."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from suite.spec.errors import RuleError, nearest
from suite.spec.methods import MethodParams

SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
PUBLISHED_TABLES = {"P1": 6, "P2": 5}  # arXiv:2504.04823 and arXiv:2601.14888: tables of results
COMMIT = re.compile(r"[0-9a-f]{40}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelRef(_Frozen):
    """A model: the name of an embedded one, a local folder, or a Hub id with the commit it is pinned to.

    `row_parallel_groups`: into how many shards the inputs of o_proj and down_proj are cut where activations are
    quantized (one scale a shard). A number of the experiment, never the number of devices.
    """

    id: str = Field(min_length=1)
    revision: str | None = None
    row_parallel_groups: int = Field(default=1, ge=1)

    @field_validator("revision")
    @classmethod
    def _pinned(cls, revision: str | None) -> str | None:
        if revision is not None and not COMMIT.fullmatch(revision):
            raise RuleError("a revision is a commit of 40 hexadecimal digits: branches and tags move", HOW_TO_PIN)
        return revision

    @property
    def short_name(self) -> str:
        """The last part of the id, for folder names and tables."""
        return Path(self.id).name


class Budget(_Frozen):
    """Bounds on thinking, in tokens. `max` forces the end of thinking, `min` replaces an earlier end by "Wait"."""

    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Budget":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise RuleError("min is above max", f"swap them: {{ min = {self.max}, max = {self.min} }}")
        return self

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in (("min", self.min), ("max", self.max)) if value is not None]
        return ",".join(parts)


class BenchmarkRef(_Frozen):
    """A benchmark, its first `num_samples` questions (None: all), and its own budgets (None: those of [generation]).

    `data`: a folder with local copies, `<data>/<name>/<split>.jsonl`, in place of the Hub (relative to where the
    command runs). `execute_code`: programs that the model writes may be run, "isolated" in namespaces of their own, or
    "unisolated" with nothing but limits; it bears on no number.
    """

    name: str = Field(min_length=1)
    data: str | None = Field(default=None, min_length=1)
    execute_code: Literal["isolated", "unisolated"] | None = None
    num_samples: int | None = Field(default=None, ge=1)
    thinking_budgets: tuple[Budget, ...] | None = Field(default=None, min_length=1)

    @property
    def folder(self) -> Path | None:
        """The folder of local copies."""
        return None if self.data is None else Path(self.data).expanduser()

    @field_validator("thinking_budgets")
    @classmethod
    def _distinct(cls, budgets: tuple[Budget, ...] | None) -> tuple[Budget, ...] | None:
        return None if budgets is None else _distinct_budgets(budgets)


class Generation(_Frozen):
    """How answers are sampled. Defaults: the papers' settings (temperature 0.6, top_p 0.95, 32768 tokens).

    `packed`: weights and caches of 3 and 4 bits are served as codes, as a deployment would, and not dequantized. That
    is another order of sums and one rounding less, so its cells are other cells.
    """

    temperature: float = Field(default=0.6, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=32768, ge=1)
    thinking_budgets: tuple[Budget, ...] = Field(default=(Budget(),), min_length=1)
    answer_cue: str = Field(default="</think>\n\n**Final Answer**\n\\boxed{", min_length=1)
    wait: str = Field(default="Wait", min_length=1)
    packed: bool = False

    @field_validator("thinking_budgets")
    @classmethod
    def _distinct(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        return _distinct_budgets(budgets)


class Exclude(_Frozen):
    """Cells left out of the matrix, and why. Every key given must match; at least one is."""

    reason: str = Field(min_length=1)
    model: str | None = None
    method: str | None = None
    precision: str | None = None
    benchmark: str | None = None

    @model_validator(mode="after")
    def _selects(self) -> "Exclude":
        if not any((self.model, self.method, self.precision, self.benchmark)):
            raise RuleError("an exclude names what it leaves out", "add model, method, precision or benchmark")
        return self

    def matches(self, model: ModelRef, method: MethodParams, benchmark: BenchmarkRef) -> bool:
        """Whether the cells of this variant on this benchmark are left out."""
        return (
            self.model in (None, model.id)
            and self.method in (None, method.name)
            and self.precision in (None, str(method.precision))
            and self.benchmark in (None, benchmark.name)
        )


class PaperRef(_Frozen):
    """The published table whose numbers stand beside ours."""

    name: Literal["P1", "P2"]
    table: str

    @model_validator(mode="after")
    def _published(self) -> "PaperRef":
        tables = [f"Table {number}" for number in range(1, PUBLISHED_TABLES[self.name] + 1)]
        if self.table not in tables:
            raise RuleError(f"{self.name} has no such table of results", nearest(self.table, tables), "table")
        return self


class Spec(_Frozen):
    """One question and the matrix that answers it. `methods` is expanded: one entry per precision and sweep value."""

    name: str
    question: str
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    models: tuple[ModelRef, ...] = Field(min_length=1)
    methods: tuple[MethodParams, ...] = Field(min_length=1)
    benchmarks: tuple[BenchmarkRef, ...] = Field(min_length=1)
    generation: Generation = Generation()
    excludes: tuple[Exclude, ...] = ()
    paper: PaperRef | None = None
    path: Path

    @field_validator("name")
    @classmethod
    def _slug(cls, name: str) -> str:
        if not SLUG.fullmatch(name):
            near = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:64]
            hint = f'did you mean "{near}"?' if SLUG.fullmatch(near) else 'a name such as "w4-reasoning"'
            raise RuleError("a name becomes file names: lower-case letters, digits, - and _, at most 64", hint)
        return name

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [seed for seed in seeds if not 0 <= seed < 2**31]:
            raise RuleError(f"a seed is at least 0 and below 2**31; {wrong[0]} is not", "42 and 43 do as well as any")
        if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise RuleError(f"seed {repeated[0]} is there twice: its answers would count twice", "keep each seed once")
        return seeds


HOW_TO_PIN = "`git ls-remote https://huggingface.co/<id> HEAD` prints the commit to pin"


def _distinct_budgets(budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
    for index, budget in enumerate(budgets):
        if budget in budgets[:index]:
            shown = str(budget) or "{}"
            raise RuleError(f"the budget {shown} is there twice: its cells would be counted twice", "keep it once")
    return budgets
