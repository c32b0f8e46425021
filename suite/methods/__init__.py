"""The quantizers: one file a method, whose name is the method's name in TOML.

Each has `quantize_(model, params)`: it changes a `QuantizedModel` in place, and does nothing else.
"""

import importlib
from typing import Any

from suite.modeling import QuantizedModel


def quantize_(model: QuantizedModel, params: Any) -> None:
    """Apply the method that `params` (a class of suite.spec.methods) names to a full-precision model, in place."""
    importlib.import_module(f"suite.methods.{params.name}").quantize_(model, params)
