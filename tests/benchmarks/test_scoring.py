"""What counts as an answer, and what the grader does with texts that are no answers."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest

from suite import benchmarks
from suite.benchmarks import scoring
from suite.benchmarks.scoring import answer_part


@pytest.fixture(scope="module")
def question() -> benchmarks.Question:
    """A question of tiny-easy."""
    return benchmarks.load("tiny-easy", 1)[0]


@pytest.mark.parametrize(
    ("text", "opens_thinking", "answer"),
    [
        ("a</think>b", True, "b"),
        ("a</think>b</think>c", True, "c"),
        ("a</think>", True, ""),
        ("a", True, None),
        ("", True, None),
        ("b", False, "b"),
        ("<think>a", False, None),
        ("<think>a</think>b", False, "b"),
    ],
)
def test_the_answer_follows_the_last_end_of_thinking(text: str, opens_thinking: bool, answer: str | None) -> None:
    """Thinking is no answer; a text without any is one where the template opens no thinking."""
    assert answer_part(text, opens_thinking) == answer


@pytest.mark.parametrize(
    "answer",
    [
        "\\boxed{%s}",
        "So\n\n**Final Answer**\n\\boxed{%s}",
        "\\boxed{1}\nNo: \\boxed{%s}",
        "The answer is %s.",
        "\\boxed{0%s}",
    ],
)
def test_right_answers_in_several_forms(question: benchmarks.Question, answer: str) -> None:
    """The last box counts, then an announced answer."""
    found = benchmarks.score("tiny-easy", question, "thinking</think>" + answer % question.gold)
    assert found.correct
    assert not found.unparsed
    assert found.extracted is not None
    assert found.extracted.lstrip("0") == question.gold


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{%s}",
        "\\boxed{%s} Wait",
        "the answer is %s",
        "\\boxed{%s}</think>",
        "\\boxed{%s}</think>\\boxed{",
        "\\boxed{%s}</think>I can not tell",
    ],
)
def test_a_right_number_in_the_thinking_is_no_answer(question: benchmarks.Question, text: str) -> None:
    """What is boxed or said while thinking earns nothing where no answer follows, and is flagged."""
    found = benchmarks.score("tiny-easy", question, text % question.gold)
    assert not found.correct
    assert found.unparsed
    assert found.extracted is None


@pytest.mark.parametrize(
    "answer", ["\\boxed{1000%s}", "\\boxed{%s, 1}", "\\boxed{%s}\\boxed{1}", "\\boxed{-%s}", "\\boxed{1} %s"]
)
def test_wrong_answers_are_parsed_and_wrong(question: benchmarks.Question, answer: str) -> None:
    """A wrong number, a list that has the right one in it, a second thought, the other sign."""
    found = benchmarks.score("tiny-easy", question, "</think>" + answer % question.gold)
    assert not found.correct
    assert not found.unparsed
    assert found.extracted


def test_all_thousand_answers_at_once_are_wrong(question: benchmarks.Question) -> None:
    """Listing every possible answer in the box, or in a row of boxes, does not hit the right one."""
    numbers = [str(n) for n in range(1000)]
    for text in ("\\boxed{" + ", ".join(numbers) + "}", " ".join(f"\\boxed{{{n}}}" for n in numbers)):
        assert not benchmarks.score("tiny-easy", question, "</think>" + text).correct


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
        "\\boxed{" + "9" * 5000 + "}",
        "\\boxed{\\frac{\\frac{" * 50,
        "\\boxed{\\int_0^{\\infty} e^{-x^2} dx + \\sum_{n=1}^{\\infty} \\frac{1}{n^2}}",
        "1+" * 1000,
        "$" * 999 + "\\boxed{\\text{\x00\ud83d\ude00}}".encode("utf-16", "surrogatepass").decode("utf-16"),
        "\\boxed{100000!}",
        "12 " * 2000,
    ],
)
def test_odd_texts_are_scored_in_time(question: benchmarks.Question, text: str) -> None:
    """What a broken model may write raises nothing and is not right."""
    started = time.process_time()
    assert not benchmarks.score("tiny-easy", question, "</think>" + text).correct
    assert time.process_time() - started < scoring.LIMIT_S


@dataclass
class Grader:
    """A metric that does as told; it stands where lighteval's stands."""

    behaviour: Any

    def compute_sample(self, **_: Any) -> dict[str, float]:
        """Run the behaviour."""
        self.behaviour()
        return {"extractive_match": 1.0}


def _spin_and_catch_everything() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_a_grader_that_hangs_is_stopped(question: benchmarks.Question, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time is limited even where `except Exception` is all around; the sample says so and is wrong."""
    monkeypatch.setattr(scoring, "LIMIT_S", 0.2)
    found = scoring.score_text(Grader(_spin_and_catch_everything), question, "</think>1", True)  # type: ignore[arg-type]
    assert found == scoring.Score(correct=False, extracted="(undecided after 0.2 s)", unparsed=True)


def test_a_grader_that_raises_is_no_silent_zero(question: benchmarks.Question) -> None:
    """The exception is in the sample, which is flagged."""

    def fail() -> None:
        raise RecursionError("maximum depth")

    found = scoring.score_text(Grader(fail), question, "</think>1", True)  # type: ignore[arg-type]
    assert found == scoring.Score(False, "(undecidable: RecursionError: maximum depth)", True)


def test_a_huge_power_is_decided_or_given_up(question: benchmarks.Question) -> None:
    """A tower of powers costs seconds, not the run."""
    started = time.monotonic()
    assert not benchmarks.score("tiny-easy", question, "</think>\\boxed{9^{9^{9^{9}}}}").correct
    assert time.monotonic() - started < 60


def test_scoring_outside_the_main_thread_is_refused(question: benchmarks.Question) -> None:
    """There lighteval's time limits fail where it swallows the error, and every answer would be unparsed."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            benchmarks.score("tiny-easy", question, "</think>1")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_scoring_leaves_the_question_as_it_was(question: benchmarks.Question) -> None:
    """lighteval writes into the document that it scores; ours is scored many times."""
    before = (question.doc.query, list(question.doc.choices), dict(question.doc.specific))
    benchmarks.score("tiny-easy", question, "</think>\\boxed{1}")
    assert (question.doc.query, list(question.doc.choices), dict(question.doc.specific)) == before


def test_what_is_extracted_is_kept_short(question: benchmarks.Question) -> None:
    """At most 200 characters of an answer go into the sample."""
    found = benchmarks.score("tiny-easy", question, "</think>\\boxed{" + "9" * 5000 + "}")
    assert found.extracted is not None
    assert len(found.extracted) == 200
