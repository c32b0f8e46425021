"""The child of a mirror: the only process that loads mlflow to write. Started as `python -m suite.tracking.writer`.

    {"job": ...} {"row": ..., "samples": path} ... {"sync": true} ... end of input  ->  one line: what was done

Each run carries its cell's fingerprint and the digest of its record as tags. A run of ours that is still RUNNING was
cut off while it was written, one with another digest was superseded: both are deleted once the whole run is there, so
that however often a writer is killed, the next one ends with one run a cell.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from suite.tracking.ledger import Job, Ledger, Row, record_digest, shown, sqlite_path
from suite.tracking.ui import VIEW_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINGERPRINT, RECORD = "fingerprint", "record"  # the tags that a run is found by
COMPLETE = ("FINISHED", "FAILED")
# What MLflow's UI shows of an experiment at ...?viewStateShareKey=<name>: the state that its own "share view" stores.
_COLUMNS = ("accuracy", "delta_vs_bf16", "delta_low", "delta_high", "output_tokens_mean")
_TAGS = ("verdict", "benchmark", "thinking_budget", "variant")
_CELLS = {
    "selectedColumns": [f"metrics.`{name}`" for name in _COLUMNS] + [f"tags.`{name}`" for name in _TAGS],
    "runsHiddenMode": "SHOWALL",  # otherwise charts show the first ten runs only
}
_GROUPS = [{"mode": "tag", "groupByData": tag} for tag in ("variant", "thinking_budget")]
VIEWS = {
    "cells": _CELLS,
    "variants": _CELLS
    | {"groupBy": {"aggregateFunction": "average", "groupByKeys": _GROUPS}, "useGroupedValuesInCharts": True},
}
ALIVE = "."  # printed for each cell: the parent gives up on a child that falls silent
REACH_S = 5.0  # a server that does not answer by then counts as dead
AXES = (
    "spec",
    "model",
    "method",
    "precision",
    "params",
    "weight_bits",
    "activation_bits",
    "kv_bits",
    "group_size",
    "calibration_source",
    "calibration_num_samples",
    "calibration_seq_len",
    "benchmark",
    "thinking_min",
    "thinking_max",
    "num_seeds",
    "num_samples",
)
METRICS = (
    "accuracy",
    "stderr",
    "delta_vs_bf16",
    "delta_low",
    "delta_high",
    "p_value",
    "flips_lost",
    "flips_gained",
    "thinking_tokens_mean",
    "output_tokens_mean",
    "output_tokens_p90",
    "truncated_rate",
    "unparsed_rate",
    "loop_rate",
    "seconds",
    "peak_memory_gib",
)


@dataclass
class Session:
    """One experiment: the cells that wait to be written, and what became of the others."""

    job: Job
    waiting: dict[str, tuple[Row, str | None]] = field(
        default_factory=dict
    )  # fingerprint -> record, path of its samples
    logged: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)  # were in MLflow already
    warning: str | None = None

    def sync(self) -> None:
        """Write what waits. What keeps it from being written becomes the warning, and it goes on waiting."""
        if not self.waiting:
            return
        self.warning = unreachable(self.job.uri)
        if self.warning is not None:
            return
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with Ledger(self.job).lock():
                self._write()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self.warning = _warning(self.job.uri, " ".join(str(error).split())[:300])

    def _write(self) -> None:
        from mlflow import MlflowClient

        client, ledger = MlflowClient(tracking_uri=self.job.uri), Ledger(self.job)
        experiment_id = open_experiment(client, self.job)
        existing = runs_by_fingerprint(client, experiment_id)
        for fingerprint, (row, samples) in list(self.waiting.items()):
            digest, runs = record_digest(row), existing.get(fingerprint, [])
            keep = _whole(runs, digest)
            if keep is None:
                log_run(client, experiment_id, self.job, row, digest, samples)
            (self.logged if keep is None else self.found).add(fingerprint)
            for run in runs:
                if run.info.run_id != keep:
                    client.delete_run(run.info.run_id)
            ledger.add({fingerprint: digest})
            del self.waiting[fingerprint]
            say(ALIVE)


def _whole(runs: Sequence["Run"], digest: str) -> str | None:
    """The id of a run that holds all of this record."""
    whole = [r.info.run_id for r in runs if r.info.status in COMPLETE and r.data.tags[RECORD] == digest]
    return whole[0] if whole else None


def _warning(uri: str, said: str) -> str:
    return f"MLflow at {shown(uri)}: {said}; the results are in the registry, the next run brings MLflow up to date"


def unreachable(uri: str) -> str | None:
    """Why a server cannot be reached, in REACH_S at most; None if it answers, or if it is no server."""
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return None  # it answers: without a /health, or not without credentials, which mlflow has
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return _warning(uri, f"does not answer ({reason})")
    return None


def open_experiment(client: "MlflowClient", job: Job) -> str:
    """The id of the experiment: made, or brought back from MLflow's trash, if need be.

    Artifacts lie beside a sqlite file; a server decides by itself.
    """
    found = client.get_experiment_by_name(job.experiment)
    if found is None:
        database = sqlite_path(job.uri)
        place = None if database is None else (database.resolve().parent / "mlruns" / job.experiment).as_uri()
        tags = {"mlflow.note.content": _note(job.spec_text), "mlflow.experimentKind": "custom_model_development"}
        tags |= {VIEW_TAG + name: json.dumps(view) for name, view in VIEWS.items()}
        return str(client.create_experiment(job.experiment, artifact_location=place, tags=tags))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _note(spec_text: str) -> str:
    """The question of a spec: its first comment."""
    lines = [line.lstrip("# ").rstrip() for line in spec_text.splitlines() if line.startswith("#")]
    return lines[0] if lines else ""


def runs_by_fingerprint(client: "MlflowClient", experiment_id: str) -> dict[str, list["Run"]]:
    """All runs of the experiment that are ours."""
    found: dict[str, list[Run]] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            if FINGERPRINT in run.data.tags and RECORD in run.data.tags:
                found.setdefault(run.data.tags[FINGERPRINT], []).append(run)
        token = page.token
        if not token:
            return found


def log_run(client: "MlflowClient", experiment_id: str, job: Job, row: Row, digest: str, samples: str | None) -> None:
    """Write one cell. Until the last call its status is RUNNING, by which an unfinished run is known."""
    from mlflow.entities import Metric, Param

    end_ms = int(time.time() * 1000)
    start_ms = end_ms - int(1000 * (row["seconds"] or 0.0))  # MLflow's duration is then the cell's engine time
    run = client.create_run(experiment_id, start_time=start_ms, tags=run_tags(row, digest), run_name=run_name(row))
    metrics = [Metric(name, float(row[name]), end_ms, 0) for name in METRICS if row[name] is not None]
    params = [Param(name, str(row[name])) for name in AXES if row[name] not in (None, "")]
    client.log_batch(run.info.run_id, metrics=metrics, params=params)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{job.experiment}.toml").write_text(job.spec_text)
        if samples is not None:
            write_samples(Path(samples), Path(folder))
        client.log_artifacts(run.info.run_id, folder)
    client.set_terminated(run.info.run_id, status="FINISHED" if row["status"] == "done" else "FAILED", end_time=end_ms)


def write_samples(samples: Path, folder: Path) -> None:
    """The table of samples: whole as parquet, and without the texts as csv, which MLflow's UI shows as a table."""
    import pandas as pd

    (folder / "samples.parquet").write_bytes(samples.read_bytes())
    columns = [name for name in pd.read_parquet(samples).columns if name != "text"]
    pd.read_parquet(samples, columns=columns).to_csv(folder / "samples.csv", index=False)


def variant(row: Row) -> str:
    """Method, precision and parameters."""
    return " ".join(str(row[key]) for key in ("method", "precision", "params") if row[key])


def run_name(row: Row) -> str:
    """The cell in a line; what differs most comes first, because MLflow's lists cut names off."""
    benchmark = " ".join(filter(None, [str(row["benchmark"]), thinking_budget(row)]))
    return f"{benchmark} · {variant(row)} · {row['model']}"


def thinking_budget(row: Row) -> str:
    """The budget in words: "free", "<= 128", ">= 512", or both."""
    low, high = row["thinking_min"], row["thinking_max"]
    bounds = [f">= {low}" if low is not None else "", f"<= {high}" if high is not None else ""]
    return ", ".join(filter(None, bounds))


def run_tags(row: Row, digest: str) -> dict[str, str]:
    """Every axis, what came of the cell, and what the run is found by."""
    bits = f"W{row['weight_bits']}A{row['activation_bits']}KV{row['kv_bits']}"
    tags = {name: str(row[name]) for name in AXES if row[name] not in (None, "")}
    tags |= {"variant": variant(row), "bits": bits}
    tags |= {"thinking_budget": thinking_budget(row) or "free", "status": row["status"]}
    tags |= {"verdict": row["verdict"].split(",")[0]} if row["verdict"] else {}
    tags |= {"engine": row["engine"]} if row["engine"] else {}
    tags |= {"stage": row["stage"], "mlflow.note.content": row["message"]} if row["status"] == "failed" else {}
    return tags | {FINGERPRINT: row["fingerprint"], RECORD: digest}


def serve(stream: IO[str]) -> Session:
    """Do what the lines of the stream say until it ends. They are read at once, so that their sender never waits."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(stream, lines), daemon=True).start()
    session = Session(Job(**json.loads(lines.get() or "{}")["job"]))
    while (line := lines.get()) is not None:
        message: dict[str, Any] = json.loads(line)
        if "row" in message:
            session.waiting[message["row"][FINGERPRINT]] = (message["row"], message["samples"])
        else:
            session.sync()
    session.sync()  # what something was in the way of
    return session


def _read(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def say(words: str) -> None:
    """To the parent. If it has died there is nobody to tell, and what it sent is written all the same."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, words.encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes the stream
    done = serve(sys.stdin)
    warning = done.warning if done.waiting else None
    say("\n" + json.dumps({"logged": len(done.logged), "found": len(done.found), "warning": warning}) + "\n")
