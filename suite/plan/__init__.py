"""Spec -> Plan: the matrix with its fingerprints, what is left to do, what that takes, and how it is printed.

Pure but for reading model files and local calibration data (their bytes are their identity) and, in the estimate, the
throughput measured earlier. Imports no torch.
"""

from suite.plan.cost import (
    THROUGHPUT,
    Estimate,
    calibrations_to_do,
    estimate,
    expected_tokens,
    expected_trace_tokens,
    read_throughput,
    to_do,
)
from suite.plan.matrix import (
    CalibrationSet,
    Cell,
    Plan,
    Variant,
    budgets_of,
    make_plan,
    make_variant,
)
from suite.plan.memory import QuantizeMemory, quantize_memory
from suite.plan.paper import join_paper
from suite.plan.text import describe, to_json

__all__ = [
    "THROUGHPUT",
    "CalibrationSet",
    "Cell",
    "Estimate",
    "Plan",
    "QuantizeMemory",
    "Variant",
    "budgets_of",
    "calibrations_to_do",
    "describe",
    "estimate",
    "expected_tokens",
    "expected_trace_tokens",
    "join_paper",
    "make_plan",
    "make_variant",
    "quantize_memory",
    "read_throughput",
    "to_do",
    "to_json",
]
