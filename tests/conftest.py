"""What several parts of the tests share: a real MLflow server, started once, because that takes long."""

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from suite.tracking import ui

SERVER = ("tests/test_tracking.py", "tests/browser/test_mlflow_ui.py")  # they share `mlflow_server`


def _group(nodeid: str) -> str:
    """What one worker runs: the engine's tests, the server's, else a file."""
    path = nodeid.split("::")[0]
    return "engine" if path.startswith("tests/engine/") else "server" if path in SERVER else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups with slow tests first: with two workers, a long one begun last would run alone."""
    slow = {_group(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (_group(item.nodeid) in slow, _group(item.nodeid)), reverse=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups in their order (pytest-xdist 3.8 has them by marks, too, but not with pytest 9)."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


@dataclass
class Server:
    """MLflow's server over a workspace of its own; it can be killed and started again."""

    root: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{ui.HOST}:{self.port}"

    def start(self) -> None:
        """Start it as `suite ui` does, and wait until it answers."""
        database = f"sqlite:///{self.root / 'mlflow.db'}"
        command = ui.ui_command(self.root, self.port, database)
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=ui.ui_environment(), start_new_session=True, stdout=log, stderr=log
            )
        assert ui.wait_until_up(self.process, self.url), (self.root / "server.log").read_text()[-2000:]

    def stop(self) -> None:
        """End it and all its children."""
        if self.process is not None:
            ui.stop(self.process, patience_s=0.1)
            self.process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server on a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind((ui.HOST, 0))
        port = probe.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("mlflow-server"), port)
    server.start()
    yield server
    server.stop()
