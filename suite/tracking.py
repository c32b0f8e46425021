"""The mirror in MLflow: one flat run a cell, brought up to date from the registry, never the other way.

Runs are flat, with a tag for every axis, because MLflow's charts collapse children whose parents have no metrics. A
run's tag `record` is the digest of its row: equal digests are skipped, others replace the run that has the same
fingerprint, and a run that is not FINISHED was left by a killed process and is written again. A ledger under
`runs/mlflow/` remembers what a tracking server has, so that a mirror that is complete costs no import of MLflow.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from suite.store import write_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAGS = ("spec", "model", "method", "precision", "params", "benchmark", "budget", "verdict", "status", "fingerprint")
CONNECT_TIMEOUT_S = 2.0
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# Fewer processes, and the view of runs and charts instead of the one for language-model applications.
UI_SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True)
class SyncResult:
    """Runs written and runs that were up to date; `warning` says why the mirror is behind, if it is."""

    logged: int
    skipped: int
    warning: str | None = None


def default_uri(root: Path) -> str:
    """Where runs go: MLFLOW_TRACKING_URI, else sqlite in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


def sync(
    root: Path,
    cells: pd.DataFrame,
    samples_path: Callable[[str], Path | None],
    spec_text: str,
    experiment: str,
    uri: str | None = None,
) -> SyncResult:
    """Bring the runs of an experiment up to date with the registry's rows. Never raises for what a server does.

    `samples_path`: the stored table of samples by a cell's fingerprint. Both it and the spec become artifacts.
    """
    uri = uri or default_uri(root)
    ledger = _Ledger(Path(root), uri)
    rows = [_plain(row) for row in cells.to_dict("records")]
    pending = {row["fingerprint"]: row for row in rows if ledger.known.get(row["fingerprint"]) != _digest(row)}
    if not pending:
        return SyncResult(0, len(rows))
    logged = 0
    try:
        _check_reachable(uri)
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        client, experiment_id = _open(root, uri, experiment)
        there = _runs_by_fingerprint(client, experiment_id)
        for fingerprint, row in pending.items():
            if not _is_there(client, there.get(fingerprint, []), _digest(row)):
                _log(client, experiment_id, row, samples_path(fingerprint), spec_text)
                logged += 1
            ledger.known[fingerprint] = _digest(row)
    except Exception as error:  # a mirror: whatever is wrong with the server must not cost a result
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        left = len(pending) - logged
        warning = f"MLflow at {uri} lacks {left} of {len(rows)} cells ({said}); the next run brings it up to date"
        return SyncResult(logged, len(rows) - len(pending), warning)
    finally:
        ledger.write()
    return SyncResult(logged, len(rows) - logged)


def serve(root: Path, port: int) -> int:
    """Run MLflow's UI on the workspace until it is interrupted; returns its exit code."""
    import subprocess

    print(f"MLflow on http://127.0.0.1:{port} (it takes some seconds to come up; Ctrl-C ends it)", flush=True)
    child = subprocess.Popen(ui_command(root, port), env=os.environ | UI_SETTINGS, start_new_session=True)
    try:
        return child.wait()
    except KeyboardInterrupt:
        os.killpg(child.pid, 15)
        child.wait()
        return 0


def ui_command(root: Path, port: int) -> list[str]:
    """The command line of the UI. Run it in a process group of its own, with `UI_SETTINGS` in the environment."""
    import sys

    store = ["--backend-store-uri", default_uri(root), "--default-artifact-root", str(_artifacts(root))]
    return [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port)]


class _Ledger:
    """What a tracking server is known to have: fingerprint to digest of the row."""

    def __init__(self, root: Path, uri: str) -> None:
        self.path = root / "runs" / "mlflow" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"
        try:
            self.known: dict[str, str] = dict(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            self.known = {}  # lost or damaged: the server itself is asked

    def write(self) -> None:
        write_atomic(self.path, json.dumps(self.known, indent=1, sort_keys=True) + "\n")


def _check_reachable(uri: str) -> None:
    """A dead server is found in seconds; MLflow's own retries take minutes."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT_S).close()


def _open(root: Path, uri: str, experiment: str) -> "tuple[MlflowClient, str]":
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is not None:
        return client, found.experiment_id
    location = _artifacts(root).as_uri() if uri.startswith("sqlite:") else None
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client, client.create_experiment(experiment, artifact_location=location, tags=tags)


def _artifacts(root: Path) -> Path:
    return Path(root).resolve() / "mlruns"


def _runs_by_fingerprint(client: "MlflowClient", experiment_id: str) -> "dict[str, list[Run]]":
    found: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            found.setdefault(run.data.tags.get("fingerprint", ""), []).append(run)
        token = page.token
        if not token:
            return found


def _is_there(client: "MlflowClient", runs: "list[Run]", digest: str) -> bool:
    """Whether one finished run holds this very row; every other run of the cell is deleted."""
    there = False
    for run in runs:
        if not there and run.info.status == "FINISHED" and run.data.tags.get("record") == digest:
            there = True
        else:
            client.delete_run(run.info.run_id)
    return there


def _log(client: "MlflowClient", experiment_id: str, row: dict[str, Any], samples: Path | None, spec_text: str) -> None:
    """One run, FINISHED only when everything is in it."""
    from mlflow.entities import Metric, Param, RunTag

    tags = {name: str(row[name]) for name in TAGS if name != "budget"}
    tags |= {"budget": _budget(row), "record": _digest(row)}
    run = client.create_run(experiment_id, run_name=_name(row), tags=tags)
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, 0)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.endswith("_bits")
    ]
    params = [Param(name, str(value)[:6000]) for name, value in row.items() if isinstance(value, str) and value]
    params += [Param(name, str(row[name])) for name in row if name.endswith("_bits")]
    client.log_batch(run.info.run_id, metrics, params, [RunTag("mlflow.note.content", _note(row))])
    if samples is not None:
        client.log_artifact(run.info.run_id, str(samples))
    client.log_text(run.info.run_id, spec_text, "spec.toml")
    client.set_terminated(run.info.run_id, "FINISHED")


def _name(row: Mapping[str, Any]) -> str:
    parts = (row["model"], row["method"], row["precision"], row["params"], row["benchmark"], _budget(row))
    return " ".join(str(part) for part in parts if part)


def _budget(row: Mapping[str, Any]) -> str:
    bounds = (("min", row["thinking_min"]), ("max", row["thinking_max"]))
    return ",".join(f"{name}={value}" for name, value in bounds if value is not None)


def _note(row: Mapping[str, Any]) -> str:
    return str(row["message"] or row["verdict"] or "")


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row without pandas' kinds of null."""
    return {str(name): None if pd.isna(value) else value for name, value in row.items()}


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:16]
