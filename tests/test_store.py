"""The store: whole or not at all, verified when read, locked against a second writer."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suite.store import MANIFEST, Store, StoreError, write_atomic

FP = "ab" * 32


def put(store: Store, fingerprint: str = FP, text: str = "hello", name: str = "thing") -> Path:
    with store.create("stage", name, fingerprint, {"x": 1}) as draft:
        (draft.path / "data.txt").write_text(text)
        draft.measured["seconds"] = 1.5
    artifact = store.find("stage", fingerprint)
    assert artifact is not None
    return artifact.path


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    """A created artifact is found and opened with its inputs and measurements."""
    store = Store(tmp_path)
    assert store.find("stage", FP) is None
    path = put(store)
    assert path.name == "thing-abababab"
    artifact = store.open("stage", FP)
    assert artifact is not None
    assert artifact.inputs == {"x": 1}
    assert artifact.measured == {"seconds": 1.5}
    assert (artifact.path / "data.txt").read_text() == "hello"


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    """An exception in the body leaves neither an artifact nor a temporary folder."""
    store = Store(tmp_path)

    def fail() -> None:
        with store.create("stage", "thing", FP, {}) as draft:
            (draft.path / "data.txt").write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert store.find("stage", FP) is None
    assert list((tmp_path / "stage").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda p: (p / "data.txt").write_text("hellO"), "bytes changed"),
        (lambda p: (p / "data.txt").write_text("hel"), "3 bytes instead of 5"),
        (lambda p: (p / "data.txt").unlink(), "missing"),
        (lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text()[:-40]), "damaged"),
        (lambda p: (p / MANIFEST).write_text((p / MANIFEST).read_text().replace("1.5", "2.5")), "damaged"),
        (lambda p: (p / MANIFEST).unlink(), "missing"),
    ],
)
def test_damage_is_named_and_set_aside(tmp_path: Path, damage: object, named: str) -> None:
    """One flipped byte, a cut file, a lost file or manifest: named, quarantined, and written again."""
    lines: list[str] = []
    store = Store(tmp_path, lines.append)
    path = put(store)
    damage(path)  # type: ignore[operator]
    assert store.open("stage", FP) is None
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert named in lines[0]
    assert not path.exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 1
    assert put(store) == path
    assert store.open("stage", FP) is not None


def test_a_foreign_file_is_set_aside_and_the_artifact_kept(tmp_path: Path) -> None:
    """A file that the manifest does not list is moved away; the artifact itself stays valid."""
    lines: list[str] = []
    store = Store(tmp_path, lines.append)
    path = put(store)
    (path / "stranger.bin").write_text("?")
    assert store.open("stage", FP) is not None
    assert "stranger.bin" in lines[0]
    assert not (path / "stranger.bin").exists()


def test_a_foreign_folder_is_ignored(tmp_path: Path) -> None:
    """A folder that happens to end in the same digits is not taken for the artifact."""
    store = Store(tmp_path, lambda line: None)
    path = put(store)
    (tmp_path / "stage" / "other-abababab").mkdir()
    found = store.find("stage", FP)
    assert found is not None
    assert found.path == path


def test_equal_first_digits_do_not_collide(tmp_path: Path) -> None:
    """Two fingerprints that share their first eight digits are two artifacts, even under one name."""
    store = Store(tmp_path)
    other = FP[:8] + "cd" * 28
    assert put(store, FP, "one") != put(store, other, "two")
    for fingerprint, text in ((FP, "one"), (other, "two")):
        artifact = store.open("stage", fingerprint)
        assert artifact is not None
        assert (artifact.path / "data.txt").read_text() == text


def test_writing_twice_keeps_one(tmp_path: Path) -> None:
    """The second writer of the same fingerprint changes nothing."""
    store = Store(tmp_path)
    assert put(store) == put(store)
    assert len([p for p in (tmp_path / "stage").iterdir() if not p.name.startswith(".")]) == 1


def test_a_read_only_store_says_where(tmp_path: Path) -> None:
    """A store that cannot be written raises an error that names it."""
    (tmp_path / "stage").write_text("a file where a folder must be")
    with pytest.raises(StoreError, match=str(tmp_path)), Store(tmp_path).create("stage", "thing", FP, {}):
        pass


WRITER = """
import sys, time
from pathlib import Path
from suite.store import Store
store = Store(Path(sys.argv[1]))
with store.lock("stage", sys.argv[2]), store.create("stage", "thing", sys.argv[2], {}) as draft:
    (draft.path / "data.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_blocks_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 inside a write: the lock is free, nothing is served, and the next writer clears the leftovers."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), FP], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    store = Store(tmp_path)
    with store.lock("stage", FP, wait=False) as held:
        assert not held
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert store.find("stage", FP) is None
    with store.lock("stage", FP, wait=False) as held:
        assert held
        put(store)
    assert not list((tmp_path / "stage").glob(".tmp-*"))


def _hold(root: Path, seconds: float, log: Path) -> None:
    store = Store(root)
    with store.lock("stage", FP):
        if store.find("stage", FP) is None:
            with log.open("a") as handle:
                handle.write("computed\n")
            time.sleep(seconds)
            put(store)


def test_two_writers_compute_once(tmp_path: Path) -> None:
    """Of several processes that want one artifact, one computes it and the others find it."""
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_hold, args=(tmp_path / "runs", 0.2, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert log.read_text() == "computed\n"


def test_write_atomic_replaces_whole(tmp_path: Path) -> None:
    """The text file is the old or the new one, and nothing lies beside it."""
    write_atomic(tmp_path / "a" / "t.csv", "old")
    write_atomic(tmp_path / "a" / "t.csv", "new")
    assert (tmp_path / "a" / "t.csv").read_text() == "new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["t.csv"]
