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
from pathlib import Path

from suite.tracking.ledger import default_uri

HOST = "127.0.0.1"
START_S = 180.0  # on a loaded machine a start took 50 s
# Job execution would start eight more processes of 250 MB each, for features that are not used here.
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# MLflow opens on its view for agents; this one shows runs.
TRAINING_VIEW = "workflowType=machine_learning"


def ui_command(root: Path, port: int = 5000, uri: str | None = None) -> list[str]:
    """The command of MLflow's server over the workspace. Give it `ui_environment()` and a process group of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    artifacts = (Path(root).resolve() / "mlruns").as_uri()
    return [*command, "--backend-store-uri", uri or default_uri(root), "--artifacts-destination", artifacts]


def ui_environment() -> dict[str, str]:
    """The environment of MLflow's server."""
    return dict(os.environ) | SETTINGS


def experiment_url(base: str, experiment_id: str) -> str:
    """Where an experiment's runs are shown."""
    return f"{base}/#/experiments/{experiment_id}/runs?{TRAINING_VIEW}"


def serve(root: Path, port: int = 5000) -> int:
    """Serve the UI until Ctrl-C; returns an exit code. A server that MLFLOW_TRACKING_URI names is only pointed to.

    Raises: ValueError if the port is taken.
    """
    uri = default_uri(root)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {uri}/#/experiments?{TRAINING_VIEW}")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ValueError(f"port = {port}: something listens there already; choose another one with --port")
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


def stop(server: "subprocess.Popen[bytes]", patience_s: float = 10.0) -> None:
    """End the server and its children: they are a process group of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
            return


def experiments(base: str) -> list[tuple[str, str]]:
    """Name and id of the experiments that a server has, but for MLflow's empty default one."""
    request = urllib.request.Request(
        f"{base}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1000}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer).get("experiments", [])
    return [(e["name"], e["experiment_id"]) for e in found if e["experiment_id"] != "0"]


def _announce(base: str) -> None:
    print(f"MLflow: {base}/#/experiments?{TRAINING_VIEW}   (Ctrl-C ends it)")
    for name, experiment_id in experiments(base):
        print(f"  {name:24} {experiment_url(base, experiment_id)}")
    print(
        "Compare: chart view, or mark runs and press Compare; group by the tags variant, precision or benchmark.",
        flush=True,
    )
