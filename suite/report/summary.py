"""What a report says in words: every sentence is computed from the records."""

from collections.abc import Sequence

from suite.report.content import Finding
from suite.report.intervals import Interval
from suite.report.layout import Block, Cell, Layout, Row
from suite.report.text import change, kind, listed, plural, points, signed
from suite.statistics import holm

SAME_LENGTH = 0.05  # outputs whose mean lengths differ by less are called equally long
ALPHA = 0.05


def status(layout: Layout, planned: int | None = None) -> str:
    """How much there is: cells, answers, questions and seeds."""
    if not layout.cells:
        return "Nothing has been measured yet."
    done, failed = len(layout.done), len(layout.failed)
    total = max(planned or 0, len(layout.cells))
    parts = [f"{done} of {plural(total, 'cell')} done"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{total - done - failed} not run yet"] if total > done + failed else []
    if layout.done:
        parts += [plural(sum(cell.answers for cell in layout.done), "answer"), *_asked(layout.done)]
    return ", ".join(parts) + "."


def _asked(cells: Sequence[Cell]) -> list[str]:
    questions, seeds = {c.num_samples or 0 for c in cells}, {c.num_seeds or 0 for c in cells}
    span = f"{min(questions):,} to {max(questions):,}" if len(questions) > 1 else f"{min(questions):,}"
    return [f"{span} questions a benchmark", plural(max(seeds), "seed")]


def sentences(layout: Layout) -> tuple[Finding, ...]:
    """What happened to each variant, in the order of the table."""
    return tuple(
        Finding(layout.titled(block, row.name), _said(row, block), row.drop.zone if row.drop else "")
        for block in layout.blocks
        for row in block.rows
    )


def _said(row: Row, block: Block) -> str:
    if not row.done:
        without = " Without it there is nothing to compare with." if row.is_baseline else ""
        return _no_result(row) + without
    if row.is_baseline or not any(cell.delta for cell in row.done):
        return _scores(row) + _missing(row) + ("" if row.is_baseline else " There is no bf16 to compare with.")
    return _against_bf16(row) + _worst(row) + _length(row, block.baseline) + _missing(row)


def _scores(row: Row) -> str:
    scores = listed([f"{points(cell.accuracy)} on {cell.benchmark}" for cell in row.done])
    average = f", {points(row.average.value)} on average" if row.average and len(row.columns) > 1 else ""
    return f"scores {scores}{average}."


def _against_bf16(row: Row) -> str:
    if row.drop is None:
        deltas = [(cell, cell.delta) for cell in row.done if cell.delta]
        return (
            "against bf16: " + listed([f"{change(delta)} points on {cell.benchmark}" for cell, delta in deltas]) + "."
        )
    drop, columns = row.drop, row.columns
    where = f"on average over {len(columns)} benchmarks" if len(columns) > 1 else f"on {columns[0].benchmark}"
    numbers = f"(95% interval {signed(drop.low)} to {signed(drop.high)}): {_zone(drop)}."
    if drop.low <= 0 <= drop.high:
        return f"is not told apart from bf16: {signed(drop.value)} points {where} {numbers}"
    return f"{'loses' if drop.value < 0 else 'gains'} {points(abs(drop.value))} points {where} {numbers}"


def _zone(drop: Interval) -> str:
    return "too few answers to call it lossless, fair or risky" if drop.zone == "not resolved" else drop.zone


def _worst(row: Row) -> str:
    """The benchmark that lost most, if that loss is clear of zero and there are others."""
    cell, delta = min(((c, c.delta) for c in row.done if c.delta), key=lambda pair: pair[1].value)
    if row.drop is None or len(row.columns) < 2 or delta.high >= 0:
        return ""
    return f" Most on {cell.benchmark}: {change(delta)}, to {points(cell.accuracy)}."


def _length(row: Row, baseline: Row | None) -> str:
    """How much longer or shorter the outputs are, over the benchmarks that both have."""
    theirs = {cell.benchmark: cell.output_tokens_mean for cell in baseline.done} if baseline else {}
    pairs = [(c.output_tokens_mean or 0.0, theirs[c.benchmark] or 0.0) for c in row.done if c.benchmark in theirs]
    ours, before = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if not ours or not before:
        return ""
    ratio = ours / before
    return f" Outputs {'' if abs(ratio - 1) <= SAME_LENGTH else f'{ratio:.2f} times '}as long as bf16's."


def _no_result(row: Row) -> str:
    failed = [cell for cell in row.cells.values() if cell.status == "failed"]
    if not failed:
        return "was not run yet."
    return f"has no result: {plural(len(failed), 'cell')} failed, in {listed(sorted({cell.stage for cell in failed}))}."


def _missing(row: Row) -> str:
    missing = [c.benchmark for c in row.columns if c not in row.cells or not row.cells[c].done]
    return f" No result on {listed(missing)}." if missing else ""


def multiplicity(layout: Layout) -> str:
    """How many comparisons were made, and how many stay significant once that is taken into account."""
    p_values = [cell.p_value for cell in layout.done if cell.p_value is not None]
    if not p_values:
        return "No comparison with bf16 could be made."
    below, kept = (sum(p < ALPHA for p in values) for values in (p_values, holm(p_values)))
    return (
        f"This report makes {plural(len(p_values), 'comparison')} with bf16, each at 95% by itself. If nothing "
        f"differed at all, about {ALPHA * len(p_values):.1f} of them would be clear of zero by chance. Here p < 0.05 "
        f"in {below} of them, and after Holm's correction for their number still in {kept}."
    )


def verdict_counts(layout: Layout) -> str:
    """Cells by verdict: "2 lossless and 1 risky"."""
    verdicts = [kind(cell.verdict) for cell in layout.done if cell.verdict]
    return listed([f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts))])
