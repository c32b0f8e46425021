"""Specs that are wrong, each in one way, with the whole message a user gets."""

from pathlib import Path

import pytest

from suite.spec import SpecError, load

from .folders import RIGHT, write_model

# name -> (text of the right spec, what stands there instead, the message after the file's name)
WRONG: dict[str, tuple[str, str, str]] = {
    "misspelled top-level key": (
        "seeds =",
        "sedes =",
        "sedes = [42, 43]\n  unknown key\n  did you mean seeds?",
    ),
    "plural table": (
        "[[benchmark]]",
        "[[benchmarks]]",
        'benchmarks = [{ name = "tiny-easy", num_samples = 50 }]\n  unknown key\n  did you mean [[benchmark]]?',
    ),
    "single brackets": (
        "[[method]]",
        "[method]",
        'method = { name = "rtn", precisions = ["W4A16KV16-g128"] }\n'
        "  must be an array of tables\n"
        "  write [[method]] with double brackets",
    ),
    "double brackets": (
        "[generation]",
        "[[generation]]",
        "generation = [{ temperature = 0.6, max_tokens = 2048, thinking_budgets = [{}] }]\n"
        "  must be a table\n"
        "  write [generation] with single brackets",
    ),
    "no question": (
        "# What does W4 cost?\n",
        "",
        "line 1\n"
        "  a spec begins with a comment: the question it answers\n"
        '  for example "# Does 4-bit weight-only quantization cost reasoning more than recall?"',
    ),
    "question after the first key": (
        "# What does W4 cost?\nname",
        "name",
        "line 1\n"
        "  a spec begins with a comment: the question it answers\n"
        '  for example "# Does 4-bit weight-only quantization cost reasoning more than recall?"',
    ),
    "name is no slug": (
        '"w4-cost"',
        '"W4 cost?"',
        'name = "W4 cost?"\n'
        "  a name becomes file names: lower-case letters, digits, - and _, at most 64\n"
        '  did you mean "w4-cost"?',
    ),
    "name is a number": (
        '"w4-cost"',
        "4",
        "name = 4\n  must be a string",
    ),
    "no name": (
        'name = "w4-cost"\n',
        "",
        'name\n  required key is missing\n  add name = "..."',
    ),
    "no seeds": (
        "[42, 43]",
        "[]",
        "seeds = []\n  must not be empty\n  give a value, or leave the key out",
    ),
    "negative seed": (
        "[42, 43]",
        "[42, -1]",
        "seeds = [42, -1]\n  a seed is at least 0 and below 2**31; -1 is not\n  42 and 43 do as well as any",
    ),
    "seed twice": (
        "[42, 43]",
        "[42, 42]",
        "seeds = [42, 42]\n  seed 42 is there twice: its answers would count twice\n  keep each seed once",
    ),
    "seed is text": (
        "[42, 43]",
        '[42, "43"]',
        'seeds[1] = "43"\n  must be a whole number',
    ),
    "seeds is one number": (
        "[42, 43]",
        "42",
        "seeds = 42\n  must be a list\n  put it in [ ]",
    ),
    "unknown model": (
        '"model"',
        '"tiny-qwem2"',
        'model[0].id = "tiny-qwem2"\n'
        "  no embedded model and no folder is called so\n"
        '  did you mean "tiny-qwen2"? (a Hub id is written owner/name)',
    ),
    "folder that is not there": (
        '"model"',
        '"./gone"',
        'model[0].id = "./gone"\n  there is no such folder\n  a folder is given relative to where the command runs',
    ),
    "folder without a model": (
        '"model"',
        '"."',
        'model[0].id = "."\n  . holds no model: config.json is missing\n  give the folder save_pretrained wrote',
    ),
    "Hub model without commit": (
        '"model"',
        '"Qwen/Qwen3-0.6B"',
        "model[0].revision\n"
        "  Qwen/Qwen3-0.6B is no folder here but a Hub model: those are pinned to a commit\n"
        '  add revision = "<commit>"; `git ls-remote https://huggingface.co/Qwen/Qwen3-0.6B HEAD` prints it',
    ),
    "Hub model at a branch": (
        '"model"',
        '"Qwen/Qwen3-0.6B"\nrevision = "main"',
        'model[0].revision = "main"\n'
        "  a revision is a commit of 40 hexadecimal digits: branches and tags move\n"
        "  `git ls-remote https://huggingface.co/<id> HEAD` prints the commit to pin",
    ),
    "folder with a revision": (
        '"model"',
        '"model"\nrevision = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"',
        'model[0].revision = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"\n'
        "  a model on this machine has no revision\n"
        "  remove the key: the bytes of its files are its identity",
    ),
    "model twice": (
        "[[method]]",
        '[[model]]\nid = "model"\n[[method]]',
        'model[1].id = "model"\n  this model is there already, in model[0]\n  keep it once',
    ),
    "no model": (
        '[[model]]\nid = "model"\n',
        "",
        "model\n  a spec needs at least one model\n  add a [[model]] table with an id",
    ),
    "list of models in one table": (
        '"model"',
        '["model"]',
        'model[0].id = ["model"]\n  must be a string\n  one value stands here: write a table for each',
    ),
    "shards below one": (
        '"model"',
        '"model"\nrow_parallel_groups = 0',
        "model[0].row_parallel_groups = 0\n  must be at least 1",
    ),
    "unknown method": (
        '"rtn"',
        '"rnt"',
        'method[0].name = "rnt"\n  unknown method\n  did you mean "rtn"?',
    ),
    "method without a name": (
        'name = "rtn"\n',
        "",
        "method[0].name\n  required key is missing\n"
        '  known: "bf16", "rtn", "gptq", "awq", "kvquant", "quarot", "smoothquant", "flatquant", "mxfp4"',
    ),
    "precision for precisions": (
        'precisions = ["W4A16KV16-g128"]',
        'precision = "W4A16KV16-g128"',
        'method[0].precision = "W4A16KV16-g128"\n  unknown key\n  write precisions = ["W4A16KV16-g128"]',
    ),
    "precisions is one string": (
        '["W4A16KV16-g128"]',
        '"W4A16KV16-g128"',
        'method[0].precisions = "W4A16KV16-g128"\n  must be a list of strings\n  write precisions = ["W4A16KV16-g128"]',
    ),
    "no precisions": (
        '["W4A16KV16-g128"]',
        "[]",
        "method[0].precisions = []\n  an empty list makes no variant\n  name a precision, or leave the key out",
    ),
    "precision is no precision": (
        '"W4A16KV16-g128"',
        '"w4g128"',
        'method[0].precisions[0] = "w4g128"\n'
        "  a precision is written W<bits>A<bits>KV<bits>[-g<group size>], or MXFP4\n"
        '  did you mean "W4A16KV16-g128"?',
    ),
    "precision with a width nobody has": (
        '"W4A16KV16-g128"',
        '"W9A16KV16-g128"',
        'method[0].precisions[0] = "W9A16KV16-g128"\n'
        "  W9: a width is 2 to 8 bits, or 16 for bf16\n"
        '  did you mean "W8A16KV16-g128"?',
    ),
    "precision is a number": (
        '"W4A16KV16-g128"',
        "4",
        "method[0].precisions[0] = 4\n"
        "  a precision is written W<bits>A<bits>KV<bits>[-g<group size>], or MXFP4\n"
        '  a string such as "W4A16KV16-g128"',
    ),
    "group on W16": (
        '"W4A16KV16-g128"',
        '"W4A16KV16-g128", "W16A16KV16-g128"',
        'method[0].precisions[1] = "W16A16KV16-g128"\n'
        "  a group size belongs to quantized weights, and W16 is bf16\n"
        '  did you mean "W16A16KV16"?',
    ),
    "group of nothing": (
        '"W4A16KV16-g128"',
        '"W4A16KV16-g0"',
        'method[0].precisions[0] = "W4A16KV16-g0"\n'
        "  g0: a group is at least 2 weights that share a scale\n"
        '  write "-g128", or leave it out',
    ),
    "group that divides no layer": (
        '"W4A16KV16-g128"',
        '"W4A16KV16-g96"',
        'method[0].precisions[0] = "W4A16KV16-g96"\n'
        "  a group of 96 does not divide the 256 inputs of q, k, v, gate and up in model\n"
        "  every layer can be cut into groups of 32",
    ),
    "nothing for the method to do": (
        '"W4A16KV16-g128"',
        '"W16A16KV16"',
        'method[0].precisions[0] = "W16A16KV16"\n'
        "  leaves rtn nothing to quantize\n"
        '  the unquantized model is `name = "bf16"`, in the matrix without being named',
    ),
    "precision twice": (
        '"W4A16KV16-g128"',
        '"W4A16KV16-g128", "W4A16KV16-g128"',
        'method[0].precisions[1] = "W4A16KV16-g128"\n  is in the list twice\n  keep it once',
    ),
    "parameter of no method": (
        '-g128"]',
        '-g128"]\nsymetric = true',
        "method[0].symetric = true\n  unknown key\n  did you mean symmetric?",
    ),
    "parameter of the wrong type": (
        '-g128"]',
        '-g128"]\nsymmetric = "yes"',
        'method[0].symmetric = "yes"\n  must be true or false',
    ),
    "second value of a sweep wrong": (
        '-g128"]',
        '-g128"]\nsymmetric = [true, 0]',
        "method[0].symmetric[1] = 0\n  must be true or false",
    ),
    "empty sweep": (
        '-g128"]',
        '-g128"]\nsymmetric = []',
        "method[0].symmetric = []\n  an empty list makes no variant\n  give a value, or leave the key out",
    ),
    "value twice in a sweep": (
        '-g128"]',
        '-g128"]\nsymmetric = [true, true]',
        "method[0].symmetric[1] = true\n  is in the list twice\n  keep it once",
    ),
    "calibration of a method without any": (
        '-g128"]',
        '-g128"]\ncalibration = { source = "pile", num_samples = 8, seq_len = 512 }',
        'method[0].calibration = { source = "pile", num_samples = 8, seq_len = 512 }\n'
        "  this method looks at no data\n"
        "  remove the key",
    ),
    "method for a model that is not there": (
        '-g128"]',
        '-g128"]\nmodels = ["tiny"]',
        'method[0].models[0] = "tiny"\n  not a model of this spec\n  known: "model"',
    ),
    "variant twice": (
        "[[benchmark]]",
        '[[method]]\nname = "rtn"\nprecisions = ["W4A16KV16-g128"]\n[[benchmark]]',
        'method[1].precisions[0] = "W4A16KV16-g128"\n'
        "  the same variant stands in method[0].precisions[0]: its cells would be counted twice\n"
        "  remove one, or change a parameter",
    ),
    "bf16 with bits": (
        "[[benchmark]]",
        '[[method]]\nname = "bf16"\nprecisions = ["W8A16KV16"]\n[[benchmark]]',
        'method[1].precisions[0] = "W8A16KV16"\n'
        "  bf16 quantizes nothing\n"
        '  its one precision is "W16A16KV16"; leave the key out',
    ),
    "unknown benchmark": (
        '"tiny-easy"',
        '"tiny-esay"',
        'benchmark[0].name = "tiny-esay"\n  unknown benchmark\n  did you mean "tiny-easy"?',
    ),
    "local copies that are not there": (
        'name = "tiny-easy"',
        'name = "gsm8k"\ndata = "nowhere"',
        'benchmark[0].data = "nowhere"\n'
        "  data = nowhere: nowhere/gsm8k/test.jsonl is not there; put the split there, or leave out the data folder\n"
        "  a path is relative to where the command runs",
    ),
    "local copies of what is generated": (
        'name = "tiny-easy"',
        'name = "tiny-easy"\ndata = "nowhere"',
        'benchmark[0].data = "nowhere"\n  tiny-easy is generated and reads no files\n  remove the key',
    ),
    "a benchmark that executes code": (
        'name = "tiny-easy"',
        'name = "livecodebench"',
        "benchmark[0].execute_code\n"
        "  livecodebench executes the programs that the model writes\n"
        '  allow it with execute_code = "isolated": each runs in a sandbox of its own, or not at all',
    ),
    "code execution where there is none": (
        'name = "tiny-easy"',
        'name = "tiny-easy"\nexecute_code = "isolated"',
        'benchmark[0].execute_code = "isolated"\n  tiny-easy executes no code\n  remove the key',
    ),
    "code execution of a kind that there is not": (
        'name = "tiny-easy"',
        'name = "livecodebench"\nexecute_code = true',
        'benchmark[0].execute_code = true\n  must be one of "isolated" or "unisolated"',
    ),
    "benchmark twice": (
        "[generation]",
        '[[benchmark]]\nname = "tiny-easy"\n[generation]',
        'benchmark[1].name = "tiny-easy"\n  this benchmark is there already, in benchmark[0]\n  keep it once',
    ),
    "more samples than there are": (
        "num_samples = 50",
        "num_samples = 501",
        "benchmark[0].num_samples = 501\n"
        "  tiny-easy has 500 questions\n"
        "  ask for at most that many, or leave the key out for all of them",
    ),
    "no samples": (
        "num_samples = 50",
        "num_samples = 0",
        "benchmark[0].num_samples = 0\n  must be at least 1",
    ),
    "samples as a fraction": (
        "num_samples = 50",
        "num_samples = 0.5",
        "benchmark[0].num_samples = 0.5\n  must be a whole number",
    ),
    "budget upside down": (
        "[{}]",
        "[{ min = 64, max = 32 }]",
        "generation.thinking_budgets[0] = { min = 64, max = 32 }\n"
        "  min is above max\n"
        "  swap them: { min = 32, max = 64 }",
    ),
    "budget that leaves no answer": (
        "[{}]",
        "[{}, { max = 2048 }]",
        "generation.thinking_budgets[1].max = 2048\n"
        "  leaves no room for an answer in max_tokens = 2048\n"
        "  lower it, or raise generation.max_tokens: thinking and answer share it",
    ),
    "packed groups that no kernel has": (
        RIGHT[RIGHT.index("precisions") :],
        RIGHT[RIGHT.index("precisions") :].replace("g128", "g64") + "packed = true\n",
        'method[0].precisions[0] = "W4A16KV16-g64"\n'
        "  packed weights have groups of 128 inputs, or one grid a row\n"
        "  use -g128, or generation.packed = false",
    ),
    "nothing to pack": (
        RIGHT[RIGHT.index("precisions") :],
        RIGHT[RIGHT.index("precisions") :].replace("W4", "W8") + "packed = true\n",
        "generation.packed = true\n"
        "  no variant has weights or a cache of 3 or 4 bits\n"
        "  remove the key, or add such a precision",
    ),
    "budget twice": (
        "[{}]",
        "[{ max = 8 }, { max = 8 }]",
        "generation.thinking_budgets = [{ max = 8 }, { max = 8 }]\n"
        "  the budget max=8 is there twice: its cells would be counted twice\n"
        "  keep it once",
    ),
    "no budgets": (
        "[{}]",
        "[]",
        "generation.thinking_budgets = []\n  must not be empty\n  give a value, or leave the key out",
    ),
    "budget with a wrong key": (
        "[{}]",
        "[{ maximum = 8 }]",
        "generation.thinking_budgets[0].maximum = 8\n  unknown key\n  did you mean max?",
    ),
    "budget is a number": (
        "[{}]",
        "[8]",
        "generation.thinking_budgets[0] = 8\n  must be a table\n  write { key = value }",
    ),
    "budgets is one table": (
        "[{}]",
        "{ max = 8 }",
        "generation.thinking_budgets = { max = 8 }\n  must be a list\n  put it in [ ]",
    ),
    "negative budget": (
        "[{}]",
        "[{ max = -1 }]",
        "generation.thinking_budgets[0].max = -1\n  must be at least 0",
    ),
    "negative temperature": (
        "temperature = 0.6",
        "temperature = -0.1",
        "generation.temperature = -0.1\n  must be at least 0",
    ),
    "infinite temperature": (
        "temperature = 0.6",
        "temperature = inf",
        "generation.temperature = inf\n  must be a finite number",
    ),
    "top_p of nothing": (
        "temperature = 0.6",
        "top_p = 0.0",
        "generation.top_p = 0.0\n  must be above 0",
    ),
    "greedy with seeds": (
        "temperature = 0.6",
        "temperature = 0",
        "generation.temperature = 0\n"
        "  at temperature 0 the 2 seeds give the same answers, counted 2 times\n"
        "  keep one seed, or raise the temperature",
    ),
    "longer than the context": (
        "max_tokens = 2048",
        "max_tokens = 4096",
        "generation.max_tokens = 4096\n  model has a context of 4096 tokens, prompt included\n  lower it",
    ),
    "misspelled generation key": (
        "temperature =",
        "temprature =",
        "generation.temprature = 0.6\n  unknown key\n  did you mean temperature?",
    ),
    "exclude without a reason": (
        "[generation]",
        '[[exclude]]\nbenchmark = "tiny-easy"\n[generation]',
        "exclude[0].reason\n  required key is missing\n  say why these cells are left out: it stands in the report",
    ),
    "exclude of nothing": (
        "[generation]",
        '[[exclude]]\nreason = "r"\n[generation]',
        'exclude[0] = { reason = "r" }\n'
        "  an exclude names what it leaves out\n"
        "  add model, method, precision or benchmark",
    ),
    "exclude of a name that is not there": (
        "[generation]",
        '[[exclude]]\nprecision = "W4A16KV16-g64"\nreason = "r"\n[generation]',
        'exclude[0].precision = "W4A16KV16-g64"\n'
        "  no precision of this spec is called so\n"
        '  did you mean "W4A16KV16-g128"?',
    ),
    "exclude that matches no cell": (
        "[generation]",
        '[[method]]\nname = "rtn"\nprecisions = ["W8A16KV16"]\nmodels = ["model"]\n'
        '[[exclude]]\nmethod = "rtn"\nprecision = "W8A16KV16"\nmodel = "other"\nreason = "r"\n'
        '[[model]]\nid = "other"\n[generation]',
        'exclude[0] = { reason = "r", model = "other", method = "rtn", precision = "W8A16KV16" }\n'
        "  no cell of this spec has all of these at once\n"
        "  correct it, or remove the exclude",
    ),
    "exclude of the baseline alone": (
        "[generation]",
        '[[exclude]]\nmethod = "bf16"\nreason = "r"\n[generation]',
        'exclude[0] = { reason = "r", method = "bf16" }\n'
        "  BF16 cannot be left out alone: every drop is against it\n"
        "  exclude the model or the benchmark without a method: that leaves out BF16 as well",
    ),
    "exclude of everything": (
        "[generation]",
        '[[exclude]]\nbenchmark = "tiny-easy"\nreason = "r"\n[generation]',
        "exclude\n  nothing is left of the matrix\n  remove an exclude",
    ),
    "paper that is not known": (
        "[generation]",
        '[paper]\nname = "P3"\ntable = "Table 1"\n[generation]',
        'paper.name = "P3"\n  must be one of "P1" or "P2"',
    ),
    "table that is no table": (
        "[generation]",
        '[paper]\nname = "P1"\ntable = "1"\n[generation]',
        'paper.table = "1"\n'
        "  P1 has no such table of results\n"
        '  known: "Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6"',
    ),
    "not TOML": (
        'name = "w4-cost"',
        "name = w4-cost",
        "line 2, column 8\n  not TOML: Invalid value\n  the line reads: name = w4-cost",
    ),
    "bracket not closed": (
        "max_tokens = 2048",
        "max_tokens = [2048",
        "line 19, column 1\n  not TOML: Unclosed array\n  the line reads: thinking_budgets = [{}]",
    ),
    "key twice": (
        'name = "w4-cost"',
        'name = "w4-cost"\nname = "w4"',
        'line 3, column 12\n  not TOML: Cannot overwrite a value\n  the line reads: name = "w4"',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_message(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thing wrong gives one problem, and this is how it reads."""
    right, wrong, message = WRONG[case]
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_model(tmp_path / "other")
    assert right in RIGHT
    Path("spec.toml").write_text(RIGHT.replace(right, wrong, 1))
    with pytest.raises(SpecError) as raised:
        load(Path("spec.toml"))
    assert str(raised.value) == f"spec.toml: {message}"


def test_all_problems_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is wrong in many places says so in one go, in the file's order, one paragraph a problem."""
    monkeypatch.chdir(tmp_path)
    Path("spec.toml").write_text(
        """name = "Two words"
seeds = [1, 1]
colour = "red"
[[model]]
id = "tiny-qwem2"
[[method]]
name = "rnt"
[[method]]
name = "rtn"
precisions = ["W3A16KV16-g12x", "W16A16KV16"]
symetric = true
[[benchmark]]
name = "tiny-hrad"
[[benchmark]]
name = "tiny-easy"
num_samples = 501
thinking_budgets = []
[generation]
temperature = "hot"
max_tokens = 64
thinking_budgets = [{ max = 64 }]
[[exclude]]
model = "x"
"""
    )
    with pytest.raises(SpecError) as raised:
        load("spec.toml")
    assert [problem.key_path for problem in raised.value.problems] == [
        "line 1",
        "name",
        "seeds",
        "colour",
        "model[0].id",
        "method[0].name",
        "method[1].precisions[0]",
        "method[1].precisions[1]",
        "method[1].symetric",
        "benchmark[0].name",
        "benchmark[1].thinking_budgets",
        "benchmark[1].num_samples",
        "generation.temperature",
        "generation.thinking_budgets[0].max",
        "exclude[0].reason",
    ]
    assert len(str(raised.value).split("\n\n")) == len(raised.value.problems)


def test_a_problem_of_a_sweep_is_told_once(tmp_path: Path) -> None:
    """A wrong key beside a sweep is one problem, not one per table that the sweep expands to."""
    write_model(tmp_path / "model")
    text = RIGHT.replace('"model"', f'"{tmp_path / "model"}"')
    text = text.replace('-g128"]', '-g128", "W3A16KV16-g128"]\nsymmetric = [true, false]\nbits = 3')
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(SpecError) as raised:
        load(tmp_path / "spec.toml")
    assert [problem.key_path for problem in raised.value.problems] == ["method[0].bits"]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """A path that does not exist is a problem that names the nearest spec beside it."""
    (tmp_path / "quickstart.toml").write_text("")
    with pytest.raises(SpecError) as raised:
        load(tmp_path / "quickstrat.toml")
    assert str(raised.value) == (
        f"{tmp_path}/quickstrat.toml: file\n"
        "  cannot be read: No such file or directory\n"
        '  did you mean "quickstart.toml"?'
    )


def test_file_that_is_not_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused with their place."""
    (tmp_path / "spec.toml").write_bytes(b'# Q?\nname = "\xff"')
    with pytest.raises(SpecError, match=r"byte 13\n  a spec is UTF-8 text"):
        load(tmp_path / "spec.toml")


def test_sweep_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that expands to more tables than anybody wants is refused before it is expanded."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    names = [str(i) for i in range(101)]
    Path("spec.toml").write_text(RIGHT + f'[[exclude]]\nreason = "r"\nmodel = {names}\nbenchmark = {names}\n')
    with pytest.raises(SpecError, match=r"exclude\[0\]\n  expands to 10201 tables, more than 10000"):
        load("spec.toml")
