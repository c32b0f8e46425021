"""`suite run` end to end with the real engine: what is stored is skipped, what breaks is recorded, nothing is lost."""

import json
import signal
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
from small_run import SPEC, generated_keys, results, start, suite, whole_run

from suite.store import Store

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The spec, and a workspace in which its run went through at once."""
    return whole_run(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def spec(unbroken: tuple[Path, Path]) -> Path:
    """The spec."""
    return unbroken[0]


def test_a_run_ends_in_a_table_a_registry_a_report_and_a_mirror(unbroken: tuple[Path, Path]) -> None:
    """Every cell is done, on disk as rows and samples, in both reports and in MLflow."""
    _, root = unbroken
    rows = results(root)
    assert len(rows) == 6
    assert set(rows.status) == {"done"}
    assert set(rows.method) == {"bf16", "rtn"}
    assert (rows.num_samples == 12).all()
    assert (rows.num_seeds == 2).all()
    assert rows[rows.method == "rtn"].delta_vs_bf16.notna().all()
    assert (rows[rows.thinking_max == 0].thinking_tokens_mean == 0).all()
    assert (root / "reports" / "small.md").is_file()
    assert (root / "reports" / "small.html").is_file()
    assert (root / "mlflow.db").is_file()


def test_the_embedded_model_reasons(unbroken: tuple[Path, Path]) -> None:
    """BF16 solves the easy problems by thinking, and does not without."""
    rows = results(unbroken[1])
    bf16 = rows[rows.method == "bf16"].set_index(rows[rows.method == "bf16"].thinking_max.fillna(-1))
    assert bf16.loc[-1, "accuracy"] > 0.8
    assert bf16.loc[0, "accuracy"] < 0.2


def test_a_second_run_has_nothing_to_do(spec: Path, unbroken: tuple[Path, Path]) -> None:
    """Everything is stored: same registry bytes, no new batch, exit 0."""
    _, root = unbroken
    path = root / "registry" / "results" / "small.csv"
    before, batches = path.read_bytes(), generated_keys(root)
    done = suite(root, "run", str(spec))
    assert done.returncode == 0, done.stderr
    assert "0 to run" in done.stdout
    assert path.read_bytes() == before
    assert generated_keys(root) == batches


def test_results_and_plan_speak_json(spec: Path, unbroken: tuple[Path, Path]) -> None:
    """`results --format json` is a list of rows, `plan --json` knows what is stored."""
    _, root = unbroken
    rows = json.loads(suite(root, "results", "small", "--format", "json", "--where", "method == 'bf16'").stdout)
    assert {row["method"] for row in rows} == {"bf16"}
    assert len(rows) == 2
    plan = json.loads(suite(root, "plan", str(spec), "--json").stdout)
    assert all(cell["stored"] for cell in plan["cells"])


@pytest.mark.parametrize("stage", ["quantize", "generate", "score"])
def test_a_flipped_byte_is_named_and_only_that_part_computed_again(
    spec: Path, unbroken: tuple[Path, Path], stage: str
) -> None:
    """One byte of one stored file: the file is named and set aside, and the registry comes out the same."""
    _, root = unbroken
    before, others = results(root), set(generated_keys(root))
    artifacts = [a for a in Store(root / "runs").all(stage, "") if "rtn" in a.path.name]
    artifact = artifacts[0]
    victim = max((artifact.path / name for name in artifact.files), key=lambda path: path.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    for cell in Store(root / "runs").all("score", artifact.path.name[:20]) if stage != "score" else []:
        for name in cell.files:  # what depends on it is wanted again
            (cell.path / name).write_bytes(b"lost")
    done = suite(root, "run", str(spec))
    assert done.returncode == 0, done.stderr
    assert str(victim).replace("\n", "") in done.stdout.replace("\n", "")
    pd.testing.assert_frame_equal(results(root), before)
    assert set(generated_keys(root)) == others


def test_two_runners_on_one_store_compute_once(spec: Path, unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """Two runs of one spec at the same time: both succeed, each request is generated once."""
    children = [start(tmp_path, spec) for _ in range(2)]
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output
    pd.testing.assert_frame_equal(results(tmp_path), results(unbroken[1]))
    keys = generated_keys(tmp_path)
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_a_cell_that_fails_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    """A budget without room for an answer fails its cells with stage and message; exit 1; the next run tries again."""
    spec = tmp_path / "small.toml"
    spec.write_text(SPEC.replace("{ max = 0 }", "{ max = 158 }"))
    for _ in range(2):
        done = suite(tmp_path, "run", str(spec))
        assert done.returncode == 1, done.stdout + done.stderr
        rows = results(tmp_path)
        failed = rows[rows.thinking_max == 158]
        assert set(failed.status) == {"failed"}
        assert set(failed.stage) == {"generate"}
        assert failed.message.str.contains("room for the budget").all()
        assert set(rows[rows.thinking_max.isna()].status) == {"done"}
        assert "room for the budget" in done.stdout.replace("\n", " ")


def test_a_dead_tracking_server_costs_a_warning(spec: Path, unbroken: tuple[Path, Path]) -> None:
    """With nobody listening at MLFLOW_TRACKING_URI the run succeeds quickly and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    done = suite(unbroken[1], "run", str(spec), MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr
    assert "MLflow" in done.stdout + done.stderr
    assert time.perf_counter() - started < 60


def test_a_wrong_spec_runs_nothing(tmp_path: Path) -> None:
    """Exit 2, all errors at once, and no folder made."""
    spec = tmp_path / "wrong.toml"
    spec.write_text(SPEC.replace('"rtn"', '"rtm"').replace("seeds", "seedz"))
    done = suite(tmp_path / "root", "run", str(spec))
    assert done.returncode == 2
    assert "seedz" in done.stderr
    assert "rtm" in done.stderr
    assert not (tmp_path / "root").exists()


def test_an_interrupted_run_ends_with_130(spec: Path, tmp_path: Path) -> None:
    """SIGINT ends the run and its engines soon, with exit code 130."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, whoever runs the tests
    child = start(tmp_path, spec)
    signal.signal(signal.SIGINT, ignored)
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 130, output
