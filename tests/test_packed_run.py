"""`packed = true` end to end: the same matrix, served from codes where there are any."""

from pathlib import Path

import pytest
from small_run import suite

from suite.plan import make_plan
from suite.records import read_cells
from suite.spec import load

SPEC = """# What does serving from codes change?
name = "packed"

[[model]]
id = "tiny-qwen2"

[[method]]
name = "rtn"
precisions = ["W8A16KV16-g128", "W4A16KV16-g128", "W16A16KV4"]

[[method]]
name = "kvquant"
precisions = ["W16A16KV4"]

[method.calibration]
source = "self"
num_samples = 4
seq_len = 64

[[benchmark]]
name = "tiny-easy"
num_samples = 16

[generation]
max_tokens = 192
packed = true
"""


def cells(folder: Path, text: str) -> dict[str, tuple[str, int | None]]:
    """Of each variant the identity of its cell, and the bits of its cache."""
    (folder / "packed.toml").write_text(text)
    plan = make_plan(load(folder / "packed.toml"))
    return {cell.variant.name: (cell.fingerprint, cell.cache_bits) for cell in plan.cells}


def test_packed_cells_are_other_cells(tmp_path: Path) -> None:
    """Where something is packed, and nowhere else."""
    packed, unpacked = cells(tmp_path, SPEC), cells(tmp_path, SPEC.replace("packed = true\n", ""))
    same = {name for name in packed if packed[name][0] == unpacked[name][0]}
    assert same == {"tiny-qwen2-bf16", "tiny-qwen2-rtn-W8A16KV16-g128"}
    assert [bits for _, bits in packed.values()] == [None, None, None, 4, 4]
    assert all(bits is None for _, bits in unpacked.values())


@pytest.mark.engine
@pytest.mark.slow
def test_a_packed_run(tmp_path: Path) -> None:
    """Every cell is done and as right as it should be; a second run has nothing to do."""
    spec = tmp_path / "packed.toml"
    spec.write_text(SPEC)
    done = suite(tmp_path, "run", str(spec))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_cells(tmp_path / "registry" / "results" / "packed.csv")
    assert set(rows.status) == {"done"}
    assert len(rows) == 5
    assert (rows[(rows.weight_bits >= 8) & (rows.kv_bits == 16)].accuracy > 0.8).all()
    assert (rows.output_tokens_mean < 150).all()  # they come to an end
    assert rows[rows.weight_bits == 4].accuracy.item() > 0.5
    again = suite(tmp_path, "run", str(spec))
    assert again.returncode == 0
    assert "0 to run" in again.stdout
