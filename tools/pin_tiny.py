"""Pin the embedded benchmarks to what their generator makes now: `python tools/pin_tiny.py`.

Writes the digests in `suite/benchmarks/tiny.py` and the golden prompts of its test. Results stored before then belong
to other problems and are computed again.
"""

import re
from pathlib import Path

from suite import benchmarks
from suite.benchmarks import tiny
from suite.zoo.problems import DIFFICULTIES

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/benchmarks/golden"


def main() -> None:
    """Digests first: loading the prompts checks them."""
    source = ROOT / "suite/benchmarks/tiny.py"
    text = source.read_text()
    for difficulty in DIFFICULTIES:
        tiny.DIGESTS[difficulty] = tiny.problem_digest(tiny.problem_rows(difficulty))
        text = re.sub(rf'(    "{difficulty}": )"\w*"', rf'\1"{tiny.DIGESTS[difficulty]}"', text)
    source.write_text(text)
    for difficulty in DIFFICULTIES:
        questions = benchmarks.load(f"tiny-{difficulty}", 5)
        shown = "".join(f"{question.id}\n{question.prompt}\n{question.gold}\n\n" for question in questions)
        (GOLDEN / f"tiny-{difficulty}.txt").write_text(shown)


if __name__ == "__main__":
    main()
