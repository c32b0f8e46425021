"""The embedded benchmarks' problems: chains of arithmetic modulo 1000 in which earlier values must be remembered.

A problem is a straight-line program. Its first variable is given; every further one is made from the variable before it
(left operand) and, for + and -, either a three-digit constant or an *earlier variable*; * is by one digit:

    q:755
    q+312=k
    k*7=b
    b-q=m
    m?                  q = 755, k = 67, b = 469, m = 714 (all modulo 1000)

Modulo 1000 no problem is rejected, so all answers are about equally likely and guessing is right once in a thousand.

A program belongs to exactly one split: the hash of its canonical form (variables renamed in order of appearance)
decides, so renaming the variables of a test problem can not put it into the training stream.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Difficulty = Literal["easy", "medium", "hard"]
Split = Literal["train", "dev", "test"]
Operator = Literal["+", "-", "*"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MODULUS = 1000
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")
# Operations per problem, inclusive. Two at least: one operation can be done in the head.
NUM_STEPS: dict[Difficulty, tuple[int, int]] = {"easy": (2, 3), "medium": (5, 8), "hard": (16, 20)}
MAX_STEPS = len(LETTERS) - 1
NUM_PROBLEMS = 500
SHARE_TIMES = 0.4
SHARE_VARIABLE = 0.5
# Of 1000 hash buckets, the first 50 are test, the next 50 dev, the rest train.
TEST_BUCKETS, DEV_BUCKETS, NUM_BUCKETS = 50, 50, 1000


@dataclass(frozen=True)
class Step:
    """``left op right = name``; `right` is a variable's letter or a constant in decimal digits."""

    name: str
    left: str
    op: Operator
    right: str

    @property
    def right_is_variable(self) -> bool:
        """Whether `right` names an earlier variable."""
        return self.right.isalpha()


@dataclass(frozen=True)
class Program:
    """A first variable with its value, and the steps that follow from it."""

    first: str
    start: int
    steps: tuple[Step, ...]

    @property
    def last(self) -> str:
        """The variable that is asked for."""
        return self.steps[-1].name

    def source(self) -> str:
        """The program as the prompt shows it."""
        body = (f"{step.left}{step.op}{step.right}={step.name}" for step in self.steps)
        return "\n".join((f"{self.first}:{self.start}", *body, f"{self.last}?"))

    def canonical(self) -> str:
        """`source` with the variables renamed to numbers in order of appearance."""
        index = {self.first: "v0"} | {step.name: f"v{i}" for i, step in enumerate(self.steps, start=1)}
        body = (f"{index[step.left]}{step.op}{index.get(step.right, step.right)}" for step in self.steps)
        return ";".join((str(self.start), *body))

    def values(self) -> dict[str, int]:
        """Every variable's value in [0, 1000)."""
        values = {self.first: self.start}
        for step in self.steps:
            right = values[step.right] if step.right_is_variable else int(step.right)
            values[step.name] = apply(step.op, values[step.left], right)
        return values


@dataclass(frozen=True)
class Problem:
    """A benchmark item: `answer` is the decimal number without leading zeros that belongs into ``\\boxed{}``."""

    id: str
    difficulty: Difficulty
    prompt: str
    answer: str
    program: Program


def apply(op: Operator, left: int, right: int) -> int:
    """``left op right`` modulo 1000."""
    if op == "+":
        return (left + right) % MODULUS
    return (left - right) % MODULUS if op == "-" else (left * right) % MODULUS


def split_of(program: Program) -> Split:
    """The split that a program belongs to, whatever its variables are called."""
    digest = hashlib.blake2b(program.canonical().encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % NUM_BUCKETS
    if bucket < TEST_BUCKETS:
        return "test"
    return "dev" if bucket < TEST_BUCKETS + DEV_BUCKETS else "train"


def random_program(rng: random.Random, num_steps: int, split: Split, share_variable: float = SHARE_VARIABLE) -> Program:
    """A program of `num_steps` operations that belongs to `split`.

    `share_variable` is the probability that a + or - takes an earlier variable, if there is one.

    Raises:
        ValueError: if `num_steps` is not in [1, 25]; there are 26 names.
    """
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"num_steps = {num_steps}: must lie in [1, {MAX_STEPS}], one letter names each variable")
    while True:
        program = _draw(rng, num_steps, share_variable)
        if split_of(program) == split:
            return program


def _draw(rng: random.Random, num_steps: int, share_variable: float) -> Program:
    names = rng.sample(LETTERS, num_steps + 1)
    steps = tuple(_draw_step(rng, names, i, share_variable) for i in range(1, num_steps + 1))
    return Program(first=names[0], start=rng.randint(100, MODULUS - 1), steps=steps)


def _draw_step(rng: random.Random, names: list[str], i: int, share_variable: float) -> Step:
    left, earlier = names[i - 1], names[: i - 1]
    if rng.random() < SHARE_TIMES:
        return Step(names[i], left, "*", str(rng.randint(2, 9)))
    op: Operator = "+" if rng.random() < 0.5 else "-"
    if earlier and rng.random() < share_variable:
        return Step(names[i], left, op, rng.choice(earlier))
    return Step(names[i], left, op, str(rng.randint(100, MODULUS - 1)))


def iterate(difficulty: Difficulty, split: Split, num_steps: tuple[int, int] | None = None) -> Iterator[Problem]:
    """Problems of one difficulty and split without end or repetition, always in the same order.

    `num_steps` overrides the difficulty's range (inclusive); it serves the choice of the ranges on dev.
    """
    low, high = num_steps or NUM_STEPS[difficulty]
    rng = random.Random(f"{difficulty}/{split}")
    seen: set[str] = set()
    while True:
        program = random_program(rng, rng.randint(low, high), split)
        key = program.canonical()
        if key in seen:
            continue
        name = f"{difficulty}-{split}-{len(seen):04d}"
        seen.add(key)
        yield Problem(name, difficulty, program.source(), str(program.values()[program.last]), program)


def test_problems(difficulty: Difficulty) -> list[Problem]:
    """The benchmark: the first `NUM_PROBLEMS` test problems of a difficulty."""
    stream = iterate(difficulty, "test")
    return [next(stream) for _ in range(NUM_PROBLEMS)]


def dev_problems(difficulty: Difficulty, num_problems: int = NUM_PROBLEMS) -> list[Problem]:
    """Problems to tune on: never trained on, never reported."""
    stream = iterate(difficulty, "dev")
    return [next(stream) for _ in range(num_problems)]
