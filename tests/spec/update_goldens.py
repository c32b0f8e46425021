"""Writes the committed fingerprints of specs/ anew: `python -m tests.spec.update_goldens`. Read the diff."""

import json
from pathlib import Path

from suite.plan import make_plan
from suite.spec import load

ROOT = Path(__file__).parents[2]
SPECS = sorted(ROOT.glob("specs/**/*.toml"))
GOLDENS = Path(__file__).parent / "golden_fingerprints.json"


def key(path: Path) -> str:
    """A spec's key in the goldens: its path below specs/, without the suffix."""
    return path.relative_to(ROOT / "specs").with_suffix("").as_posix()


def fingerprints(path: Path) -> dict[str, dict[str, str]]:
    """The model, variant and cell fingerprints of a spec, by readable name (first 16 digits)."""
    plan = make_plan(load(path))
    return {
        "models": {variant.model.id: variant.model_fingerprint for variant in plan.variants},
        "variants": {variant.name: variant.fingerprint[:16] for variant in plan.variants},
        "cells": {cell.name: cell.fingerprint[:16] for cell in plan.cells},
    }


def main() -> None:
    """Plan every spec and write its fingerprints."""
    found = {key(path): fingerprints(path) for path in SPECS}
    GOLDENS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
