"""The engine processes behind `pool`: one loader that starts vLLM once, and workers forked from it.

    python -m suite.engine.worker CONTROL_FD PARENT_PID

Importing vLLM takes most of an engine's start and nearly all of its memory. The loader pays for both once; a worker is
a fork of it that shares the pages, is there within milliseconds, and so is its replacement if it dies. On CPU the
loader also starts the engine before it forks. A CUDA context does not survive a fork: there, each worker starts an
engine of its own.

Every process dies with its parent, even if that is killed: the kernel sees to it (PR_SET_PDEATHSIG), and so does the
end of the pipe. Messages are pickles of plain data; the loader's go over a packet socket, which can carry the file
descriptors of the workers' connections.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from suite.engine import Request
    from suite.engine.engine import Engine
    from suite.engine.settings import EngineSettings

PACKET_BYTES = 2**16
# transformers' assisted generation imports them where they are installed. vLLM does not use it, and they take a fifth
# of the time that importing vLLM takes.
NOT_NEEDED = ("sklearn", "scipy")


def main(control_fd: int, parent: int) -> None:
    """The loader: start the engine, then fork a worker whenever the pool asks for one, until the pool is gone."""
    control = socket.socket(fileno=control_fd)
    die_with(parent)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides what it means
    model_path, settings = pickle.loads(control.recv(PACKET_BYTES))
    gc.disable()  # collecting while thousands of modules are imported takes a fifth of the start, and finds nothing
    try:
        engine = _load(model_path, settings)
    except Exception as error:
        control.send(pickle.dumps(("failed", *described(error))))
        return
    gc.freeze()  # the collector would otherwise write to, and so copy, the pages that workers share
    gc.enable()
    control.send(pickle.dumps(("ready",)))
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET_BYTES, 1)
        if not packet:
            os._exit(0)
        command, argument = pickle.loads(packet)
        if command == "reap":
            control.send(pickle.dumps(os.waitpid(argument, 0)[1]))
            continue
        loader, pid = os.getpid(), os.fork()
        if pid == 0:
            control.close()
            _work(Connection(descriptors[0]), loader, engine, model_path, settings)
        os.close(descriptors[0])
        control.send(pickle.dumps(pid))


def _load(model_path: str, settings: EngineSettings) -> Engine | None:
    for name in NOT_NEEDED:
        sys.modules[name] = None  # type: ignore[assignment]  # documented: makes its import fail
    from suite.engine.engine import Engine, checkpoint_shapes

    checkpoint_shapes(Path(model_path))  # what is no model is refused before the long import
    import vllm.v1.engine.llm_engine  # noqa: F401

    import suite.modeling  # noqa: F401  (workers need it: import it before they are forked)

    if settings.device != "cpu":
        return None
    gc.freeze()  # vLLM collects five times while it starts: not through all modules
    return Engine(model_path, settings)


def _work(jobs: Connection, loader: int, engine: Engine | None, model_path: str, settings: EngineSettings) -> NoReturn:
    """One worker: take jobs until the pool is gone, or until the engine is of no use any more."""
    status = 1
    try:
        die_with(loader)
        if engine is None:
            engine = _build(jobs, model_path, settings)
        jobs.send(("ready",))
        held = None  # a fresh engine serves the checkpoint
        while engine.usable:
            number, variant_dir, variant, requests = jobs.recv()
            wanted = None if variant_dir is None else (variant_dir, variant)
            started = time.monotonic()
            try:
                if wanted != held:
                    _swap(engine, variant_dir)
                held = wanted
                jobs.send(("done", number, _generate(jobs, number, engine, requests, started)))
            except Exception as error:
                jobs.send(("error", number, described(error), engine.usable))
    except (EOFError, BrokenPipeError):
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # vLLM's own shutdown would wait for threads that only the loader has


def _build(jobs: Connection, model_path: str, settings: EngineSettings) -> Engine:
    from suite.engine.engine import Engine

    try:
        return Engine(model_path, settings)
    except Exception as error:
        jobs.send(("failed", *described(error)))
        raise


def _generate(jobs: Connection, number: int, engine: Engine, requests: list[Request], started: float) -> dict[str, Any]:
    swapped = time.monotonic()
    completions = engine.generate(
        requests, on_progress=lambda tokens, finished: jobs.send(("progress", number, tokens, finished))
    )
    return {
        "completions": completions,
        "swap_s": swapped - started,
        "generate_s": time.monotonic() - swapped,
    }


def _swap(engine: Engine, variant_dir: Path | None) -> None:
    if variant_dir is None:
        return engine.swap()
    from suite.engine.packed_plan import packed_weights
    from suite.engine.plugin_plan import Operators
    from suite.modeling import QuantizedModel

    model = QuantizedModel.load(variant_dir)
    operators = Operators(model.linear_operators, model.attention_operators, model.operator_tensors)
    packed = packed_weights(model) if engine.settings.packed else None
    return engine.swap(model.state_dict(), None if model.weight_only else operators, packed)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(0)


def described(error: Exception) -> tuple[bool, str, str]:
    """(whether it is a ValueError, its message, its traceback): what another process needs to raise it again."""
    is_value_error = isinstance(error, ValueError)
    message = str(error) if is_value_error else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    return is_value_error, message[: PACKET_BYTES // 8], text[-PACKET_BYTES // 8 :]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
