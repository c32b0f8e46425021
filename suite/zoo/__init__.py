"""The embedded models: reasoning models small enough to ship in the package, trained by the package's own recipe.

`list_models` and `model_path` say what ships; `train` reproduces it. Importing this module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MODELS_DIR = Path(__file__).parent / "models"
# Name -> training seed. Two seeds of one recipe: what holds on one of them only is no finding.
MODEL_SEEDS = {"tiny-qwen2": 0, "tiny-qwen2-seed1": 1}


@dataclass(frozen=True)
class ZooModel:
    """A model that ships: its name, folder, training seed, size of the weights, parameters and a summary line."""

    name: str
    path: Path
    seed: int
    size_mib: float
    num_parameters: int
    summary: str


def model_path(name: str) -> Path:
    """The folder of an embedded model.

    Raises:
        ValueError: if no embedded model has that name.
    """
    if name not in MODEL_SEEDS:
        raise ValueError(f"model {name!r}: not embedded; the names are {', '.join(MODEL_SEEDS)} (see `suite zoo list`)")
    return MODELS_DIR / name


def list_models() -> list[str]:
    """Names of the embedded models whose weights are there."""
    return [name for name in MODEL_SEEDS if (MODELS_DIR / name / "model.safetensors").exists()]


def describe(name: str) -> ZooModel:
    """What ships under a name.

    Raises:
        ValueError: if no embedded model has that name.
    """
    folder = model_path(name)
    training = json.loads((folder / "training.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    parameters, tokens = training["num_parameters"], training["tokens"]
    summary = f"Qwen2 family, {parameters / 1e6:.1f} M parameters, {tokens / 1e6:.0f} M training tokens"
    return ZooModel(name, folder, MODEL_SEEDS[name], size / 2**20, parameters, summary)


def train(name: str, out: Path | None = None, *, seed: int | None = None) -> Path:
    """Train an embedded model from scratch (CUDA if there, else CPU); returns the folder written.

    `seed` defaults to the one that the name stands for, `out` to a new folder `name` below the current one: the shipped
    weights are never overwritten by default.

    Raises:
        ValueError: if no embedded model has that name.
    """
    from suite.zoo.train import train_to

    model_path(name)
    folder = out or Path(name)
    train_to(folder, MODEL_SEEDS[name] if seed is None else seed)
    return folder
