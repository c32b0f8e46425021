"""The registry's mirror in MLflow: one flat run a cell, so that MLflow's tables, charts and groupings work on cells.

    cells that the ledger does not know -> a child process that has loaded mlflow (writer.py) -> runs

The registry is the truth. Mirroring is idempotent, and that a mirror is up to date is told by the ledger, without
importing mlflow. A server that is dead, dies on the way or refuses costs a warning and some seconds, never a result;
the next sync goes on where this one stopped. The child exists so that loading mlflow and writing overlap with the
engines' work.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from suite.tracking.ledger import Job, Ledger, default_uri, plain_rows, record_digest, shown
from suite.tracking.ui import serve, ui_command, ui_environment

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Mirror", "SyncResult", "default_uri", "serve", "sync", "ui_command", "ui_environment"]

SILENCE_S = 120.0  # no cell takes that long to write, on a loaded machine either
# Where the caller's environment does not say otherwise. With mlflow's own defaults a dead server costs four minutes.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class SyncResult:
    """What a sync did: cells written, cells that were there already, and what kept it from writing the rest."""

    logged: int
    skipped: int
    warning: str | None = None


def sync(
    root: Path,
    rows: "pd.DataFrame",
    samples_path: Callable[[str], Path | None],
    spec_text: str,
    experiment: str,
    uri: str | None = None,
) -> SyncResult:
    """Bring MLflow up to date with `rows`, and wait. `samples_path`: the parquet of a cell, by its fingerprint."""
    mirror = Mirror(root, experiment, spec_text, samples_path, uri)
    mirror.send(rows)
    return mirror.close()


class Mirror:
    """Keeps MLflow up to date during a run: `send` the cells there are as often as wanted, then `close`.

    `send` returns at once. A child starts with the first cell that the ledger does not know. It leaves Ctrl-C to the
    parent, and if the parent dies it writes what it was sent and ends.
    """

    def __init__(
        self,
        root: Path,
        experiment: str,
        spec_text: str,
        samples_path: Callable[[str], Path | None],
        uri: str | None = None,
    ) -> None:
        self.job = Job(str(Path(root).resolve()), uri or default_uri(root), experiment, spec_text)
        self.samples_path = samples_path
        self.known = Ledger(self.job).runs()  # fingerprint -> digest of the record that MLflow or the child has
        self.skipped: set[str] = set()
        self.sent: set[str] = set()
        self.child: subprocess.Popen[str] | None = None
        self.errors: IO[bytes] | None = None

    def send(self, rows: "pd.DataFrame") -> None:
        """Pass on the measured cells that are new or changed."""
        changed = False
        for row in plain_rows(rows):
            fingerprint, digest = row["fingerprint"], record_digest(row)
            if self.known.get(fingerprint) == digest:
                self.skipped |= {fingerprint} - self.sent
                continue
            changed = True
            self.known[fingerprint] = digest
            self.sent.add(fingerprint)
            self.skipped.discard(fingerprint)
            path = self.samples_path(fingerprint) if row["status"] == "done" else None
            self._tell({"row": row, "samples": None if path is None else str(path)})
        if changed:
            self._tell({"sync": True})

    def close(self) -> SyncResult:
        """Wait until the child has written what it was sent, unless it falls silent."""
        if self.child is None:
            return SyncResult(0, len(self.skipped))
        assert self.child.stdin is not None, "the child is started with a pipe"
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.close()
        said = self._listen()
        if said is None:
            self.child.kill()
        ended = self.child.wait()
        if said is None:
            warning = (
                f"MLflow at {shown(self.job.uri)}: nothing happened for {SILENCE_S:.0f} s; the next run goes on there"
            )
            return SyncResult(0, len(self.skipped), warning)
        if ended != 0:
            return SyncResult(0, len(self.skipped), f"mirroring to MLflow broke off: {self._last_words()}")
        done = json.loads(said.splitlines()[-1])
        return SyncResult(done["logged"], len(self.skipped) + done["found"], done["warning"])

    def _listen(self) -> str | None:
        """What the child says until it ends; None if it says nothing for too long (it says something for each cell)."""
        assert self.child is not None, "there is a child to listen to"
        assert self.child.stdout is not None, "the child is started with a pipe"
        said, source = b"", self.child.stdout.fileno()
        while select.select([source], [], [], SILENCE_S)[0]:
            part = os.read(source, 1 << 16)
            if not part:
                return said.decode()
            said += part
        return None

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self.child is None:
            self.child = self._start()
            self._tell({"job": vars(self.job)})
        assert self.child.stdin is not None, "the child is started with a pipe"
        with contextlib.suppress(BrokenPipeError):  # it has ended; close() says why
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()

    def _start(self) -> "subprocess.Popen[str]":
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe that nobody reads would fill)
        return subprocess.Popen(
            [sys.executable, "-m", "suite.tracking.writer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=CLIENT | dict(os.environ),
            start_new_session=True,
        )

    def _last_words(self) -> str:
        assert self.errors is not None, "the child has started"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it was killed"
