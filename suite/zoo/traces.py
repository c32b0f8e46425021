"""How the embedded models think: the training text for a program, with honest mistakes and their repair.

One step is one block: the statement with the right operand's value, the left operand's record, column results least
significant first as (digit, carry) pairs, then the record of the value. Names are joined with colon or equals sign
into one token (``k:``), so looking up a value or a statement is finding the one earlier place of a token:

    q:755
    k=q+312q:755=706001k:067        5+2=7 carry 0, 5+1=6 carry 0, 7+3=0 carry 1
    b=k*777k:067=964400b:469        a one-digit factor stands over every column
    m=b-q:755b:469=417010m:714      the right operand is a variable; the last borrow is dropped (modulo 1000)

`Wait` has two uses. Where a block went wrong, it stands in place of the record and the block is done again:

    k=q+312q:755=705001Wait
    k=q+312q:755=706001k:067

After a whole pass it starts a check: each step is computed again (``?``) and compared with its record. ``ok`` keeps the
record. A mismatch means `Wait` and a third computation; if that agrees with the record, the check was at fault and the
record stays; otherwise a new record is written and the steps after it are done again:

    Wait
    ?q=755 ok
    ?k=q+312q:755=706001 ok

Mistakes are injected so that the model learns to notice them. It must not learn to make them: the loss is off on
the mistaken token, and on the decision that follows a mistake which stays unnoticed until the check.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from suite.zoo.problems import LETTERS, Operator, Program, Step

THINK, END_THINK, WAIT, OK = "<think>", "</think>", "Wait", " ok"
PREAMBLE, BOX = "\n\n**Final Answer**\n", "\\boxed{"
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
ANSWER_CUE = END_THINK + PREAMBLE + BOX


@dataclass(frozen=True)
class Mistakes:
    """How often things go wrong in a training trace. All are probabilities.

    `block`: a block contains a mistake. `silent`: such a mistake is not noticed at the block's end. `check`: a pass
    without silent mistakes is followed by a check all the same. `cut`: thinking is cut at a random place and the answer
    forced.
    """

    block: float = 0.06
    silent: float = 0.2
    check: float = 0.2
    cut: float = 0.03


NO_MISTAKES = Mistakes(0.0, 0.0, 0.0, 0.0)


@dataclass
class Trace:
    """Tokens as text, and for each whether the loss counts it.

    Joined, the tokens are what the tokenizer splits again.
    """

    tokens: list[str] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)

    def put(self, *tokens: str, counted: bool = True) -> None:
        """Append tokens."""
        self.tokens.extend(tokens)
        self.counted.extend([counted] * len(tokens))

    @property
    def text(self) -> str:
        """The trace as one string."""
        return "".join(self.tokens)


def column(op: Operator, left: int, right: int, carry: int) -> tuple[int, int]:
    """One column of the written method: (digit, carry to the next column)."""
    total = left + right + carry if op == "+" else left * right + carry
    if op == "-":
        total = left - right - carry
        return total % 10, int(total < 0)
    return total % 10, total // 10


def prompt_tokens(program: Program) -> list[str]:
    """The rendered chat up to and including ``<think>`` and its newline, as tokens."""
    body = [program.first + "=", *str(program.start), ";"]
    for step in program.steps:
        body += [step.name + "=", step.left, step.op, *step.right, ";"]
    return [USER, *body, program.last, "?", ASSISTANT, THINK, "\n"]


def answer_tokens(value: int) -> list[str]:
    """What follows the thinking: the cue, the number without leading zeros, the brace."""
    return [END_THINK, PREAMBLE, BOX, *str(value), "}", END]


def write_trace(program: Program, rng: random.Random, mistakes: Mistakes = NO_MISTAKES) -> Trace:
    """The completion that follows `prompt_tokens`: thinking, end of thinking, answer, end token."""
    writer = _Writer(program, rng, mistakes)
    writer.think()
    trace, truth = writer.trace, program.values()[program.last]
    if rng.random() < mistakes.cut:
        cut = rng.randrange(len(trace.tokens) + 1)
        del trace.tokens[cut:], trace.counted[cut:]
        tokens = answer_tokens(truth)
        trace.put(*tokens[:3], counted=False)
        trace.put(*tokens[3:])
    else:
        trace.put(*answer_tokens(writer.records[program.last]))
    return trace


# Places in a block where a mistake can sit: the right operand's name, 3 + 3 digits of the operands, 3 x (digit, carry).
_NUM_SLOTS = 13


class _Writer:
    """Writes one trace; `records` holds the values as written, which after a silent mistake are not the true ones."""

    def __init__(self, program: Program, rng: random.Random, mistakes: Mistakes) -> None:
        self.program, self.rng, self.mistakes = program, rng, mistakes
        self.trace = Trace()
        self.records: dict[str, int] = {}
        self.silent = False

    def think(self) -> None:
        self._first(check=False)
        self._pass(self.program.steps)
        while self.silent or self.rng.random() < self.mistakes.check:
            self.trace.put(WAIT, "\n")
            self.silent = False
            self._check()

    def _first(self, check: bool) -> None:
        name, digits = self.program.first, f"{self.program.start:03d}"
        if check:
            self.trace.put("?", name + "=", *digits, OK, "\n")
        else:
            self.trace.put(name + ":", *digits, "\n")
            self.records[name] = self.program.start

    def _pass(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            self._solve(step)

    def _solve(self, step: Step) -> None:
        while True:
            value, wrong = self._block(step)
            if not wrong or self.rng.random() < self.mistakes.silent:
                break
            self.trace.put(WAIT, "\n")
        self.silent |= wrong
        self._record(step.name, value, counted=not wrong)

    def _record(self, name: str, value: int, counted: bool = True) -> None:
        self.trace.put(name + ":", counted=counted)
        self.trace.put(*f"{value:03d}", "\n")
        self.records[name] = value

    def _check(self) -> None:
        self._first(check=True)
        for i, step in enumerate(self.program.steps):
            value, wrong = self._check_block(step)
            if value != self.records[step.name]:
                self.trace.put(WAIT, "\n")
                value, wrong = self._check_block(step)
            if value != self.records[step.name]:
                self.silent |= wrong
                self._record(step.name, value, counted=not wrong)
                self._pass(self.program.steps[i + 1 :])
                return
            self.trace.put(OK, "\n")

    def _check_block(self, step: Step) -> tuple[int, bool]:
        self.trace.put("?")
        return self._block(step)

    def _block(self, step: Step) -> tuple[int, bool]:
        """Write a block up to its last carry; returns its value and whether a mistake was made in it."""
        first_slot = 0 if step.right_is_variable else 1
        slot = self.rng.randrange(first_slot, _NUM_SLOTS) if self.rng.random() < self.mistakes.block else None
        self.trace.put(step.name + "=", step.left, step.op)
        right = self._right(step, slot)
        self.trace.put(step.left + ":")
        left = self._digits(self.records[step.left], slot, first_slot=4)
        self.trace.put("=")
        digits, carry = [], 0
        for i in range(3):
            digit, carry = column(step.op, left[2 - i], right[2 - i], carry)
            digit = self._digit(digit, slot == 7 + 2 * i)
            carry = self._digit(carry, slot == 8 + 2 * i, limit=9 if step.op == "*" else 2)
            digits.append(digit)
        return digits[2] * 100 + digits[1] * 10 + digits[0], slot is not None

    def _right(self, step: Step, slot: int | None) -> list[int]:
        """The right operand's digits, after its name if it has one; a factor's digit stands three times."""
        if not step.right_is_variable:
            value = int(step.right * 3) if step.op == "*" else int(step.right)
            return self._digits(value, slot, first_slot=1)
        name = step.right
        if slot == 0:
            name = self.rng.choice([other for other in self.records if other != name])
        self.trace.put(name + ":", counted=slot != 0)
        return self._digits(self.records[name], slot, first_slot=1)

    def _digits(self, value: int, slot: int | None, first_slot: int) -> list[int]:
        return [self._digit(int(d), slot == first_slot + i) for i, d in enumerate(f"{value:03d}")]

    def _digit(self, digit: int, wrong: bool, limit: int = 10, put: bool = True) -> int:
        if wrong:
            digit = self.rng.choice([d for d in range(limit) if d != digit])
        if put:
            self.trace.put(str(digit), counted=not wrong)
        return digit


def vocabulary() -> list[str]:
    """All tokens in id order: specials, words, definitions (``a:``, ``a=``), printable ASCII."""
    specials = ["<|pad|>", "<|unk|>", USER, ASSISTANT, END]
    words = [THINK, END_THINK, WAIT, OK, PREAMBLE, BOX]
    definitions = [letter + mark for mark in ":=" for letter in LETTERS]
    return [*specials, *words, *definitions, "\n", "\t", *map(chr, range(32, 127))]
