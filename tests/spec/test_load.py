"""Right specs: what their tables become."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from suite.plan import make_plan, make_variant
from suite.spec import METHODS, Bf16Params, Budget, ModelRef, RtnParams, Spec, SpecError, load
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


class SmoothParams(MethodParams):
    """A method with calibration and parameters of several kinds, as later ones have."""

    default_precisions: ClassVar[tuple[str, ...]] = ("W8A8KV8",)
    calibrated: ClassVar[bool] = True

    name: Literal["smooth"] = "smooth"
    alpha: float = 0.85
    weights: Literal["gptq", "rtn"] = "gptq"
    act_order: bool = False
    calibration: Calibration | None = Calibration(source="pile", num_samples=128, seq_len=512)


@pytest.fixture
def with_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """METHODS has that method: one class is all that a spec needs."""
    monkeypatch.setitem(METHODS, "smooth", SmoothParams)


@pytest.mark.usefixtures("with_smooth")
def test_calibration_sweeps_and_keeps_the_rest(loaded) -> None:
    """Sweeps reach into nested tables, and what a calibration leaves unsaid has the method's default."""
    spec = loaded(
        'name = "rtn"\nprecisions = ["W4A16KV16-g128"]',
        'name = "smooth"\nalpha = [0.5, 0.85]\ncalibration = { source = ["pile", "wikitext2"], seq_len = [512, 4096] }',
    )
    found = [(m.alpha, str(m.calibration)) for m in spec.methods if isinstance(m, SmoothParams)]
    of_each = ["pile 128x512", "pile 128x4096", "wikitext2 128x512", "wikitext2 128x4096"]
    assert found == [(alpha, calibration) for alpha in (0.5, 0.85) for calibration in of_each]
    assert len(set(make_plan(spec).cells)) == 9


@pytest.mark.usefixtures("with_smooth")
def test_labels_and_names_say_what_is_not_default(loaded) -> None:
    """A label holds the method's own parameters, a variant's name the calibration as well."""
    spec = loaded(
        'name = "rtn"\nprecisions = ["W4A16KV16-g128"]',
        'name = "smooth"\nalpha = 0.5\nact_order = true\ncalibration = { seq_len = 4096 }',
    )
    assert spec.methods[0].label() == "alpha=0.5 act_order"
    assert make_plan(spec).variants[1].name == "model-smooth-W8A8KV8-alpha=0.5-act_order-pile-128x4096"


@pytest.mark.usefixtures("with_smooth")
def test_error_in_a_nested_sweep_points_at_its_element(loaded) -> None:
    """The key path of a wrong value in a sweep inside a table is that of the element."""
    with pytest.raises(SpecError) as raised:
        loaded('name = "rtn"\nprecisions = ["W4A16KV16-g128"]', 'name = "smooth"\ncalibration = { seq_len = [512, 0] }')
    assert str(raised.value) == "spec.toml: method[0].calibration.seq_len[1] = 0\n  must be at least 1"


@pytest.mark.usefixtures("with_smooth")
def test_shards_bear_on_quantized_activations(loaded) -> None:
    """Where activations are quantized, the number of shards of a row-parallel linear is part of the variant."""
    method = ('name = "rtn"\nprecisions = ["W4A16KV16-g128"]', 'name = "smooth"')
    base = make_plan(loaded(*method)).variants
    model = ModelRef(id="model", row_parallel_groups=4)
    sharded = [make_variant(model, v.method, v.model_fingerprint) for v in base]
    assert [one.fingerprint == other.fingerprint for one, other in zip(base, sharded, strict=True)] == [True, False]


def test_config_that_cannot_be_read(loaded) -> None:
    """A damaged config.json is a problem of the model that has it."""
    Path("model/config.json").write_text("{")
    with pytest.raises(SpecError, match=r'model\[0\].id = "model"\n  config.json cannot be read'):
        loaded()


def test_byte_order_mark(loaded) -> None:
    """An editor's byte order mark is no part of the question."""
    assert loaded("# What", "\ufeff# What").question == "What does W4 cost?"


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
