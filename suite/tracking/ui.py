"""MLflow's UI over a workspace, with settings that work on one machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from suite.tracking.ledger import default_uri

HOST = "127.0.0.1"
START_S = 300.0  # on a loaded machine a start took 110 s
# Job execution would start eight more processes of 250 MB each, for features that are not used here.
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# MLflow opens on its view for agents; this one shows runs.
TRAINING_VIEW = "workflowType=machine_learning"
VIEW_TAG = "mlflow.sharedViewState."  # + name: a view that is stored with an experiment


def ui_command(root: Path, port: int = 5000, uri: str | None = None) -> list[str]:
    """The command of MLflow's server over the workspace. Give it `ui_environment()` and a process group of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    artifacts = (Path(root).resolve() / "mlruns").as_uri()
    return [*command, "--backend-store-uri", uri or default_uri(root), "--artifacts-destination", artifacts]


def ui_environment() -> dict[str, str]:
    """The environment of MLflow's server."""
    return dict(os.environ) | SETTINGS


def table_url(base: str, experiment_id: str) -> str:
    """An experiment's cells in a table, with accuracy, difference, verdict and axes as columns."""
    return f"{base}/#/experiments/{experiment_id}/runs?{TRAINING_VIEW}&viewStateShareKey=cells"


def charts_url(base: str, experiment_id: str) -> str:
    """An experiment's variants in bar charts: means over the benchmarks that were run under one thinking budget."""
    return f"{base}/#/experiments/{experiment_id}/runs?{TRAINING_VIEW}&compareRunsMode=CHART&viewStateShareKey=variants"


def serve(root: Path, port: int = 5000) -> int:
    """Serve the UI until Ctrl-C or SIGTERM; returns an exit code. Where MLFLOW_TRACKING_URI names a server, say so.

    Raises: ValueError if the port is taken.
    """
    uri = default_uri(root)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {uri}/#/experiments?{TRAINING_VIEW}")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ValueError(f"port = {port}: something listens there already; choose another one with --port")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server does not outlive us
    server = subprocess.Popen(ui_command(root, port), env=ui_environment(), start_new_session=True)
    try:
        if wait_until_up(server, f"http://{HOST}:{port}"):
            _announce(f"http://{HOST}:{port}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def wait_until_up(server: "subprocess.Popen[bytes]", base: str, patience_s: float = START_S) -> bool:
    """Wait until the server answers; False if it ends or does not within the time."""
    deadline = time.monotonic() + patience_s
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{base}/health", timeout=5).close()
            return True
        time.sleep(0.3)
    return False


def stop(server: "subprocess.Popen[bytes]", patience_s: float = 15.0) -> None:
    """End the server and its children: they are a process group of their own. Waits until none of them is left."""
    deadline = time.monotonic() + patience_s
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            server.poll()  # so that it does not stay behind as a zombie, which would count
            os.killpg(server.pid, 0)
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@dataclass(frozen=True)
class Experiment:
    """An experiment of a server. Ours have views; in the same store there may be others."""

    name: str
    id: str
    has_views: bool


def experiments(base: str) -> list[Experiment]:
    """The experiments that a server has, but for MLflow's empty default one."""
    request = urllib.request.Request(
        f"{base}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer).get("experiments", [])
    return [
        Experiment(e["name"], e["experiment_id"], any(tag["key"] == VIEW_TAG + "cells" for tag in e.get("tags", [])))
        for e in found
        if e["experiment_id"] != "0"
    ]


def _announce(base: str) -> None:
    print(f"MLflow: {base}/#/experiments?{TRAINING_VIEW}   (Ctrl-C ends it)")
    for found in experiments(base):
        if found.has_views:
            print(
                f"  {found.name}\n    cells     {table_url(base, found.id)}\n    variants  {charts_url(base, found.id)}"
            )
    print("  To compare, mark runs and press Compare, or group by a tag: variant, precision, benchmark, verdict.")
    sys.stdout.flush()
