"""Who may import whom: walked over the source, so that the structure in docs/design.md stays true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "suite"
HEAVY = {"torch", "vllm", "lighteval", "mlflow", "transformers", "datasets", "triton"}

# package or module of suite -> what of suite it may import
ALLOWED = {
    # names of benchmarks and embedded models, families and sizes, to validate against
    "spec": {"spec", "benchmarks", "zoo", "modeling", "numerics"},
    "identity": {"spec", "zoo"},
    "published": set(),
    "plan": {"plan", "spec", "identity", "benchmarks", "calibration", "modeling", "published"},
    "calibration": {"calibration", "spec", "identity", "zoo", "benchmarks", "engine"},
    "store": {"store"},
    "kernels": {"kernels"},
    "numerics": {"numerics", "kernels"},
    "modeling": {"modeling", "numerics", "kernels"},
    "methods": {"methods", "modeling", "numerics", "spec", "calibration", "kernels"},
    "benchmarks": {"benchmarks", "zoo"},
    "engine": {"engine", "modeling", "kernels"},
    "records": {"records"},
    "statistics": {"statistics", "records"},
    "registry": {"registry", "records", "statistics", "store"},
    "tracking": {"tracking", "records", "registry", "store"},
    "report": {"report", "records", "registry", "statistics", "spec", "store", "published"},
    "zoo": {"zoo"},
    "stages": {"benchmarks", "calibration", "engine", "identity", "plan", "methods", "modeling", "spec"},
    "calibrating": {"calibration", "engine", "identity", "plan", "progress", "stages", "store"},
    "progress": {"benchmarks", "plan", "stages"},
    "runner": {
        *("benchmarks", "calibrating", "engine", "identity", "plan", "progress", "records", "spec", "stages", "store"),
    },
}
NO_TORCH_ON_IMPORT = [
    "suite.cli",
    "suite.spec",
    "suite.calibration.traces",
    "suite.plan",
    "suite.modeling.families",
    "suite.numerics.sizes",
    "suite.store",
    "suite.records",
    "suite.runner",
    "suite.zoo",
]


def imports(path: Path) -> set[str]:
    """First part below `suite` of every module that a file imports, at any depth in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "suite":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("suite."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("suite.")}
    return found


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_go_one_way(part: str) -> None:
    """Each part of the suite imports only the parts below it."""
    files = [ROOT / f"{part}.py"] if (ROOT / f"{part}.py").is_file() else sorted((ROOT / part).rglob("*.py"))
    assert files, f"suite/{part} does not exist: take it off the table"
    for path in files:
        beyond = imports(path) - ALLOWED[part]
        assert not beyond, f"{path.relative_to(ROOT.parent)} imports {', '.join(sorted(beyond))}"


def test_every_part_is_on_the_table() -> None:
    """A new part of the suite gets a line here, but for the ones that tie everything together."""
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").is_file())}
    assert parts - ALLOWED.keys() == {"__init__", "__main__", "cli", "session"}


def test_methods_do_not_import_each_other() -> None:
    """A method stands alone: it imports no other method."""
    for path in (ROOT / "methods").glob("*.py"):
        if path.stem != "__init__":
            assert "methods" not in imports(path), path.name


@pytest.mark.parametrize("module", NO_TORCH_ON_IMPORT)
def test_light_modules_stay_light(module: str) -> None:
    """Importing what planning and the command line need imports none of the heavy packages."""
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
