"""What of the registry is known to be in MLflow, so that a mirror that is up to date costs nothing.

    runs/mirror/<digest of the URI>.json      experiment -> fingerprint -> digest of the record that was written
    runs/mirror/<digest of the URI>.lock      one writer to a tracking store at a time

Only a shortcut, never the truth: a database that is not the one it was is not believed to hold anything, and whoever
has something to write asks MLflow itself.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

URI_VARIABLE = "MLFLOW_TRACKING_URI"
Row = dict[str, Any]  # a record of a cell; None where it has no value


@dataclass(frozen=True)
class Job:
    """Where cells go, and what all of them share."""

    root: str
    uri: str
    experiment: str
    spec_text: str


class Ledger:
    """The ledger of one tracking store."""

    def __init__(self, job: Job) -> None:
        self.job = job
        name = hashlib.sha256(job.uri.encode()).hexdigest()[:16]
        self.path = Path(job.root) / "runs" / "mirror" / f"{name}.json"

    def runs(self) -> dict[str, str]:
        """Fingerprint -> digest of its record, of this experiment."""
        found: dict[str, str] = self._read()["experiments"].get(self.job.experiment, {})
        return found

    def add(self, runs: Mapping[str, str]) -> None:
        """Remember runs, also across a crash. Hold the lock."""
        ledger = self._read()
        ledger["experiments"].setdefault(self.job.experiment, {}).update(runs)
        partial = self.path.with_suffix(".partial")
        with open(partial, "w") as handle:
            json.dump(ledger, handle, indent=0, sort_keys=True)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one writer at a time; the kernel drops it with its holder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"uri": shown(self.job.uri), "database": _database(self.job.uri), "experiments": {}}
        try:
            ledger: dict[str, Any] = json.loads(self.path.read_text())
            return ledger if ledger["database"] == empty["database"] and ledger["experiments"] else empty
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: MLflow is asked instead
            return empty


def default_uri(root: Path) -> str:
    """What MLflow's own variable says, else a database in the workspace."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{(Path(root) / 'mlflow.db').resolve()}"


def plain_rows(rows: "pd.DataFrame") -> list[Row]:
    """Measured rows with None for what is null, as JSON has it."""
    return [
        {str(key): _plain(value) for key, value in row.items()}
        for row in rows.to_dict("records")
        if row.get("source") != "paper"
    ]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    missing = value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def record_digest(row: Row) -> str:
    """What tells two records of one cell apart."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _database(uri: str) -> str:
    """Which database a sqlite URI means just now: inode and birth of its first experiment. "" if there is none."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as database:
            born = database.execute("SELECT min(creation_time) FROM experiments").fetchone()[0]
    except sqlite3.Error:  # busy, or of a schema that has no such column: the inode alone then
        born = ""
    return f"{path.stat().st_ino}/{born}"


def shown(uri: str) -> str:
    """A URI without the password it may hold."""
    head, at, host = uri.rpartition("@")
    return f"{head.split('://')[0]}://***@{host}" if at and "://" in head else uri
