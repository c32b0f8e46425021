"""AIME 2024, MATH-500, GSM8K: prompts, and every gold answer scored, where a copy of the data is at hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suite import benchmarks
from suite.benchmarks.scoring import Score

DATA = Path(__file__).parents[3] / "shared/data"
GOLDEN = Path(__file__).parent / "golden"
SPLITS = {"aime24": "train", "math500": "test", "gsm8k": "test"}
ROWS: dict[str, dict[str, Any]] = {
    "aime24": {"id": 7, "problem": "Find $1+1$.", "solution": "$1+1=2$.", "answer": "002"},
    "math500": {
        "problem": "Find $\\frac12$ of 1.",
        "solution": "It is $\\boxed{\\frac{1}{2}}$.",
        "answer": "\\frac{1}{2}",
        "level": 3,
    },
    "gsm8k": {
        "question": "Ann has 1,000 hens and gets 2. How many?",
        "answer": "1000+2=<<1000+2=1002>>1002\n#### 1,002",
    },
}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with one row, written for this test, of each set."""
    for name, row in ROWS.items():
        (tmp_path / name).mkdir()
        # A line separator inside a text is no end of a row.
        text = json.dumps({**row, "note": "a\u2028b"}, ensure_ascii=False) + "\n"
        (tmp_path / name / f"{SPLITS[name]}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", SPLITS)
def test_prompts_are_golden(name: str, folder: Path) -> None:
    """The problem, a blank line, the directive; and the gold that is scored."""
    (question,) = benchmarks.load(name, data=folder)
    told = f"-- gold: {question.gold}\n-- scored: {question.doc.choices[0]}\n-- level: {question.level}\n"
    assert f"{question.prompt}\n\n{told}" == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("aime24", ["2", "002", "2.0"], ["3", "20"]),
        ("math500", ["\\frac12", "0.5", "\\dfrac{1}{2}", "1/2"], ["\\frac{1}{3}", "2"]),
        ("gsm8k", ["1002", "1,002", "1002.00"], ["1000", "2"]),
    ],
)
def test_answers_are_compared_as_mathematics(name: str, right: list[str], wrong: list[str], folder: Path) -> None:
    """Equal values are right however they are written."""
    (question,) = benchmarks.load(name, data=folder)
    for answers, correct in ((right, True), (wrong, False)):
        for answer in answers:
            found = benchmarks.score(name, question, f"hm</think>\\boxed{{{answer}}}")
            assert (found.correct, found.unparsed) == (correct, False), answer


@needs_data
@pytest.mark.parametrize("name", SPLITS)
def test_gold_answers_score_one_and_empty_ones_zero(name: str) -> None:
    """On every row of the real set."""
    questions = benchmarks.load(name, data=DATA)
    assert len(questions) == benchmarks.size(name)
    for question in questions:
        gold = benchmarks.score(name, question, f"hm</think>The answer is $\\boxed{{{question.gold}}}$.")
        assert (gold.correct, gold.unparsed) == (True, False), (question.id, question.gold, gold)
        assert benchmarks.score(name, question, "") == Score(correct=False, extracted=None, unparsed=True)
        assert benchmarks.score(name, question, "</think>") == Score(correct=False, extracted=None, unparsed=True)


@needs_data
@pytest.mark.parametrize("name", SPLITS)
def test_the_gold_of_another_question_is_wrong(name: str) -> None:
    """Of 30 questions answered with the next one's gold, hardly any is right."""
    questions = benchmarks.load(name, 30, data=DATA)
    others = [*questions[1:], questions[0]]
    hits = [
        benchmarks.score(name, question, f"</think>\\boxed{{{other.gold}}}").correct
        for question, other in zip(questions, others, strict=True)
    ]
    assert sum(hits) <= 2


def test_without_a_copy_lighteval_gets_the_set_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task downloads what its configuration names: here a folder that stands for the repository."""
    import datasets

    from suite.benchmarks import gsm8k

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/test.jsonl").write_text(json.dumps(ROWS["gsm8k"]) + "\n")
    repo = replace(gsm8k.DATASET, repo=str(tmp_path / "repo"), subset="default")
    monkeypatch.setattr(gsm8k, "DATASET", repo)
    (question,) = benchmarks.load("gsm8k")
    assert (question.id, question.gold) == ("0", "1,002")
    assert question.prompt.startswith("Ann has 1,000 hens")


def test_a_local_copy_is_another_identity_than_the_hubs(folder: Path) -> None:
    """It is named by its bytes: what is in it is what was asked."""
    here = benchmarks.identity("gsm8k", folder)
    assert here != benchmarks.identity("gsm8k")
    with (folder / "gsm8k/test.jsonl").open("a") as file:
        file.write(json.dumps(ROWS["gsm8k"]) + "\n")
    assert benchmarks.identity("gsm8k", folder) != here


def test_a_data_folder_without_the_set_is_named(tmp_path: Path) -> None:
    """No silent fall-back to the Hub."""
    with pytest.raises(ValueError, match=r"gsm8k/test\.jsonl is not there"):
        benchmarks.load("gsm8k", data=tmp_path)
    with pytest.raises(ValueError, match=r"gsm8k/test\.jsonl is not there"):
        benchmarks.identity("gsm8k", tmp_path)
