"""The parent's handle on the loader (see `worker`), and what it needs to know about processes that end."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from suite.engine.settings import EngineSettings, environment

PACKET_BYTES = 2**16
LOG_TAIL_BYTES = 2000


@dataclass
class Loader:
    """The process that workers are forked from. `log` has what it and they write, in a file without a name."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    log: IO[bytes]
    started_at: float
    ready: bool = False

    def ask(self, command: str, argument: int, *descriptors: int) -> Any:
        """Send a command and wait for the answer, which the idle loader gives at once."""
        socket.send_fds(self.control, [pickle.dumps((command, argument))], descriptors)
        return self.receive()

    def receive(self) -> Any:
        """The next message. Raises: EOFError if the loader is gone."""
        packet = self.control.recv(PACKET_BYTES)
        if not packet:
            raise EOFError
        return pickle.loads(packet)

    def log_size(self) -> int:
        """Bytes that the engine processes have written."""
        return os.fstat(self.log.fileno()).st_size

    def log_tail(self, start: int = 0) -> str:
        """The last that they wrote, from byte `start` on."""
        first = max(start, self.log_size() - LOG_TAIL_BYTES)
        return os.pread(self.log.fileno(), LOG_TAIL_BYTES, first).decode(errors="replace").strip()

    @classmethod
    def start(cls, model_path: str, settings: EngineSettings) -> Loader:
        """Start one. It dies with the thread that calls this."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the loader)
        env = environment(settings)
        package_root = str(Path(__file__).parents[2])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, env.get("PYTHONPATH")]))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "suite.engine.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
            )
        ours.send(pickle.dumps((model_path, settings)))
        return cls(process, ours, log, time.monotonic())

    def wait(self) -> str:
        """Wait for its end; says how it came."""
        code = self.process.wait()
        return ending(-code if code < 0 else code << 8)

    def close(self) -> None:
        """Close the socket and the log."""
        self.control.close()
        self.log.close()


def process_memory_gib(pid: int) -> float:
    """Memory of a process, 0 if it is gone; a page that n processes share counts as 1/n (PSS): it can be added up."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20


def raised(what: str, described: Any) -> Exception:
    """The exception that another process described (worker.described); its traceback there becomes a note."""
    is_value_error, message, text = described
    error = ValueError(message) if is_value_error else RuntimeError(f"{what}: {message}")
    error.add_note(text)
    return error


def ending(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hint = "; if memory ran out, use fewer workers or a smaller kv_cache_bytes" if number == signal.SIGKILL else ""
        return f"was ended by signal {signal.Signals(number).name}{hint}"
    return f"ended with status {os.WEXITSTATUS(status)}"
