"""What several parts of the tests share: a real MLflow server, started once, because that takes long."""

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from suite.tracking import ui


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For two workers: what shares an engine or a server stays together, and what takes long comes first."""
    groups = {item: _group(item) for item in items}
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (groups[item] in slow, groups[item]), reverse=True)
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))


def _group(item: pytest.Item) -> str:
    """The folder of the engine's tests, the server of the mirror's, else the file."""
    if item.path.parent.name == "engine":
        return "engine"
    return "server" if "mlflow_server" in getattr(item, "fixturenames", ()) else item.path.stem


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
