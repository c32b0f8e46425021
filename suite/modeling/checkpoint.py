"""Reading checkpoints: a Hugging Face folder as a model to quantize, a stored variant as tensors to serve."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from suite.modeling.quantized import QuantizedModel


def load_checkpoint(folder: Path) -> QuantizedModel:
    """A Hugging Face checkpoint as an unquantized `QuantizedModel`: every tensor under its checkpoint name.

    Raises: FileNotFoundError if the folder holds no safetensors or no config.json.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: a checkpoint needs config.json and *.safetensors files")
    weights: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return QuantizedModel(json.loads((folder / "config.json").read_text()), dict(weights))


def load_state_dict(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor) of a stored variant, quantized weights dequantized onto their grid."""
    return QuantizedModel.load(folder).state_dict()
