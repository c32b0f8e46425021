"""Problems: right answers, graded difficulty, splits that cannot meet."""

import random
import re
import string
from functools import cache

import pytest

from suite.zoo import problems as zoo_problems
from suite.zoo.problems import (
    DIFFICULTIES,
    NUM_PROBLEMS,
    NUM_STEPS,
    Difficulty,
    Problem,
    Program,
    dev_problems,
    iterate,
    random_program,
    split_of,
)


@cache
def benchmark(difficulty: Difficulty) -> list[Problem]:
    """The test problems of a difficulty."""
    return zoo_problems.test_problems(difficulty)


def evaluate(prompt: str) -> int:
    """Run the prompt as Python, modulo 1000 after each statement: shares no code with the generator."""
    first, *statements, question = prompt.split("\n")
    variables: dict[str, int] = {first[0]: int(first[2:])}
    for statement in statements:
        expression, name = statement.split("=")
        variables[name] = eval(expression, {"__builtins__": {}}, variables) % 1000
    assert re.fullmatch(r"[a-z]\?", question)
    return variables[question[0]]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_answers_are_right(difficulty):
    """Each answer is what Python computes from the prompt, written without leading zeros."""
    for problem in benchmark(difficulty):
        assert problem.answer == str(evaluate(problem.prompt))


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_benchmark_size_and_lengths(difficulty):
    """At least 400 problems, all different, with as many operations as their difficulty says."""
    problems = benchmark(difficulty)
    low, high = NUM_STEPS[difficulty]
    assert len(problems) == NUM_PROBLEMS >= 400
    assert len({p.program.canonical() for p in problems}) == len(problems) == len({p.id for p in problems})
    assert {p.prompt.count("\n") - 1 for p in problems} <= set(range(low, high + 1))


def test_difficulties_do_not_overlap():
    """Every hard problem is longer than every medium one, and that than every easy one."""
    assert NUM_STEPS["easy"][1] < NUM_STEPS["medium"][0] <= NUM_STEPS["medium"][1] < NUM_STEPS["hard"][0]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_splits_are_disjoint(difficulty):
    """No test problem is a dev problem, and neither passes as training data."""
    test = {p.program.canonical() for p in benchmark(difficulty)}
    dev = {p.program.canonical() for p in dev_problems(difficulty, 200)}
    assert not test & dev
    assert {split_of(p.program) for p in benchmark(difficulty)} == {"test"}
    assert {split_of(p.program) for p in dev_problems(difficulty, 200)} == {"dev"}


def renamed(program: Program, names: str) -> Program:
    """The same program under other names."""
    source = program.source()
    old = dict.fromkeys(c for c in source if c.isalpha())
    table = str.maketrans(dict(zip(old, names, strict=False)))
    steps = tuple(
        type(s)(s.name.translate(table), s.left.translate(table), s.op, s.right.translate(table)) for s in program.steps
    )
    return Program(program.first.translate(table), program.start, steps)


def test_renaming_does_not_change_the_split():
    """A test problem under other names is still a test problem, so it cannot be trained on."""
    rng = random.Random(0)
    for problem in benchmark("easy")[:100]:
        names = "".join(rng.sample(string.ascii_lowercase, 26))
        other = renamed(problem.program, names)
        assert other.source() != problem.prompt
        assert other.canonical() == problem.program.canonical()
        assert split_of(other) == "test"


def test_training_programs_are_in_the_training_split():
    """The training stream draws from its own split only."""
    rng = random.Random(1)
    assert {split_of(random_program(rng, 2, "train")) for _ in range(2000)} == {"train"}


def test_streams_repeat():
    """The same difficulty and split give the same problems each time."""
    first, second = iterate("hard", "dev"), iterate("hard", "dev")
    assert [next(first).prompt for _ in range(20)] == [next(second).prompt for _ in range(20)]


def test_hard_problems_need_memory():
    """On the hard set most problems use an earlier variable as right operand several times."""
    uses = [sum(s.right_is_variable for s in p.program.steps) for p in benchmark("hard")]
    assert sum(n >= 3 for n in uses) > 0.8 * len(uses)


@pytest.mark.parametrize("num_steps", [0, 26])
def test_impossible_lengths_are_refused(num_steps):
    """There are 26 names, so 25 operations at most."""
    with pytest.raises(ValueError, match=r"num_steps = \d+: must lie in \[1, 25\]"):
        random_program(random.Random(0), num_steps, "train")
