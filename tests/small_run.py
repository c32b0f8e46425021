"""A small run with the real engine, for tests to interrupt, damage and repeat."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from suite.records import read_cells
from suite.store import Store

SPEC = """# Do the parts of a run hold together?
name = "small"
seeds = [1, 2]

[[model]]
id = "tiny-qwen2"

[[method]]
name = "rtn"
precisions = ["W4A16KV16-g128", "W2A16KV16-g128"]

[[benchmark]]
name = "tiny-easy"
num_samples = 12
thinking_budgets = [{}, { max = 0 }]

[generation]
max_tokens = 160
"""
COSTS = ["seconds", "peak_memory_gib"]  # measured anew by every run, so they differ


def suite(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command of the suite in a process of its own."""
    command = [sys.executable, "-m", "suite", "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


def start(root: Path, spec: Path) -> subprocess.Popen[str]:
    """A run in the background."""
    command = [sys.executable, "-m", "suite", "--root", str(root), "run", str(spec)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(root: Path) -> pd.DataFrame:
    """The registry without what a clock or a memory gauge says."""
    return read_cells(root / "registry" / "results" / "small.csv").drop(columns=COSTS)


def generated_keys(root: Path) -> list[str]:
    """Variant and key of all requests in stored batches."""
    batches = [a.inputs for a in Store(root / "runs").all("generate", "")]
    return [f"{inputs['variant'][:8]} {key}" for inputs in batches for key in inputs["requests"]]


def whole_run(folder: Path) -> tuple[Path, Path]:
    """The spec, and a workspace in which the run went through at once."""
    spec, root = folder / "small.toml", folder / "root"
    spec.write_text(SPEC)
    done = suite(root, "run", str(spec))
    assert done.returncode == 0, done.stdout + done.stderr
    return spec, root
