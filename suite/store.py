"""Content-addressed artifacts: written beside, renamed into place, verified when read.

    runs/<stage>/<name>-<first 8 digits of the fingerprint>/manifest.json + files

An artifact appears whole or not at all: its files are written and flushed to disk in a temporary folder on the same
file system, the manifest with their sha256 comes last, then one rename. A process that is killed leaves only a
temporary folder, which the next writer of the same artifact removes. Reading checks every byte; what does not match is
named, moved to `runs/quarantine/`, and reported as absent, so that it is computed again.

Locks are `flock`s on one file per fingerprint: the kernel drops them with their holder, so a dead runner never blocks a
live one. Two runners on one machine may share a store; on a network file system only where it supports `flock`.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
logger = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """The store could not be written: what, where, and how much room there is."""


@dataclass(frozen=True)
class Artifact:
    """A stored artifact: its folder and what its manifest says. `inputs` is what the fingerprint was made from."""

    path: Path
    fingerprint: str
    inputs: dict[str, Any]
    measured: dict[str, Any]
    files: dict[str, dict[str, Any]]


@dataclass
class Draft:
    """An artifact being written: files go under `path`; what was measured on the way (never identity) in `measured`."""

    path: Path
    measured: dict[str, Any] = field(default_factory=dict)


class Store:
    """The artifacts under one folder. `warn` receives a line for every file found corrupted, truncated or foreign."""

    def __init__(self, root: Path, warn: Any = logger.warning) -> None:
        self.root = Path(root)
        self.warn = warn
        self._listing: dict[str, tuple[int, dict[str, list[Path]]]] = {}

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact with this fingerprint, by its manifest alone (no bytes are checked), or None."""
        for path in self._candidates(stage, fingerprint):
            artifact = _read_manifest(path)
            if artifact is not None and artifact.fingerprint == fingerprint:
                return artifact
        return None

    def open(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact with every byte verified, or None. What is wrong with it is named and the artifact set aside."""
        for path in self._candidates(stage, fingerprint):
            artifact = _read_manifest(path)
            if artifact is None:
                self._quarantine(path, [f"{path / MANIFEST}: missing, damaged, or of another format"])
            elif artifact.fingerprint == fingerprint:
                faults = list(_faults(artifact))
                if not faults:
                    self._remove_foreign(artifact)
                    return artifact
                self._quarantine(path, faults)
        return None

    def all(self, stage: str, prefix: str) -> list[Artifact]:
        """Every artifact of a stage whose folder name starts with `prefix`, verified as `open` does."""
        folders = sorted(p for p in (self.root / stage).glob("*") if p.name.startswith(prefix))
        held = (_read_manifest(folder) for folder in folders)
        opened = [self.open(stage, artifact.fingerprint) for artifact in held if artifact is not None]
        return [artifact for artifact in opened if artifact is not None]

    @contextlib.contextmanager
    def lock(self, stage: str, fingerprint: str, wait: bool = True) -> Iterator[bool]:
        """Hold the one lock of this artifact. Yields False, without it, if `wait` is off and another holds it."""
        folder = self.root / "locks" / stage
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / fingerprint[:16], "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def create(self, stage: str, name: str, fingerprint: str, inputs: dict[str, Any]) -> Iterator[Draft]:
        """Write an artifact; hold its lock. Nothing appears if the body raises.

        Raises: StoreError, with the place and the room left, where the disk refuses.
        """
        folder = self.root / stage
        draft = Draft(folder / f".tmp-{fingerprint[:16]}-{uuid.uuid4().hex[:8]}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f".tmp-{fingerprint[:16]}-*"):  # of a killed writer: we hold the lock
                shutil.rmtree(leftover, ignore_errors=True)
            draft.path.mkdir()
            yield draft
            self._publish(draft, folder, name, fingerprint, inputs)
        except OSError as error:
            raise StoreError(f"{self.root}: cannot write {stage}/{name}: {error}{_room(error, self.root)}") from error
        finally:
            shutil.rmtree(draft.path, ignore_errors=True)

    def _publish(self, draft: Draft, folder: Path, name: str, fingerprint: str, inputs: dict[str, Any]) -> None:
        files = {}
        for path in sorted(p for p in draft.path.rglob("*") if p.is_file()):
            _fsync(path)
            files[str(path.relative_to(draft.path))] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "inputs": inputs,
            "measured": draft.measured,
            "files": files,
        }
        manifest["digest"] = _digest(manifest)
        (draft.path / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        _fsync(draft.path / MANIFEST)
        _fsync(draft.path)
        for digits in (8, 16, 64):  # 8 digits name an artifact; more only where two different ones share them
            target = folder / f"{name}-{fingerprint[:digits]}"
            try:
                os.rename(draft.path, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                held = _read_manifest(target)
                if held is not None and held.fingerprint == fingerprint:
                    break  # the same content is there already
                continue
            break
        _fsync(folder)
        self._listing.pop(folder.name, None)

    def _candidates(self, stage: str, fingerprint: str) -> list[Path]:
        folder = self.root / stage
        try:
            stamp = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if self._listing.get(stage, (None, {}))[0] != stamp:
            listing: dict[str, list[Path]] = {}
            for entry in os.scandir(folder):
                if entry.is_dir() and not entry.name.startswith("."):
                    listing.setdefault(entry.name.rsplit("-", 1)[-1][:8], []).append(Path(entry.path))
            self._listing[stage] = (stamp, listing)
        return [p for p in self._listing[stage][1].get(fingerprint[:8], []) if p.exists()]

    def _quarantine(self, path: Path, faults: list[str]) -> None:
        target = self.root / "quarantine" / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:6]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
        for fault in faults:
            self.warn(f"{fault}; set aside in {target}, that part is computed again")

    def _remove_foreign(self, artifact: Artifact) -> None:
        known = {artifact.path / name for name in artifact.files} | {artifact.path / MANIFEST}
        for path in [p for p in artifact.path.rglob("*") if p.is_file() and p not in known]:
            target = self.root / "quarantine" / f"{artifact.path.name}-{path.name}-{uuid.uuid4().hex[:6]}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            self.warn(f"{path}: not part of the artifact; set aside as {target}")


def _read_manifest(path: Path) -> Artifact | None:
    try:
        raw = json.loads((path / MANIFEST).read_text())
        if raw["format"] != FORMAT or raw.pop("digest") != _digest(raw):
            return None
        return Artifact(path, raw["fingerprint"], raw["inputs"], raw["measured"], raw["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _faults(artifact: Artifact) -> Iterator[str]:
    for name, expected in artifact.files.items():
        path = artifact.path / name
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != expected["bytes"]:
            yield f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']}"
        elif sha256(path) != expected["sha256"]:
            yield f"{path}: its bytes changed since it was written (sha256 differs)"


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file whole: write beside, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(beside, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _room(error: OSError, root: Path) -> str:
    if error.errno != errno.ENOSPC:
        return ""
    free = shutil.disk_usage(root).free
    return f" ({free} bytes free; make room and run the same command again: nothing stored is lost)"
