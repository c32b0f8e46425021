"""tiny-easy, tiny-medium, tiny-hard: what is asked, and that gold answers score 1.0 and empty ones 0.0."""

import subprocess
import sys
from pathlib import Path

import pytest

from suite import benchmarks
from suite.benchmarks import tiny
from suite.zoo.problems import DIFFICULTIES, Difficulty
from suite.zoo.problems import test_problems as problems_of

GOLDEN = Path(__file__).parent / "golden"
NAMES = [f"tiny-{difficulty}" for difficulty in DIFFICULTIES]


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_score_one_and_empty_ones_zero(name: str) -> None:
    """On every problem, after thinking, with the model's own form of answer."""
    questions = benchmarks.load(name)
    assert len(questions) == benchmarks.size(name) >= 400
    for question in questions:
        gold = benchmarks.score(name, question, f"thinking\n</think>\\boxed{{{question.gold}}}")
        assert gold == benchmarks.scoring.Score(correct=True, extracted=question.gold, unparsed=False)
        empty = benchmarks.score(name, question, "</think>")
        assert (empty.correct, empty.unparsed) == (False, True)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_golden(name: str) -> None:
    """The first five prompts, with ids and answers, as they are in the repository."""
    shown = "".join(f"{q.id}\n{q.prompt}\n{q.gold}\n\n" for q in benchmarks.load(name, 5))
    assert shown == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_digest_is_that_of_the_problems(difficulty: Difficulty) -> None:
    """The identity that planning uses is that of the problems that are asked."""
    assert tiny.problem_digest(tiny.problem_rows(difficulty)) == tiny.DIGESTS[difficulty]


def test_changed_problems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another generator under the same digest would make stored results lie."""
    monkeypatch.setitem(tiny.DIGESTS, "easy", "0" * 64)
    with pytest.raises(ValueError, match=r"tiny-easy.*digest"):
        benchmarks.load("tiny-easy", 1)


def test_identity_follows_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another digest is another identity."""
    before = benchmarks.identity("tiny-easy")
    monkeypatch.setitem(tiny.DIGESTS, "easy", "0" * 64)
    assert benchmarks.identity("tiny-easy") != before


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    """So that 50 questions need not be asked again for 100."""
    small, large = benchmarks.load("tiny-hard", 20), benchmarks.load("tiny-hard", 60)
    assert small == large[:20]
    assert len({question.id for question in large}) == 60


def test_the_order_does_not_depend_on_what_was_loaded_before() -> None:
    """Loading is a pure function of name and number."""
    first = benchmarks.load("tiny-easy", 10)
    benchmarks.load("tiny-medium", 7)
    assert benchmarks.load("tiny-easy", 10) == first


def test_questions_are_the_generators_problems() -> None:
    """Every problem is asked once, under its own id."""
    asked = {question.id: (question.prompt, question.gold) for question in benchmarks.load("tiny-medium")}
    assert asked == {problem.id: (problem.prompt, problem.answer) for problem in problems_of("medium")}


@pytest.mark.parametrize("num_samples", [0, -1, 10**6])
def test_too_many_or_no_questions_are_refused(num_samples: int) -> None:
    """The error says how many there are."""
    with pytest.raises(ValueError, match=rf"num_samples = {num_samples}: tiny-easy has {benchmarks.size('tiny-easy')}"):
        benchmarks.load("tiny-easy", num_samples)


def test_an_unknown_benchmark_is_named() -> None:
    """The error lists what there is."""
    with pytest.raises(ValueError, match=r'"tiny-esay".*tiny-easy'):
        benchmarks.size("tiny-esay")


def test_names_sizes_and_identities_import_nothing_heavy() -> None:
    """Planning asks for them."""
    code = """
import sys
from suite import benchmarks
for name in benchmarks.names():
    assert benchmarks.size(name) > 0 and benchmarks.expected_tokens(name) > 0 and len(benchmarks.identity(name)) == 64
print(sorted({"torch", "lighteval", "datasets", "pandas", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_and_scoring_need_no_network_and_say_nothing() -> None:
    """No socket is opened, no registry of lighteval is imported, nothing is printed."""
    code = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from suite import benchmarks
question = benchmarks.load("tiny-easy", 1)[0]
assert benchmarks.score("tiny-easy", question, "</think>\\\\boxed{%s}" % question.gold).correct
assert benchmarks.score("tiny-easy", question, "</think>what?").unparsed
assert "lighteval.tasks.registry" not in sys.modules
assert not [name for name in sys.modules if name.startswith("lighteval.tasks.tasks.")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
