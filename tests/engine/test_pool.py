"""Engines in worker processes: the same completions as in this process, and what happens when something dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from suite.engine import Request
from suite.engine.engine import Engine
from suite.engine.pool import BatchResult, EngineDiedError, EnginePool

from .conftest import FLOAT32
from .test_engine import requests, weights

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def variant(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored weight-only variant."""
    from suite.modeling import QuantizedModel

    folder = tmp_path_factory.mktemp("variant")
    QuantizedModel(config={}, weights=dict(weights(tiny_model))).save(folder)
    return folder


def long_job(n: int = 8) -> list[Request]:
    """Seconds of work."""
    return [dataclasses.replace(r, max_tokens=900, thinking_min=890) for r in requests(n)]


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Raises: AssertionError if `condition` does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_pool_equals_the_engine(pool: EnginePool, engine: Engine, tiny_model: Path, variant: Path) -> None:
    """Two workers, two variants in turn, batches in any order: what one engine in this process writes."""
    batches = [requests(5), requests(9)[4:], requests(3, thinking_max=5)]
    jobs = [(d, k, b) for b in batches for d, k in ((None, "bf16"), (variant, "v"))]
    futures = [pool.submit(*job) for job in jobs]
    expected = {}
    for folder, state in ((variant, weights(tiny_model).items()), (None, None)):
        engine.swap(state)
        for i, batch in enumerate(batches):
            expected[folder, i] = engine.generate(batch)
    for job, future in zip(jobs, futures, strict=True):
        assert future.result().completions == expected[job[0], batches.index(job[2])]


def test_results_say_what_they_took(pool: EnginePool) -> None:
    """Seconds, memory, engine; and the pool's totals grow by them."""
    before = pool.stats()
    result = pool.submit(None, "bf16", requests(4)).result()
    after = pool.stats()
    assert isinstance(result, BatchResult)
    tokens = sum(c.output_tokens for c in result.completions)
    assert after.tokens - before.tokens == tokens
    assert 0 < result.seconds <= after.generate_s + after.swap_s - before.generate_s - before.swap_s + 1e-6
    assert 0.2 < result.peak_memory_gib < 4.0
    assert result.engine.startswith("vllm")
    assert after.start_s > 0


def test_progress_reaches_the_parent(pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of the job under way, by worker, from a thread that is not the caller's."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(pool, "_on_progress", lambda worker, tokens: seen.append((worker, tokens)))
    results = [f.result() for f in [pool.submit(None, "bf16", long_job()) for _ in range(2)]]
    assert {worker for worker, _ in seen} == {0, 1}
    for worker in (0, 1):
        mine = [tokens for index, tokens in seen if index == worker]
        assert mine == sorted(mine)
        assert mine[-1] == sum(c.output_tokens for c in results[0].completions)
        assert len(mine) > 1


def test_errors_are_the_job_s_alone(pool: EnginePool, variant: Path, tmp_path: Path) -> None:
    """A request that cannot be served, a variant that is not there: the error says so, and the next job runs."""
    expected = pool.submit(variant, "v", requests(3)).result().completions
    bad = [dataclasses.replace(requests(1)[0], max_tokens=5000)]
    with pytest.raises(ValueError, match=r"r0: .*max_tokens=5000"):
        pool.submit(variant, "v", bad).result()
    with pytest.raises(RuntimeError, match=r"1 requests: FileNotFoundError: .*quantized.json"):
        pool.submit(tmp_path, "gone", requests(1)).result()
    assert pool.submit(variant, "v", requests(3)).result().completions == expected


def test_a_refused_job_leaves_no_wrong_variant_behind(pool: EnginePool, variant: Path) -> None:
    """The swap of a job whose requests are refused has happened: the next job must swap back."""
    expected = pool.submit(None, "bf16", requests(3)).result().completions
    bad = [dataclasses.replace(requests(1)[0], max_tokens=5000)]
    for _ in range(2 * pool.num_workers):  # whichever worker takes them
        with pytest.raises(ValueError, match="max_tokens=5000"):
            pool.submit(variant, "v", bad).result()
    futures = [pool.submit(None, "bf16", requests(3)) for _ in range(2 * pool.num_workers)]
    assert all(future.result().completions == expected for future in futures)


def test_half_a_variant_is_refused_and_its_engine_replaced(pool: EnginePool, tiny_model: Path, tmp_path: Path) -> None:
    """Missing tensors: the job fails by name, and no engine goes on with the mixture."""
    from suite.modeling import QuantizedModel

    expected = pool.submit(None, "bf16", requests(3)).result().completions
    QuantizedModel(config={}, weights=dict(list(weights(tiny_model).items())[:5])).save(tmp_path)
    for _ in range(pool.num_workers):
        with pytest.raises(ValueError, match="are missing"):
            pool.submit(tmp_path, "half", requests(1)).result()
    futures = [pool.submit(None, "bf16", requests(3)) for _ in range(2 * pool.num_workers)]
    assert all(future.result().completions == expected for future in futures)


def test_a_killed_worker_fails_its_job_only(pool: EnginePool) -> None:
    """SIGKILL in the middle: a message with the signal; the other worker's job and the next ones are served."""
    expected = pool.submit(None, "bf16", requests(4)).result().completions
    futures = [pool.submit(None, "bf16", long_job()) for _ in range(2)]
    wait_until(lambda: all(f.running() for f in futures) and len(pool.worker_pids()) == 2)
    time.sleep(0.3)
    killed = pool.worker_pids()[0]
    os.kill(killed, signal.SIGKILL)
    errors = [f.exception() for f in futures]
    (error,) = [e for e in errors if e is not None]
    assert isinstance(error, EngineDiedError)
    assert f"process {killed}) was ended by signal SIGKILL" in str(error)
    assert "8 requests to variant bf16" in str(error)
    assert [f.result().completions for f in [pool.submit(None, "bf16", requests(4)) for _ in range(3)]] == [
        expected
    ] * 3
    assert killed not in pool.worker_pids()
    assert len(pool.worker_pids()) == 2


def test_cancelled_jobs_never_run(pool: EnginePool) -> None:
    """A job still in the queue can be taken out of it."""
    futures = [pool.submit(None, "bf16", long_job(2)) for _ in range(4)]
    assert futures[-1].cancel()
    assert all(len(f.result().completions) == 2 for f in futures[:-1])


def test_a_folder_without_weights_fails_every_job(tmp_path: Path) -> None:
    """The engine cannot start: the reason reaches each job, before and after it was found."""
    (tmp_path / "config.json").write_text("{}")
    with EnginePool(str(tmp_path), 1, FLOAT32) as pool:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"config.json and \*.safetensors"):
                pool.submit(None, "bf16", requests(1)).result()


@pytest.mark.parametrize(("folder", "workers", "message"), [("nowhere", 1, "a folder with"), (".", 0, "at least 1")])
def test_impossible_pools_are_refused(tmp_path: Path, folder: str, workers: int, message: str) -> None:
    """At once, by the constructor."""
    with pytest.raises(ValueError, match=message):
        EnginePool(str(tmp_path / folder), workers)


def test_the_parent_s_side_is_light() -> None:
    """Neither torch nor vLLM nor numpy is imported by whoever only submits jobs."""
    code = "import sys, suite.engine.pool, suite.engine.doctor; print({'torch', 'vllm', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


PARENT = """
    import sys, time
    from suite.engine.pool import EnginePool
    from tests.engine.conftest import FLOAT32
    from tests.engine.test_pool import long_job

    pool = EnginePool(sys.argv[1], 2, FLOAT32)
    pool.start()
    futures = [pool.submit(None, "bf16", long_job(16)) for _ in range(8)]
    while not (pool.stats().start_s and len(pool.worker_pids()) == 2):
        time.sleep(0.05)
    time.sleep(0.5)
    print(pool._loader.process.pid, *pool.worker_pids(), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_nothing_outlives_a_killed_parent(tiny_model: Path) -> None:
    """kill -9 of the parent in the middle of generation: loader and workers are gone at once."""
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tiny_model)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(is_running(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids), seconds=10)


@pytest.mark.slow
def test_a_killed_loader_is_started_again_and_close_is_quick(tiny_model: Path) -> None:
    """The loader takes its workers with it; their jobs fail, the next job gets new ones. Closing fails what is left."""
    pool = EnginePool(str(tiny_model), 2, FLOAT32)
    future = pool.submit(None, "bf16", long_job(16))
    wait_until(lambda: future.running() and pool.stats().start_s > 0)
    loader = pool._loader
    assert loader is not None
    os.kill(loader.process.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="died with its loader, which was ended by signal SIGKILL"):
        future.result()
    assert len(pool.submit(None, "bf16", requests(2)).result().completions) == 2
    pids = pool.worker_pids()
    running, queued = pool.submit(None, "bf16", long_job(16)), [pool.submit(None, "x", long_job()) for _ in range(3)]
    wait_until(running.running)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 5.0
    wait_until(lambda: not any(is_running(pid) for pid in pids), seconds=5)
    for job in (running, *queued):
        with pytest.raises(EngineDiedError, match="closed"):
            job.result(timeout=1)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(None, "bf16", requests(1))
