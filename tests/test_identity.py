"""Fingerprints: what bears on the numbers changes them, nothing else does, and nothing is guessed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec.folders import write_model

from suite import identity
from suite.identity import canonical, fingerprint, model_identity
from suite.spec import ModelRef, Precision, RtnParams

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of hashes that no other test sees."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "suite" / "hashes.json"


@pytest.fixture
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size go through the cache, and are old enough to be remembered."""
    monkeypatch.setattr(identity, "ALWAYS_HASHED", 0)
    monkeypatch.setattr(identity, "SETTLED_NS", -1)


@given(values)
def test_canonical_is_lossless(value: object) -> None:
    """The canonical text holds the whole value: it reads back as what was written."""
    assert json.loads(canonical(value)) == value


@given(st.dictionaries(st.text(), scalars))
def test_order_of_keys_is_nothing(table: dict[str, object]) -> None:
    """A table's keys have no order."""
    assert canonical(table) == canonical(dict(reversed(table.items())))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, "1"), (None, "null"), ([1, 2], [2, 1]), ({"a": None}, {}), ("a", ["a"]), (0.1, 0.1000001)],
)
def test_different_values_differ(one: object, other: object) -> None:
    """Values that are not the same do not share a fingerprint."""
    assert fingerprint(value=one) != fingerprint(value=other)


@pytest.mark.parametrize(
    "value",
    [Path("/tmp"), {1, 2}, math.nan, math.inf, {1: "a"}, object(), b"bytes", [Path()]],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_text_is_refused(value: object) -> None:
    """Nothing is turned into text by guess: paths, sets, NaN and objects raise, and say where they stand."""
    with pytest.raises(ValueError, match=r"^value"):
        canonical(value)


def test_models_count_by_their_fields() -> None:
    """A method's fingerprint changes with each of its parameters, and with none that only selects cells."""
    base = RtnParams(precision=Precision.parse("W3A16KV16-g128"))
    others = [
        RtnParams(precision=Precision.parse("W4A16KV16-g128")),
        RtnParams(precision=Precision.parse("W3A16KV16-g64")),
        RtnParams(precision=Precision.parse("W3A16KV16")),
        RtnParams(precision=base.precision, symmetric=False),
    ]
    found = {fingerprint(method=method.identity()) for method in (base, *others)}
    assert len(found) == 5
    restricted = RtnParams(precision=base.precision, models=("tiny-qwen2",))
    assert fingerprint(method=restricted.identity()) == fingerprint(method=base.identity())


def test_numeric_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """New code behind the same parameters is another method."""
    method = RtnParams(precision=Precision.parse("W3A16KV16-g128"))
    before = fingerprint(method=method.identity())
    monkeypatch.setattr(RtnParams, "numeric_version", 2)
    assert fingerprint(method=method.identity()) != before


def test_fingerprint_is_the_same_in_another_process() -> None:
    """No hash of the process (PYTHONHASHSEED) finds its way in."""
    code = "from suite.identity import fingerprint; print(fingerprint(b=[1, 2.5, 'x'], a={'k': None}))"
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == fingerprint(a={"k": None}, b=[1, 2.5, "x"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_bytes_of_each_file_count(name: str, tmp_path: Path) -> None:
    """One changed byte in weights, config, tokenizer or template is another model."""
    folder = write_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("template")
    before = model_identity(ModelRef(id=str(folder)))
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    assert model_identity(ModelRef(id=str(folder))) != before


def test_path_and_bystanders_do_not_count(tmp_path: Path) -> None:
    """The same bytes elsewhere are the same model, and a model card beside the weights is no part of it."""
    one, other = write_model(tmp_path / "one"), write_model(tmp_path / "deeper" / "other")
    (other / "README.md").write_text("card")
    assert model_identity(ModelRef(id=str(one))) == model_identity(ModelRef(id=str(other)))


@pytest.mark.usefixtures("every_file_is_large")
def test_replaced_file_with_its_old_size_and_times(tmp_path: Path, own_cache: Path) -> None:
    """A remembered file that is replaced by one of the same size and modification time is seen."""
    folder = write_model(tmp_path / "model", b"a" * 100)
    before, weights = model_identity(ModelRef(id=str(folder))), folder / "model.safetensors"
    assert own_cache.exists()
    times = weights.stat()
    weights.write_bytes(b"b" * 100)
    while weights.stat().st_ctime_ns == times.st_ctime_ns:  # the clock of change times ticks every few milliseconds
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    assert model_identity(ModelRef(id=str(folder))) != before


@pytest.mark.usefixtures("every_file_is_large")
def test_remembered_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file is hashed once."""
    model = ModelRef(id=str(write_model(tmp_path / "model")))
    before = model_identity(model)
    monkeypatch.setattr(identity, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert model_identity(model) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\x00", b'{"key": 3}', b'{"key": "short"}'])
@pytest.mark.usefixtures("every_file_is_large")
def test_corrupt_cache_is_hashed_over(content: bytes, tmp_path: Path, own_cache: Path) -> None:
    """Whatever is in the cache file, the identity is the right one, and the cache is mended."""
    model = ModelRef(id=str(write_model(tmp_path / "model")))
    before = model_identity(model)
    own_cache.write_bytes(content)
    assert model_identity(model) == before
    assert len(json.loads(own_cache.read_text())) == 3


@pytest.mark.usefixtures("every_file_is_large")
def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot exist costs time, never a result."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert model_identity(ModelRef(id=str(write_model(tmp_path / "model"))))


def test_young_files_are_not_remembered(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was just written may be written again within one tick of the clock."""
    monkeypatch.setattr(identity, "ALWAYS_HASHED", 0)
    model_identity(ModelRef(id=str(write_model(tmp_path / "model"))))
    assert not own_cache.exists()


def test_hub_model_is_its_commit() -> None:
    """A Hub model needs no download to be identified; without a commit it cannot be."""
    commit = "a" * 40
    assert model_identity(ModelRef(id="Qwen/Qwen3-0.6B", revision=commit)) == f"hub:Qwen/Qwen3-0.6B@{commit}"
    with pytest.raises(ValueError, match="revision"):
        model_identity(ModelRef(id="Qwen/Qwen3-0.6B"))


def test_hub_model_that_cannot_be_downloaded(tmp_path: Path) -> None:
    """Without network, a Hub model that is not here is refused with a way out."""
    code = (
        "from suite.identity import local_folder; from suite.spec import ModelRef\n"
        "local_folder(ModelRef(id='Qwen/Qwen3-0.6B', revision='a' * 40))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "could not be downloaded" in done.stderr
    assert "give its folder as id" in done.stderr
