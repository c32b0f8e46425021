"""The sections of a report, in reading order: the answer first, then what it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from suite.report import figures, tables
from suite.report.content import Key, Section
from suite.report.layout import Cell, Layout
from suite.report.paper import paper_table
from suite.report.summary import multiplicity, sentences, verdict_counts
from suite.report.text import MARKS, listed, plural

MANY = 12  # variants: with more of them the table comes before the sentences


@dataclass(frozen=True)
class Answers:
    """What a report keeps of the samples of one cell."""

    output_tokens: np.ndarray
    by_level: tuple[tuple[str, np.ndarray], ...]  # level -> accuracy of each question; () if there are no levels


def answers_of(samples: pd.DataFrame) -> Answers:
    """Reduce a table of samples to what is drawn."""
    by_level: tuple[tuple[str, np.ndarray], ...] = ()
    if samples["level"].notna().any():
        means = samples.groupby(["level", "sample_id"], sort=True)["correct"].mean()
        by_level = tuple((str(level), part.to_numpy(dtype=float)) for level, part in means.groupby(level="level"))
    return Answers(samples["output_tokens"].to_numpy(dtype=float), by_level if len(by_level) > 1 else ())


def sections(layout: Layout, answers: dict[str, Answers], reference: Sequence[Cell], paper: str) -> tuple[Section, ...]:
    """All sections that have something to show."""
    if not layout.cells:
        return ()
    short = Section("In short", "summary", points=sentences(layout))
    found: list[Section | None] = [short, _results(layout)]
    if len(short.points) > MANY:
        found.reverse()
    found += [_failed(layout)]
    if layout.done:
        lengths = {fingerprint: known.output_tokens for fingerprint, known in answers.items()}
        found += [_published(layout, reference, paper), _drops(layout), _precision(layout), _levels(layout, answers)]
        found += [_budgets(layout), _lengths(layout, lengths), _flips(layout), _rates(layout), _cost(layout)]
        found += [_method(layout)]
    return tuple(section for section in found if section is not None)


def _results(layout: Layout) -> Section:
    text = (
        "Accuracy in per cent. Under it the difference from bf16 on the same questions and seeds, in points, with its "
        "95% interval (for bf16 the interval of the accuracy itself). Drop is the mean of the differences."
    )
    marks = (
        f"{MARKS['lossless']} lossless: the interval stays above −1 point. {MARKS['fair']} fair: between −3 and −1. "
        f"{MARKS['risky']} risky: below −3. {MARKS['not resolved']} not resolved: the interval crosses such a limit."
    )
    notes = [marks]
    if any(block.best for block in layout.blocks):
        notes.append(
            "Bold: the best of the methods at one bit width; equal numbers share it. It marks the larger number, not a "
            "proven difference."
        )
    if counts := verdict_counts(layout):
        notes.append(f"Verdicts of single cells: {counts}.")
    shown = tuple(tables.result_table(block) for block in layout.blocks)
    return Section("Results", "results", (text,), tables=shown, notes=tuple(notes))


def _failed(layout: Layout) -> Section | None:
    if not layout.failed:
        return None
    text = f"{plural(len(layout.failed), 'cell')} failed. Running the spec again tries them again."
    return Section("Failed cells", "failed", (text,), tables=(tables.failed_table(layout),))


def _published(layout: Layout, reference: Sequence[Cell], paper: str) -> Section | None:
    if not paper:
        return None
    found = [table for block in layout.blocks if (table := paper_table(block, reference)) is not None]
    text = f"Ours, and under it what {paper} prints. The published numbers come without intervals."
    if not found:
        text = f"{paper} is named by the spec, but shares no model, method, precision and benchmark with these cells."
    return Section("Beside the published numbers", "paper", (text,), tables=tuple(found))


def _drops(layout: Layout) -> Section | None:
    drawn = figures.drops(layout)
    if not drawn:
        return None
    text = "Each dot is a difference from bf16, its line the 95% interval. Bands from the right: lossless, fair, risky."
    return Section("What quantization costs", "drops", (text,), figures=drawn)


def _precision(layout: Layout) -> Section | None:
    drawn = figures.precisions(layout)
    if not drawn:
        return None
    names = list(dict.fromkeys(column.benchmark for block in layout.blocks for column in block.columns))
    legend = tuple(Key(figures.colour(index), name) for index, name in enumerate(names, start=1))
    text = (
        "Accuracy of each method as bits are taken away, a line a benchmark, with the 95% intervals of the accuracies."
    )
    return Section("Accuracy by precision and difficulty", "precision", (text,), legend=legend, figures=drawn)


def _levels(layout: Layout, answers: dict[str, Answers]) -> Section | None:
    drawn = figures.levels(layout, {fingerprint: known.by_level for fingerprint, known in answers.items()})
    if not drawn:
        return None
    text = "Accuracy by the level that the benchmark gives its questions, with 95% intervals."
    return Section("Accuracy by level", "levels", (text,), legend=figures.variant_legend(layout), figures=drawn)


def _budgets(layout: Layout) -> Section | None:
    drawn = figures.budgets(layout)
    if not drawn:
        return None
    numbers = [
        tables.budget_table(block, name, layout.titled(block, name))
        for block in layout.blocks
        for name in dict.fromkeys(column.benchmark for column in block.budgets)
    ]
    text = (
        "A thinking budget bounds the tokens of thinking: a maximum ends thinking and asks for the answer, a minimum "
        "puts “Wait” where thinking would have ended."
    )
    reading = "Each point is one budget, at the thinking tokens that were spent on average."
    legend = figures.variant_legend(layout)
    title = "Accuracy over thinking budget"
    return Section(title, "budgets", (text,), (), legend, reading, drawn, tuple(numbers))


def _lengths(layout: Layout, lengths: dict[str, np.ndarray]) -> Section:
    caption = "Mean output tokens; under it median · 90th percentile"
    numbers = tuple(
        tables.per_benchmark(block, layout.titled(block, caption), tables.lengths(lengths), folded=True)
        for block in layout.blocks
    )
    reading = (
        "The upright tick is the median. Numbers: median · 90th percentile, and the share that the token limit cut "
        "off, if any."
    )
    missing = sum(cell.fingerprint not in lengths for cell in layout.done)
    lost = f" The samples of {plural(missing, 'cell')} are not in the store, so only their means are shown."
    text = "Output tokens, thinking and answer together." + (lost if missing else "")
    drawn = figures.lengths(layout, lengths)
    return Section("Output length", "lengths", (text,), reading=reading, figures=drawn, tables=numbers)


def _flips(layout: Layout) -> Section | None:
    drawn = figures.flips(layout)
    if not drawn:
        return None
    numbers = tuple(
        tables.per_benchmark(block, layout.titled(block, "Answers lost and gained"), tables.flips, folded=True)
        for block in layout.blocks
    )
    text = (
        "Lost: right under bf16, wrong here. Gained: the other way round. Sampling alone flips answers in both "
        "directions, so it is the imbalance that counts."
    )
    return Section("Answers that flipped", "flips", (text,), figures=drawn, tables=numbers)


def _rates(layout: Layout) -> Section:
    caption = "% cut off; under it % without an answer · % in a loop"
    shown = tuple(tables.per_benchmark(block, layout.titled(block, caption), tables.rates) for block in layout.blocks)
    text = (
        "Cut off: generation reached the token limit. Without an answer: none could be read from the output. In a "
        "loop: cut off while repeating itself. They count as wrong unless a right answer could be read."
    )
    return Section("Cut off, unparsed, looping", "rates", (text,), tables=shown)


def _cost(layout: Layout) -> Section:
    engines = sorted({cell.engine for cell in layout.done if cell.engine})
    made = f"Engine: {listed(engines)}. " if engines else ""
    text = made + "Engine time is the time that engine processes spent on a variant's answers, added up over processes."
    return Section("What it was measured on", "cost", (text,), tables=tuple(map(tables.cost_table, layout.blocks)))


def _method(layout: Layout) -> Section:
    text = (
        "The question is the unit. Its answers under several seeds are averaged first, because they resemble each "
        "other, and every variant is compared with bf16 on the same questions and seeds. Intervals of a difference add "
        "one question lost and one gained, intervals of an accuracy two right and two wrong, so that no interval "
        "closes where nothing flipped.",
        "An average over benchmarks combines their intervals as independent ones. It weighs benchmarks equally, "
        "whatever their size.",
        multiplicity(layout),
        "The questions stand for more questions of their kind, and the seeds for more samples; nothing here speaks for "
        "other tasks, other models, or other calibration data.",
    )
    return Section("How the intervals are made", "intervals", text)
