"""A quantized model as data: one form for methods, engine, transformers, training and export.

- weights: integer codes with their grid (`QuantizedWeight`), or a plain tensor where a layer is not quantized;
- online operators, declared per linear and per attention: what happens at run time to activations, queries, keys and
  values.

A method only produces this. Whoever serves it must apply every operator that is declared, or refuse.
On disk: `model.safetensors` (tensors) + `quantized.json` (grids and operators).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from suite.numerics.quantize import Grid, dequantize

TENSORS, DESCRIPTION = "model.safetensors", "quantized.json"


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer codes [out, in] and their grid; `dtype` is the one the model computes in."""

    codes: Tensor
    grid: Grid
    dtype: torch.dtype

    def dequantize(self) -> Tensor:
        """The weight on its grid: computed in float32, cast to the model's dtype."""
        return dequantize(self.codes, self.grid).to(self.dtype)


@dataclass(frozen=True)
class Hadamard:
    """Input times a normalized Hadamard matrix in `blocks` equal blocks along the input (row_parallel_groups)."""

    blocks: int = 1


@dataclass(frozen=True)
class Kronecker:
    """Input, seen as [left, right], times a matrix from each side; the names are tensors of the model's file."""

    left: str
    right: str


@dataclass(frozen=True)
class Diagonal:
    """Input times a vector; the name is a tensor of the model's file."""

    scale: str


@dataclass(frozen=True)
class ActivationQuantizer:
    """Rounds a linear's input: per token, in `groups` equal parts, with a clip ratio on the range."""

    bits: int
    symmetric: bool = False
    groups: int = 1
    clip: float = 1.0


@dataclass(frozen=True)
class KeyValueQuantizer:
    """Rounds keys or values. `place` is where; static ranges per channel are tensors of the model's file."""

    bits: int
    place: Literal["before_bias", "before_rope", "after_rope"]
    granularity: Literal["static_channel", "token_head"]
    symmetric: bool = False
    clip: float = 1.0
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class LinearOperators:
    """What happens to one linear's input before the matrix product, in this order: transform, then quantizer."""

    transform: Hadamard | Kronecker | Diagonal | None = None
    activation: ActivationQuantizer | None = None


@dataclass(frozen=True)
class AttentionOperators:
    """What happens inside one attention: a rotation of queries and keys after RoPE, and the two cache quantizers."""

    rotation: Hadamard | Kronecker | None = None
    key: KeyValueQuantizer | None = None
    value: KeyValueQuantizer | None = None


@dataclass
class QuantizedModel:
    """Every tensor of a model by its checkpoint name, and the online operators by module name."""

    config: dict[str, Any]
    weights: dict[str, Tensor | QuantizedWeight]
    linear_operators: dict[str, LinearOperators] = field(default_factory=dict)
    attention_operators: dict[str, AttentionOperators] = field(default_factory=dict)
    operator_tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight_only(self) -> bool:
        """Whether no online operator is declared, so that any engine can serve the dequantized weights."""
        return not (self.linear_operators or self.attention_operators)

    def state_dict(self) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, tensor) with every quantized weight dequantized: what an engine loads."""
        for name, weight in self.weights.items():
            yield name, weight.dequantize() if isinstance(weight, QuantizedWeight) else weight

    def save(self, folder: Path) -> None:
        """Write the model under `folder`; `load` gives it back bit for bit."""
        tensors = {f"operator.{name}": tensor for name, tensor in self.operator_tensors.items()}
        grids = {}
        for name, weight in self.weights.items():
            if isinstance(weight, QuantizedWeight):
                tensors[f"{name}.codes"], tensors[f"{name}.scale"] = weight.codes, weight.grid.scale
                if weight.grid.zero_point is not None:
                    tensors[f"{name}.zero_point"] = weight.grid.zero_point
                dtype = str(weight.dtype).removeprefix("torch.")
                grids[name] = {"bits": weight.grid.bits, "group_size": weight.grid.group_size, "dtype": dtype}
            else:
                tensors[name] = weight
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
        description = {
            "config": self.config,
            "grids": grids,
            "linear_operators": {name: _tagged(ops) for name, ops in self.linear_operators.items()},
            "attention_operators": {name: _tagged(ops) for name, ops in self.attention_operators.items()},
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")

    @staticmethod
    def load(folder: Path) -> "QuantizedModel":
        """Read what `save` wrote."""
        description = json.loads((folder / DESCRIPTION).read_text())
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        weights: dict[str, Tensor | QuantizedWeight] = {}
        for name, grid in description["grids"].items():
            scale, zero_point = tensors.pop(f"{name}.scale"), tensors.pop(f"{name}.zero_point", None)
            weights[name] = QuantizedWeight(
                tensors.pop(f"{name}.codes"),
                Grid(scale, zero_point, grid["bits"], grid["group_size"]),
                getattr(torch, grid["dtype"]),
            )
        operator_tensors = {
            n.removeprefix("operator."): tensors.pop(n) for n in list(tensors) if n.startswith("operator.")
        }
        return QuantizedModel(
            config=description["config"],
            weights=weights | tensors,
            linear_operators={n: _untagged(LinearOperators, d) for n, d in description["linear_operators"].items()},
            attention_operators={
                n: _untagged(AttentionOperators, d) for n, d in description["attention_operators"].items()
            },
            operator_tensors=operator_tensors,
        )


_OPERATORS = {c.__name__: c for c in (Hadamard, Kronecker, Diagonal, ActivationQuantizer, KeyValueQuantizer)}


def _tagged(operators: LinearOperators | AttentionOperators) -> dict[str, Any]:
    parts = ((name, getattr(operators, name)) for name in operators.__dataclass_fields__)
    return {name: {"is": type(part).__name__, **asdict(part)} for name, part in parts if part is not None}


def _untagged(kind: type, described: dict[str, Any]) -> Any:
    def build(part: dict[str, Any]) -> Any:
        return _OPERATORS[part["is"]](**{key: value for key, value in part.items() if key != "is"})

    return kind(**{name: build(part) for name, part in described.items()})
