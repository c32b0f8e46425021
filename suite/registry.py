"""The registry: one csv of cells per spec, merged under a lock, beside the papers' numbers in the same columns.

    registry/results/<spec>.csv      measured; `update` merges rows by fingerprint
    registry/reference/*.csv         published; made by `tools/paper_reference.py`, never by a run

Writers lock the folder with `flock` (dropped with its holder, no lock file to be left behind) and replace the file by a
rename, so readers never wait and never see half a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from suite.records import CELL_COLUMNS, read_cells, typed_cells, write_cells

RESULTS = Path("registry/results")
REFERENCE = Path("registry/reference")


def path(root: Path, spec: str) -> Path:
    """Where the table of a spec lies."""
    return Path(root) / RESULTS / f"{spec}.csv"


def update(
    root: Path, spec: str, rows: pd.DataFrame | Iterable[Mapping[Any, Any]], keep: Collection[str] | None = None
) -> pd.DataFrame:
    """Merge rows into a spec's table and return the whole table.

    A row replaces the one with its fingerprint, except that a failure does not replace what was measured: the numbers
    of that fingerprint still stand. With `keep`, rows whose fingerprint is neither in it nor in `rows` are dropped (a
    spec that was changed leaves them behind).

    Raises: ValueError if a row breaks the schema, or if the file there is no table of cells; nothing is written then.
    """
    fresh = typed_cells(rows)
    file = path(root, spec)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):
        stored = read_cells(file) if file.exists() else fresh.head(0)
        return write_cells(file, _merge(stored, fresh, keep))


def _merge(stored: pd.DataFrame, fresh: pd.DataFrame, keep: Collection[str] | None) -> pd.DataFrame:
    if keep is not None:
        stored = stored[stored["fingerprint"].isin(list(keep))]
    measured = stored.loc[stored["status"] == "done", "fingerprint"]
    fresh = fresh[(fresh["status"] == "done") | ~fresh["fingerprint"].isin(measured)]
    rest = stored[~stored["fingerprint"].isin(fresh["fingerprint"])]
    return pd.concat([rest, fresh])


def load(root: Path, spec: str | None = None, include_reference: bool = False) -> pd.DataFrame:
    """The table of a spec (None: of all), with the papers' rows after it if wanted.

    Raises: ValueError if that spec has no table, or if a file is no table of cells.
    """
    names = specs(root) if spec is None else [spec]
    if spec is not None and not path(root, spec).exists():
        known = f"there are {', '.join(specs(root))}" if specs(root) else "there are none yet"
        raise ValueError(f"spec = {spec!r}: no results at {path(root, spec)}; {known}; run it first")
    measured = _joined([path(root, name) for name in names])
    return pd.concat([measured, reference(root)], ignore_index=True) if include_reference else measured


def reference(root: Path) -> pd.DataFrame:
    """The papers' rows. Raises: ValueError if a file is no table of cells."""
    return _joined(sorted((Path(root) / REFERENCE).glob("*.csv")))


def _joined(files: Iterable[Path]) -> pd.DataFrame:
    tables = [read_cells(file) for file in files]
    return pd.concat(tables, ignore_index=True) if tables else typed_cells([])


def specs(root: Path) -> list[str]:
    """Names of the specs that have a table."""
    return sorted(path.stem for path in (Path(root) / RESULTS).glob("*.csv"))


def query(cells: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows for which an expression holds, as in `DataFrame.query`: "accuracy > 0.8 and method == 'rtn'".

    Raises: ValueError with the columns, if it is no expression over them.
    """
    try:
        # Empty scopes: an expression sees columns and nothing of this program.
        found = cells.query(where, local_dict={}, global_dict={})
    except Exception as error:  # pandas raises about ten kinds for one cause
        raise ValueError(
            f"where = {where!r}: {error}. Write a condition over the columns {', '.join(CELL_COLUMNS)}, "
            "such as \"weight_bits == 3 and benchmark == 'tiny-hard'\""
        ) from error
    if not isinstance(found, pd.DataFrame):
        raise ValueError(f"where = {where!r}: a value and no condition; write one such as accuracy > 0.8")
    return found.reset_index(drop=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
