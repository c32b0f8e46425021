"""`kill -9` at any point of a run, then the same command: nothing is lost, and nothing is done twice."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from small_run import generated_keys, results, start, whole_run

pytestmark = pytest.mark.engine


KILLS = 20


@pytest.mark.slow
def test_kill_9_at_twenty_random_points(tmp_path: Path) -> None:
    """Killed again and again until it happens to end first: the unbroken run's registry, nothing generated twice.

    A run that finds much stored ends soon, and its store is done: then the next one begins with an empty store.
    """
    started = time.perf_counter()
    spec, whole = whole_run(tmp_path)
    duration_s = 0.8 * (time.perf_counter() - started)  # the first one is slow
    expected, once = results(whole), sorted(generated_keys(whole))
    assert len(once) == len(set(once))
    moments = random.Random(0)
    kills = stores = 0
    done = True
    while kills < KILLS or not done:
        root = tmp_path / str(stores)
        child = start(root, spec)
        try:
            output, _ = child.communicate(timeout=moments.uniform(0.2, duration_s) if kills < KILLS else 300)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
            kills, done = kills + 1, False
            continue
        assert child.returncode == 0, output
        pd.testing.assert_frame_equal(results(root), expected)
        assert sorted(generated_keys(root)) == once
        stores, done = stores + 1, True
    assert stores > 1
