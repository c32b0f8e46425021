"""`kill -9` at any point of a run, then the same command: nothing is lost, and nothing is done twice."""

import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from small_run import generated_keys, results, start, suite, whole_run

pytestmark = pytest.mark.engine


@pytest.mark.slow
def test_kill_9_at_twenty_random_points(tmp_path: Path) -> None:
    """Killed at random moments, five times a store, then run to the end: the unbroken run's registry, nothing twice."""
    started = time.perf_counter()
    spec, whole = whole_run(tmp_path)
    duration_s = time.perf_counter() - started
    moments = random.Random(0)
    for round_ in range(4):
        root = tmp_path / str(round_)
        for _ in range(5):
            child = start(root, spec)
            time.sleep(moments.uniform(0.2, duration_s))
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
        done = suite(root, "run", str(spec))
        assert done.returncode == 0, done.stdout + done.stderr
        pd.testing.assert_frame_equal(results(root), results(whole))
        keys = generated_keys(root)
        assert len(keys) == len(set(keys))
        assert set(keys) == set(generated_keys(whole))
