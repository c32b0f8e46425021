"""The embedded models: reasoning models small enough to ship in the package, trained by the package's own recipe.

`list_models` and `model_path` say what ships; `train` reproduces it. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MODELS_DIR = Path(__file__).parent / "models"
# Name -> training seed. Two seeds of one recipe: what holds on one of them only is no finding. `list_models` says which
# weights ship.
MODEL_SEEDS = {"tiny-qwen2": 0, "tiny-qwen2-seed1": 1}
# glibc gives large blocks back and page-faults them in again at each step: training is several times slower without
# these, and they must be set before the process starts.
TRAINING_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": str(2**35),
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
}


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
        ValueError: if no embedded model has that name, or its weights do not ship.
    """
    _training_seed(name)
    if name not in list_models():
        raise ValueError(f"model {name!r}: its weights do not ship; `suite zoo train {name}` makes them")
    return MODELS_DIR / name


def _training_seed(name: str) -> int:
    if name not in MODEL_SEEDS:
        raise ValueError(f"model {name!r}: not embedded; the names are {', '.join(MODEL_SEEDS)} (see `suite zoo list`)")
    return MODEL_SEEDS[name]


def list_models() -> list[str]:
    """Names of the embedded models whose weights are there."""
    return [name for name in MODEL_SEEDS if (MODELS_DIR / name / "model.safetensors").exists()]


def describe(name: str) -> ZooModel:
    """What ships under a name.

    Raises:
        ValueError: as `model_path`.
    """
    folder = model_path(name)
    training = json.loads((folder / "training.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    parameters, tokens = training["num_parameters"], training["tokens"]
    summary = f"Qwen2 family, {parameters / 1e6:.1f} M parameters, {tokens / 1e6:.0f} M training tokens"
    return ZooModel(name, folder, MODEL_SEEDS[name], size / 2**20, parameters, summary)


def train(name: str, out: Path | None = None, *, seed: int | None = None) -> Path:
    """Train an embedded model from scratch in a process of its own (CUDA if there, else CPU); returns its folder.

    `seed` defaults to the one that the name stands for, `out` to a new folder `name` below the current one: the shipped
    weights are never overwritten by default.

    Raises:
        ValueError: if no embedded model has that name.
        subprocess.CalledProcessError: if training fails.
    """
    seed = _training_seed(name) if seed is None else seed
    folder = out or Path(name)
    command = [sys.executable, "-m", "suite.zoo.train", str(folder), str(seed)]
    subprocess.run(command, env={**os.environ, **TRAINING_ENVIRONMENT}, check=True)
    return folder
