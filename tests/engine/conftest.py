"""One engine and one pool for all tests of this folder, ended with them: starting them takes most of the time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from unittest import mock

import pytest

from suite.engine.engine import Engine
from suite.engine.pool import EnginePool
from suite.engine.settings import EngineSettings

from .tiny_model import write_model

FLOAT32 = EngineSettings(dtype="float32", max_model_len=1024, max_num_seqs=32, kv_cache_bytes=2**27)


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="package")
def engine(tiny_model: Path) -> Iterator[Engine]:
    """A float32 engine in this process. Tests that swap swap back."""
    environment = dict(os.environ)
    engine = Engine(tiny_model, FLOAT32)
    yield engine
    engine.close()
    os.environ.clear()
    os.environ.update(environment)


class StartEngine(Protocol):
    """Starts one more float32 engine."""

    def __call__(self, model: Path, **settings: int | str) -> Engine: ...


@pytest.fixture(scope="package")
def another_engine(engine: Engine) -> Iterator[StartEngine]:
    """More engines beside the shared one; kept to the end, since the end of one takes vLLM's global state with it."""
    kept: list[Engine] = []

    def start(model: Path, **settings: int | str) -> Engine:
        kept.append(Engine(model, dataclasses.replace(FLOAT32, **settings)))  # type: ignore[arg-type]
        return kept[-1]

    yield start
    with mock.patch("gc.collect"):  # vLLM has all of memory searched anew for each of them
        kept.clear()


@pytest.fixture(scope="package")
def pool(tiny_model: Path) -> Iterator[EnginePool]:
    """Two float32 engines in processes of their own."""
    with EnginePool(str(tiny_model), 2, FLOAT32) as pool:
        yield pool
