"""Right specs: what their tables become."""

from pathlib import Path

import pytest

from suite.spec import METHODS, Bf16Params, Budget, RtnParams, Spec, load
from suite.spec.methods import Calibration, MethodParams

from .folders import RIGHT, write_model


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads the right spec with some text replaced."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", b"other weights")

    def load_with(old: str = "", new: str = "") -> Spec:
        assert old in RIGHT
        Path("spec.toml").write_text(RIGHT.replace(old, new, 1))
        return load(Path("spec.toml"))

    return load_with


def test_values(loaded) -> None:
    """Each table lands in its value, and what is not written has the papers' default."""
    spec = loaded()
    assert (spec.name, spec.question, spec.seeds) == ("w4-cost", "What does W4 cost?", (42, 43))
    assert spec.methods == (RtnParams(precision="W4A16KV16-g128"),)
    assert [(b.name, b.num_samples, b.thinking_budgets) for b in spec.benchmarks] == [("tiny-easy", 50, None)]
    assert (spec.generation.top_p, spec.generation.top_k, spec.generation.max_tokens) == (0.95, None, 2048)
    assert spec.path == Path("spec.toml")


def test_question_of_several_lines(loaded) -> None:
    """The question is the first block of comment lines; a later comment is none of it."""
    spec = loaded("# What does W4 cost?\n", "#  What does W4\n# cost?\n\n# A remark.\n")
    assert spec.question == "What does W4 cost?"


def test_method_alone_means_the_papers_settings(loaded) -> None:
    """A name with no other key is a full declaration."""
    assert loaded('precisions = ["W4A16KV16-g128"]\n').methods == (
        RtnParams(precision="W3A16KV16-g128", symmetric=True),
    )


def test_sweep_order(loaded) -> None:
    """A sweep is the product of its lists, precisions varying slowest, the others in the file's order."""
    spec = loaded('["W4A16KV16-g128"]', '["W8A16KV16", "W3A16KV16-g64"]\nsymmetric = [false, true]')
    found = [(str(m.precision), m.symmetric) for m in spec.methods if isinstance(m, RtnParams)]
    assert found == [("W8A16KV16", False), ("W8A16KV16", True), ("W3A16KV16-g64", False), ("W3A16KV16-g64", True)]


def test_excludes_sweep_too(loaded) -> None:
    """A list in an exclude leaves out each of its values, all for one reason."""
    spec = loaded(
        "[generation]",
        '[[method]]\nname = "rtn"\nprecisions = ["W8A16KV16", "W2A16KV16"]\n'
        '[[exclude]]\nprecision = ["W8A16KV16", "W2A16KV16"]\nreason = "r"\n[generation]',
    )
    assert [(e.precision, e.reason) for e in spec.excludes] == [("W8A16KV16", "r"), ("W2A16KV16", "r")]


def test_budgets_of_a_benchmark(loaded) -> None:
    """A benchmark's budgets are its own and leave the others' alone."""
    spec = loaded("num_samples = 50", "num_samples = 50\nthinking_budgets = [{}, { max = 0 }, { min = 8, max = 64 }]")
    assert spec.benchmarks[0].thinking_budgets == (Budget(), Budget(max=0), Budget(min=8, max=64))
    assert spec.generation.thinking_budgets == (Budget(),)


def test_baseline_alone(loaded) -> None:
    """A spec may ask for BF16 only."""
    assert loaded('name = "rtn"\nprecisions = ["W4A16KV16-g128"]', 'name = "bf16"').methods == (Bf16Params(),)


def test_one_method_for_two_models_with_other_parameters(loaded) -> None:
    """`models` restricts a method's table, so that each model can have parameters of its own."""
    spec = loaded(
        "[[method]]\n",
        '[[model]]\nid = "other"\n[[method]]\nname = "rtn"\nprecisions = ["W4A16KV16-g128"]\nmodels = ["other"]\n'
        '[[method]]\nmodels = ["model"]\n',
    )
    assert [(method.models, str(method.precision)) for method in spec.methods] == [
        (("other",), "W4A16KV16-g128"),
        (("model",), "W4A16KV16-g128"),
    ]


def test_nested_tables_sweep() -> None:
    """A list inside a nested table expands the table around it, and each value knows its place in the file."""
    from suite.spec import sweep

    class Swept(MethodParams):
        """A method with calibration, as later ones have."""

        calibrated = True
        calibration: Calibration | None = Calibration(source="pile", num_samples=128, seq_len=512)

    table = {"calibration": {"source": ["pile", "wikitext2"], "num_samples": 8, "seq_len": [512, 1024]}}
    expanded = sweep.expand(sweep.axes(table, Swept, "method[0]"))
    assert [tuple(e.values["calibration"].values()) for e in expanded] == [
        ("pile", 8, 512),
        ("pile", 8, 1024),
        ("wikitext2", 8, 512),
        ("wikitext2", 8, 1024),
    ]
    assert expanded[3].origin["calibration", "seq_len"] == "method[0].calibration.seq_len[1]"


def test_module_names_are_toml_names() -> None:
    """Every method has a parameters class and a module, and all three carry the same name."""
    folder = Path(__file__).parents[2] / "suite" / "methods"
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules == METHODS.keys()
    assert {name: cls.model_fields["name"].default for name, cls in METHODS.items()} == {name: name for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stands_alone(name: str) -> None:
    """Each method's default precisions are ones that it can do, and its defaults have no label."""
    assert METHODS[name].default_precisions
    for precision in METHODS[name].default_precisions:
        assert METHODS[name](name=name, precision=precision).label() == ""
