"""The specs that ship: each parses and plans, and its fingerprints are the committed ones."""

import json
from pathlib import Path

import pytest

from suite.plan import make_plan
from suite.spec import load

from .update_goldens import GOLDENS, SPECS, fingerprints, key

HOW_TO_UPDATE = (
    "an identity changed: results stored so far will be computed again. If that is meant (new weights, new data, new"
    " numerics), run `python -m tests.spec.update_goldens`, and say in the commit why"
)


def test_there_are_specs() -> None:
    """The folder of specs is where it is looked for."""
    assert "quickstart.toml" in {path.name for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=key)
def test_parses_and_plans(path: Path) -> None:
    """Each spec is right, and each of its models has its baseline first."""
    plan = make_plan(load(path))
    assert plan.cells
    for model in plan.spec.models:
        assert next(variant for variant in plan.variants if variant.model == model).is_baseline


@pytest.mark.parametrize("path", SPECS, ids=key)
def test_fingerprints_are_golden(path: Path) -> None:
    """A change of identity shows in review."""
    golden = json.loads(GOLDENS.read_text())
    assert fingerprints(path) == golden.get(key(path)), HOW_TO_UPDATE


def test_no_golden_without_a_spec() -> None:
    """A removed spec leaves no fingerprints behind."""
    assert json.loads(GOLDENS.read_text()).keys() == {key(path) for path in SPECS}, HOW_TO_UPDATE


def test_names_are_distinct() -> None:
    """A spec's name is the name of its results: two specs cannot share one."""
    names = [load(path).name for path in SPECS]
    assert len(set(names)) == len(names)
