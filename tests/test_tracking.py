"""The mirror in MLflow, with a real sqlite store and a real server: complete and without duplicates, come what may."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report.factory import Records, make_records, make_spec

from suite import tracking
from suite.records import write_samples
from suite.spec import BenchmarkRef
from suite.tracking.ledger import Job, Ledger, plain_rows, record_digest, shown
from suite.tracking.writer import AXES, METRICS, run_name, run_tags, thinking_budget

SPEC_TEXT = '# Does the mirror hold?\nname = "mirrored"\n'


@dataclass
class Workspace:
    """A workspace with records and samples, mirrored to a store."""

    root: Path
    records: Records
    uri: str

    @property
    def cells(self) -> pd.DataFrame:
        """The registry's rows."""
        return self.records.cells

    def samples(self, fingerprint: str) -> Path | None:
        """The stored samples of a cell."""
        path = self.root / "samples" / f"{fingerprint}.parquet"
        return path if path.exists() else None

    def mirror(self) -> tracking.Mirror:
        """A mirror that has been sent nothing yet."""
        return tracking.Mirror(self.root, "mirrored", SPEC_TEXT, self.samples, self.uri)

    def sync(self) -> tracking.SyncResult:
        """Bring MLflow up to date."""
        return tracking.sync(self.root, self.cells, self.samples, SPEC_TEXT, "mirrored", self.uri)

    def client(self) -> Any:
        """MLflow's client of the store."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def runs(self) -> list[Any]:
        """The runs that MLflow shows."""
        client = self.client()
        experiment = client.get_experiment_by_name("mirrored")
        return [] if experiment is None else list(client.search_runs([experiment.experiment_id], max_results=1000))

    def check(self) -> None:
        """One complete run a cell, with the record that the registry has."""
        runs = self.runs()
        assert Counter(run.data.tags["fingerprint"] for run in runs) == Counter(self.cells["fingerprint"])
        by_fingerprint = {run.data.tags["fingerprint"]: run for run in runs}
        for row in plain_rows(self.cells):
            run = by_fingerprint[row["fingerprint"]]
            assert run.info.status == ("FINISHED" if row["status"] == "done" else "FAILED")
            assert run.data.tags["record"] == record_digest(row)
            assert run.data.metrics.get("accuracy") == row["accuracy"]


def small_records(name: str = "mirrored", **values: Any) -> Records:
    """Five variants on one benchmark, ten answers each."""
    return make_records(make_spec(name, benchmarks=(BenchmarkRef(name="tiny-hard"),)), num_samples=5, **values)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make, to be copied."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def full_database(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that the small records have been mirrored to, to be copied."""
    workspace = _workspace(tmp_path_factory.mktemp("full"), small_records(), database)
    assert workspace.sync() == tracking.SyncResult(5, 0)
    return workspace.root / "mlflow.db"


def _workspace(root: Path, records: Records, database: Path | None, uri: str | None = None) -> Workspace:
    if database is not None:
        shutil.copy(database, root / "mlflow.db")
    for fingerprint, samples in records.samples.items():
        write_samples(root / "samples" / f"{fingerprint}.parquet", samples)
    return Workspace(root, records, uri or f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture
def make_workspace(tmp_path: Path, database: Path) -> Callable[..., Workspace]:
    """Makes a workspace with its samples stored and nothing mirrored."""

    def make(records: Records | None = None, uri: str | None = None) -> Workspace:
        return _workspace(tmp_path, records or small_records(), None if uri else database, uri)

    return make


@pytest.fixture
def mirrored(tmp_path: Path, full_database: Path) -> Workspace:
    """A workspace whose cells are in MLflow already, though no ledger says so."""
    return _workspace(tmp_path, small_records(), full_database)


@pytest.fixture
def workspace(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Five done cells, sqlite."""
    return make_workspace()


def test_a_run_has_everything_of_its_cell(make_workspace: Callable[..., Workspace]) -> None:
    """Axes as tags and parameters, numbers as metrics, samples and spec as artifacts; a failure says where and why."""
    workspace = make_workspace(small_records(failed=[("W4A16KV16-g128", "*")]))
    assert workspace.sync() == tracking.SyncResult(5, 0)
    workspace.check()
    client = workspace.client()
    rows = {row["fingerprint"]: row for row in plain_rows(workspace.cells)}
    for run in workspace.runs():
        row, tags = rows[run.data.tags["fingerprint"]], run.data.tags
        assert all(
            tags[axis] == run.data.params[axis] == str(row[axis]) for axis in AXES if row[axis] not in (None, "")
        )
        assert run.data.metrics == {name: row[name] for name in METRICS if row[name] is not None}
        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        if row["status"] == "done":
            assert artifacts == {"mirrored.toml", "samples.csv", "samples.parquet"}
            assert run.info.end_time - run.info.start_time == pytest.approx(1000 * row["seconds"], abs=1)
        else:
            assert artifacts == {"mirrored.toml"}
            assert (tags["stage"], tags["mlflow.note.content"]) == (row["stage"], row["message"])
        spec = client.download_artifacts(run.info.run_id, "mirrored.toml")
        assert Path(spec).read_text() == SPEC_TEXT
    table = pd.read_csv(client.download_artifacts(_of(workspace, "bf16").info.run_id, "samples.csv"))
    assert len(table) == 10
    assert "text" not in table
    experiment = client.get_experiment_by_name("mirrored")
    assert experiment.tags["mlflow.note.content"] == "Does the mirror hold?"
    assert experiment.artifact_location == (workspace.root / "mlruns" / "mirrored").as_uri()


def _of(workspace: Workspace, method: str) -> Any:
    return next(run for run in workspace.runs() if run.data.tags["method"] == method)


def test_the_parent_never_imports_mlflow() -> None:
    """Importing the mirror is what every run pays for."""
    code = "import sys, suite.tracking; print(sorted({'mlflow', 'torch', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_ledger_mlflow_is_asked(mirrored: Workspace) -> None:
    """Killed before the ledger was written, or another machine: nothing is written twice, and the ledger is made."""
    assert mirrored.sync() == tracking.SyncResult(0, 5)
    mirrored.check()
    mirror = mirrored.mirror()
    mirror.send(mirrored.cells)
    assert mirror.child is None
    assert mirror.close() == tracking.SyncResult(0, 5)


@pytest.mark.parametrize(
    "content", ["", "{", '{"database": 1}', '{"database": "1/2", "experiments": {"mirrored": {"a": "1"}}}', "[]"]
)
def test_a_damaged_ledger_knows_nothing(mirrored: Workspace, content: str) -> None:
    """Cut short, or of another database: it is not believed, and the next entry makes it whole."""
    ledger = Ledger(mirrored.mirror().job)
    with ledger.lock():
        ledger.add({"a": "1"})
        assert ledger.runs() == {"a": "1"}
        ledger.path.write_text(content)
        assert ledger.runs() == {}
        ledger.add({"b": "2"})
    assert ledger.runs() == {"b": "2"}


def test_another_database_is_filled(mirrored: Workspace, database: Path) -> None:
    """The ledger does not take the new file for the old one, though it has its inode."""
    mirrored.sync()
    with sqlite3.connect(database) as made:  # the same as ever, but made at another time
        born = made.execute("SELECT min(creation_time) FROM experiments").fetchone()[0]
    (mirrored.root / "mlflow.db").write_bytes(database.read_bytes())
    with sqlite3.connect(mirrored.root / "mlflow.db") as other:
        other.execute("UPDATE experiments SET creation_time = ?", (born + 5000,))
    assert mirrored.sync() == tracking.SyncResult(5, 0)
    mirrored.check()


def test_a_changed_record_replaces_its_run(make_workspace: Callable[..., Workspace]) -> None:
    """A cell that failed and is done now; the others, whose difference is known now that BF16 is done."""
    workspace = make_workspace(small_records(failed=[("bf16", "*")]))
    workspace.sync()
    assert _of(workspace, "bf16").info.status == "FAILED"
    assert "delta_vs_bf16" not in _of(workspace, "rtn").data.metrics
    workspace = make_workspace_again(workspace)
    assert workspace.sync() == tracking.SyncResult(5, 0)
    workspace.check()
    assert "delta_vs_bf16" in _of(workspace, "rtn").data.metrics


def make_workspace_again(workspace: Workspace) -> Workspace:
    """The same workspace with nothing failed."""
    return _workspace(workspace.root, small_records(), None, workspace.uri)


def test_a_half_written_run_is_replaced(mirrored: Workspace) -> None:
    """A run with the right tags that was never finished, as a killed writer leaves it."""
    client, victim = mirrored.client(), _of(mirrored, "bf16")
    row = next(row for row in plain_rows(mirrored.cells) if row["method"] == "bf16")
    client.delete_run(victim.info.run_id)
    client.create_run(victim.info.experiment_id, tags=run_tags(row, record_digest(row)))
    assert mirrored.sync() == tracking.SyncResult(1, 4)
    mirrored.check()


def test_duplicates_are_removed_and_what_others_logged_stays(mirrored: Workspace) -> None:
    """Two complete runs of one cell, say from two machines: one is left. A run that was logged by hand is not ours."""
    client, row = mirrored.client(), plain_rows(mirrored.cells)[0]
    experiment_id = mirrored.runs()[0].info.experiment_id
    second = client.create_run(experiment_id, tags=run_tags(row, record_digest(row)))
    client.log_metric(second.info.run_id, "accuracy", row["accuracy"])
    client.set_terminated(second.info.run_id)
    other = client.create_run(experiment_id, run_name="by hand")
    assert mirrored.sync() == tracking.SyncResult(0, 5)
    assert client.get_run(other.info.run_id).info.lifecycle_stage == "active"
    client.delete_run(other.info.run_id)
    mirrored.check()


def test_a_deleted_experiment_comes_back(mirrored: Workspace) -> None:
    """Deleted in the UI, and now there is something to write."""
    client = mirrored.client()
    client.delete_experiment(client.get_experiment_by_name("mirrored").experiment_id)
    assert mirrored.sync() == tracking.SyncResult(0, 5)
    mirrored.check()


def test_cells_can_be_sent_as_they_come(workspace: Workspace) -> None:
    """Variant by variant, the last state once more: each cell is written once."""
    mirror, cells = workspace.mirror(), workspace.cells
    for end in (1, 3, 5, 5):
        mirror.send(cells.head(end))
    assert mirror.close() == tracking.SyncResult(5, 0)
    workspace.check()


def test_two_specs_share_a_store(mirrored: Workspace) -> None:
    """Each has its experiment, and neither takes the other's cells for its own."""
    other = tracking.sync(mirrored.root, mirrored.cells, mirrored.samples, SPEC_TEXT, "another", mirrored.uri)
    assert other == tracking.SyncResult(5, 0)
    mirrored.check()


def test_two_writers_at_once(workspace: Workspace) -> None:
    """Two runners on one store mirror the same cells at the same time: one run a cell."""
    mirrors = [workspace.mirror(), workspace.mirror()]
    for mirror in mirrors:
        mirror.send(workspace.cells)
    done = [mirror.close() for mirror in mirrors]
    assert [result.warning for result in done] == [None, None]
    assert sum(result.logged for result in done) == 5
    workspace.check()


@pytest.mark.slow
def test_killed_writers_leave_no_duplicates(workspace: Workspace) -> None:
    """kill -9 between any two steps of writing, four times over; the next sync ends with one run a cell."""
    for number in range(1, 5):
        mirror = workspace.mirror()
        mirror.send(workspace.cells)
        assert mirror.child is not None
        _wait_for(lambda: len(_statuses(workspace.root)) >= number)  # noqa: B023
        mirror.child.kill()
        assert "broke off" in (mirror.close().warning or "")
    workspace.sync()
    workspace.check()


def _statuses(root: Path) -> list[str]:
    """Statuses of the runs in the database, seen from outside while another process writes."""
    with sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True, timeout=10) as database:
        return [status for (status,) in database.execute("SELECT status FROM runs")]


def _wait_for(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_writer_outlives_its_parent(workspace: Workspace, tmp_path: Path) -> None:
    """The runner is killed right after it sent its cells: they arrive all the same."""
    workspace.cells.to_pickle(tmp_path / "cells.pickle")
    code = f"""
import os, pandas as pd
from pathlib import Path
from suite import tracking
root = Path({str(tmp_path)!r})
samples = lambda f: root / "samples" / (f + ".parquet")
mirror = tracking.Mirror(root, "mirrored", {SPEC_TEXT!r}, samples, {workspace.uri!r})
mirror.send(pd.read_pickle(root / "cells.pickle"))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    _wait_for(lambda: _statuses(tmp_path).count("FINISHED") == 5)
    workspace.check()


def test_a_dead_server_costs_a_warning(make_workspace: Callable[..., Workspace]) -> None:
    """Nobody listens: the warning names the address, and the next sync tries again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    workspace = make_workspace(uri=uri)
    for _ in range(2):
        result = workspace.sync()
        assert (result.logged, result.skipped) == (0, 0)
        assert uri in (result.warning or "")
        assert "does not answer" in (result.warning or "")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_hangs_costs_seconds(make_workspace: Callable[..., Workspace], silent_server: str) -> None:
    """It is given up after the time that a live one needs at most, not after mlflow's minutes."""
    started = time.monotonic()
    result = make_workspace(uri=silent_server).sync()
    assert "does not answer (timed out)" in (result.warning or "")
    assert time.monotonic() - started < 60


def test_a_damaged_database_costs_a_warning(workspace: Workspace) -> None:
    """No result is lost by it, and the traceback stays away from the console."""
    (workspace.root / "mlflow.db").write_bytes(b"this is no database" * 100)
    result = workspace.sync()
    assert result.logged == 0
    assert "mlflow.db" in (result.warning or "")


def test_what_cannot_be_written_is_said(workspace: Workspace) -> None:
    """Samples that vanished between the registry and the mirror."""
    for path in (workspace.root / "samples").iterdir():
        path.write_bytes(b"no parquet")
    result = workspace.sync()
    assert result.warning
    assert result.logged == 0


@pytest.mark.slow
def test_a_server_killed_on_the_way(
    make_workspace: Callable[..., Workspace], mlflow_server: Any, tmp_path: Path
) -> None:
    """Killed while cells are written: a warning; started again: the next sync completes, and nothing is there twice."""
    workspace = make_workspace(uri=mlflow_server.url)
    mirror = workspace.mirror()
    mirror.send(workspace.cells)
    _wait_for(lambda: len(_statuses(mlflow_server.root)) >= 2)
    mlflow_server.stop()
    broken = mirror.close()
    assert broken.warning
    assert broken.logged < 5
    assert broken.logged == len(Ledger(Job(str(tmp_path), mlflow_server.url, "mirrored", "")).runs())
    mlflow_server.start()
    done = workspace.sync()
    assert done.warning is None
    assert done.logged + done.skipped == 5
    workspace.check()
    assert workspace.sync() == tracking.SyncResult(0, 5)


def test_mlflows_own_variable_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is a database in the workspace."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking.default_uri(tmp_path) == "http://somewhere:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_published_rows_are_not_mirrored() -> None:
    """MLflow holds what was measured."""
    cells = small_records().cells
    cells.loc[0, "source"] = "paper"
    assert len(plain_rows(cells)) == len(cells) - 1


def test_a_record_keeps_its_digest_through_the_registry(tmp_path: Path) -> None:
    """Otherwise reading the registry back would write every run anew."""
    from suite.records import read_cells, write_cells

    cells = small_records(failed=[("W4A16KV16-g128", "*")]).cells
    write_cells(tmp_path / "cells.csv", cells)
    digests = [
        [record_digest(row) for row in plain_rows(table)] for table in (cells, read_cells(tmp_path / "cells.csv"))
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("low", "high", "said"), [(None, None, ""), (None, 128, "<= 128"), (512, None, ">= 512"), (8, 64, ">= 8, <= 64")]
)
def test_budgets_in_words(low: int | None, high: int | None, said: str) -> None:
    """As tags and names have them."""
    row = plain_rows(small_records().cells)[-1] | {"thinking_min": low, "thinking_max": high}
    assert thinking_budget(row) == said
    assert run_tags(row, "d")["thinking_budget"] == (said or "free")
    assert run_name(row).startswith(f"tiny-hard {said}".strip())


def test_passwords_are_not_shown() -> None:
    """In warnings, nor in the ledger."""
    assert shown("postgresql://me:secret@host/db") == "postgresql://***@host/db"
    assert shown("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_the_ui_refuses_a_port_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    """With the remedy, before anything is started."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=r"something listens there already; choose another one with --port"):
        tracking.serve(tmp_path, int(silent_server.rpartition(":")[2]))


def test_the_ui_points_to_a_server_that_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With MLFLOW_TRACKING_URI at a server there is nothing to start."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking.serve(tmp_path) == 0
    assert "http://somewhere:5000" in capsys.readouterr().out


def test_the_ui_is_started_with_settings_that_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the workspace's database, for this machine alone, without the job processes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = tracking.ui_command(tmp_path, 5999)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert tracking.ui_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert tracking.ui_environment()["PATH"] == os.environ["PATH"]
