"""Engines in worker processes, one a core, fed from one queue. The parent imports neither torch nor vLLM.

A job is a batch of requests to one variant. It runs whole on one worker, which first swaps to the variant if it holds
another; no worker waits for another. Since every request has its own seed, a batch gives the same completions on every
worker.

If a worker dies its job fails with a message that says so, and another worker takes its place. Which jobs to try again
is the caller's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from suite.engine import Completion, Request
from suite.engine.processes import Loader, ending, process_memory_gib, raised
from suite.engine.settings import EngineSettings, engine_distribution

WAKE_BYTES = 4096


class EngineDiedError(RuntimeError):
    """An engine process ended while it held a job, or could not start."""


@dataclass(frozen=True)
class BatchResult:
    """One job's completions in the order of its requests, and what they took."""

    completions: list[Completion]
    seconds: float
    peak_memory_gib: float
    engine: str


@dataclass(frozen=True)
class PoolStats:
    """Where the time of a pool went. `start_s` ends when jobs can run; `swap_s`, `generate_s` are sums over workers."""

    num_workers: int
    start_s: float
    swap_s: float
    generate_s: float
    tokens: int
    peak_memory_gib: float


@dataclass
class _Job:
    number: int
    variant_dir: Path | None
    variant_key: str
    requests: list[Request]
    future: Future[BatchResult]
    log_start: int = 0  # size of the log when the job was handed out


@dataclass
class _Worker:
    index: int
    pid: int
    connection: Connection
    started: bool = False
    ready: bool = False  # it takes jobs
    job: _Job | None = None


class EnginePool:
    """Engines for the model in the folder `model_path`. Usable as a context manager.

    `on_progress(worker, tokens)`, tokens being those of the worker's current job, is called from the pool's own thread.
    Raises: ValueError if there is no such folder, or for less than one worker.
    """

    def __init__(
        self,
        model_path: str,
        num_workers: int | None = None,
        settings: EngineSettings | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.num_workers = self.settings.default_workers() if num_workers is None else num_workers
        if self.num_workers < 1:
            raise ValueError(f"num_workers={num_workers}: rule: at least 1")
        if not Path(model_path).is_dir():
            raise ValueError(
                f"model {model_path!r}: rule: a folder with a checkpoint; remedy: download the model first"
            )
        self._model_path = str(Path(model_path).resolve())
        self._on_progress = on_progress or (lambda worker, tokens: None)
        self._queue: deque[_Job] = deque()
        self._lock = threading.Lock()  # guards _queue, _closing and _submitted
        self._closing = False
        self._submitted = 0
        self._wake, self._woken = socket.socketpair()
        self._thread: threading.Thread | None = None
        self._loader: Loader | None = None
        self._workers: dict[int, _Worker] = {}
        self._failure: Exception | None = None  # the engine cannot start: every job gets this
        self._totals = _Totals()
        self.engine = " ".join(engine_distribution())

    def start(self) -> None:
        """Start the engines in the background; returns at once. Idempotent. Raises: RuntimeError after `close`."""
        if self._closing:
            raise RuntimeError("the pool is closed; remedy: start another one")
        if self._thread is None:
            self._thread = threading.Thread(target=self._manage, name="engine-pool", daemon=True)
            self._thread.start()

    def submit(self, variant_dir: Path | None, variant_key: str, requests: list[Request]) -> Future[BatchResult]:
        """Queue a batch for the variant stored in `variant_dir` (None: the checkpoint), which `variant_key` identifies.

        The future raises ValueError for requests or a variant that cannot be served, EngineDiedError if an engine died.
        """
        self.start()
        future: Future[BatchResult] = Future()
        with self._lock:
            self._submitted += 1
            self._queue.append(_Job(self._submitted, variant_dir, variant_key, list(requests), future))
        self._wake.send(b"x")
        return future

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.pid for worker in list(self._workers.values())]

    def peak_memory_gib(self) -> float:
        """Most memory that the engine processes together were seen to take (at the end of a job), shared pages once."""
        return self._totals.memory_gib

    def stats(self) -> PoolStats:
        """Where the time went so far."""
        t = self._totals
        return PoolStats(self.num_workers, t.start_s, t.swap_s, t.generate_s, t.tokens, self.peak_memory_gib())

    def close(self) -> None:
        """Kill the engines; what is not finished fails. Takes milliseconds. Idempotent."""
        with self._lock:
            self._closing = True
        if self._thread is not None:
            self._wake.send(b"x")
            self._thread.join()

    def __enter__(self) -> EnginePool:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Everything below runs in the pool's thread, which alone touches processes, workers and totals.

    def _manage(self) -> None:
        """Until closed: start what is missing, hand out jobs, take in what happened."""
        try:
            self._loader = Loader.start(
                self._model_path, self.settings
            )  # here: it dies with the thread that started it
            while not self._closing:
                self._fill()
                self._wait()
        except Exception as error:  # a fault of the pool itself: nobody may wait for ever
            self._failure = error
            raise
        finally:
            self._stop()

    def _fill(self) -> None:
        """Give jobs to idle workers, forking the workers that are missing."""
        if self._failure is not None:
            return self._fail_queue(self._failure)
        if self._loader is None and self._queue:
            self._loader = Loader.start(self._model_path, self.settings)
        if self._loader is not None and self._loader.ready:
            self._fork_missing(self._loader)
        for worker in self._workers.values():
            while worker.ready and worker.job is None and (job := self._next_job()) is not None:
                if job.future.set_running_or_notify_cancel():
                    self._hand_out(job, worker)
        return None

    def _fork_missing(self, loader: Loader) -> None:
        for index in set(range(self.num_workers)) - self._workers.keys():
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    pid = loader.ask("fork", index, theirs.fileno())
            except (EOFError, OSError):
                ours.close()
                return self._bury_loader(loader)
            self._workers[index] = _Worker(index, pid, Connection(ours.detach()))
        return None

    def _hand_out(self, job: _Job, worker: _Worker) -> None:
        assert self._loader is not None
        worker.job, job.log_start = job, self._loader.log_size()
        with contextlib.suppress(OSError):  # it died: the end of its connection will tell
            worker.connection.send((job.number, job.variant_dir, job.variant_key, job.requests))

    def _next_job(self) -> _Job | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _wait(self) -> None:
        connections = {worker.connection: worker for worker in self._workers.values()}
        control = [self._loader.control] if self._loader else []
        for source in wait([self._woken, *control, *connections]):
            if source is self._woken:
                self._woken.recv(WAKE_BYTES)
            elif source not in connections:
                self._hear_loader()
            elif connections[source].index in self._workers:  # else it was buried with its loader just now
                self._hear_worker(connections[source])

    def _hear_loader(self) -> None:
        """The engine is loaded, could not be, or the loader died."""
        loader = self._loader
        if loader is None:  # buried just now
            return None
        try:
            message = loader.receive()
        except (EOFError, OSError):
            return self._bury_loader(loader)
        if message[0] == "ready":
            loader.ready = True
            self._totals.start_s += time.monotonic() - loader.started_at
        else:
            self._failure = raised("the engine could not start", message[1:])
        return None

    def _bury_loader(self, loader: Loader) -> None:
        how = loader.wait()
        self._loader = None
        for worker in list(self._workers.values()):
            self._drop(worker, f"died with its loader, which {how}", loader)
        if not loader.ready:
            self._cannot_start(f"its process {how}", loader)
        loader.close()

    def _cannot_start(self, why: str, loader: Loader) -> None:
        """Every job fails from now on, unless a better reason is known."""
        text = f"the engine could not start: {why}\n{loader.log_tail()}".strip()
        self._failure = self._failure or EngineDiedError(text)

    def _hear_worker(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury_worker(worker)
        match message:
            case ("ready",):
                worker.started = worker.ready = True
            case ("failed", *described):
                self._failure = raised("the engine could not start", described)
            case ("progress", _, tokens, _):
                self._on_progress(worker.index, tokens)
            case ("done", _, result):
                self._finish(worker, result)
            case ("error", _, described, usable):
                job, worker.job = worker.job, None
                worker.ready = usable  # else it is about to end
                assert job is not None
                job.future.set_exception(raised(f"{len(job.requests)} requests", described))
        return None

    def _finish(self, worker: _Worker, result: dict[str, Any]) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        tokens = sum(completion.output_tokens for completion in result["completions"])
        self._totals.add(result, tokens, self._memory_gib())
        seconds = result["swap_s"] + result["generate_s"]
        job.future.set_result(BatchResult(result["completions"], seconds, self.peak_memory_gib(), self.engine))

    def _memory_gib(self) -> float:
        loader = [self._loader.process.pid] if self._loader is not None else []
        return sum(process_memory_gib(pid) for pid in loader + self.worker_pids())

    def _bury_worker(self, worker: _Worker) -> None:
        loader = self._loader
        assert loader is not None, "workers are forgotten together with their loader"
        try:
            status = loader.ask("reap", worker.pid)
        except (EOFError, OSError):
            self._bury_loader(loader)
        else:
            self._drop(worker, ending(status), loader)
            if not worker.started:
                self._cannot_start(f"its worker {ending(status)}", loader)

    def _drop(self, worker: _Worker, how: str, loader: Loader) -> None:
        """Forget a worker that ended; fail the job it held."""
        del self._workers[worker.index]
        worker.connection.close()
        if worker.job is not None:
            held = f"{len(worker.job.requests)} requests to variant {worker.job.variant_key[:16]}"
            what = f"engine worker {worker.index} (process {worker.pid}) {how} while it held {held}"
            text = f"{what}\n{loader.log_tail(worker.job.log_start)}".strip()
            worker.job.future.set_exception(EngineDiedError(text))

    def _fail_queue(self, error: Exception) -> None:
        while (job := self._next_job()) is not None:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _stop(self) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            if worker.job is not None:
                worker.job.future.set_exception(EngineDiedError("the pool was closed"))
            worker.connection.close()
        if self._loader is not None:
            self._loader.process.kill()
            self._loader.wait()
            self._loader.close()
        with self._lock:
            self._closing = True
        self._fail_queue(self._failure or EngineDiedError("the pool was closed"))


@dataclass
class _Totals:
    start_s: float = 0.0
    swap_s: float = 0.0
    generate_s: float = 0.0
    tokens: int = 0
    memory_gib: float = 0.0  # most seen

    def add(self, result: dict[str, Any], tokens: int, memory_gib: float) -> None:
        self.swap_s += result["swap_s"]
        self.generate_s += result["generate_s"]
        self.tokens += tokens
        self.memory_gib = max(self.memory_gib, memory_gib)
