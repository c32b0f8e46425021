"""Writes the committed report of synthetic records anew: `python -m tests.report.update_goldens`. Read the diff."""

import shutil
import tempfile
from pathlib import Path

from suite import report
from suite.records import cell_table

from .factory import make_records

GOLDEN = Path(__file__).parent / "golden" / "synthetic.md"


def main() -> None:
    """Write the Markdown of a run of which two cells failed."""
    records = make_records(failed=[("W4A16KV16-g128", "tiny-hard"), ("W8A16KV16-g128", "tiny-easy")])
    with tempfile.TemporaryDirectory() as folder:
        written, _ = report.write(
            Path(folder), records.spec, records.cells, records.samples.get, cell_table([]), planned=26
        )
        GOLDEN.parent.mkdir(exist_ok=True)
        shutil.copy(written, GOLDEN)


if __name__ == "__main__":
    main()
