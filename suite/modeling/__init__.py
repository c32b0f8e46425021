"""Models as names and tensors: load, walk, quantize, save. Works on safetensors, without building a module."""

from suite.modeling.checkpoint import load_checkpoint, load_state_dict
from suite.modeling.families import decoder_linears
from suite.modeling.quantized import (
    ActivationQuantizer,
    AttentionOperators,
    Diagonal,
    Hadamard,
    KeyValueQuantizer,
    Kronecker,
    LinearOperators,
    QuantizedModel,
    QuantizedWeight,
)

__all__ = [
    "ActivationQuantizer",
    "AttentionOperators",
    "Diagonal",
    "Hadamard",
    "KeyValueQuantizer",
    "Kronecker",
    "LinearOperators",
    "QuantizedModel",
    "QuantizedWeight",
    "decoder_linears",
    "load_checkpoint",
    "load_state_dict",
]
