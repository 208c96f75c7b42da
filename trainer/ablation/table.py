"""Results of an ablation for people: as a table of text, of Markdown, and as a page."""

from __future__ import annotations

from collections.abc import Sequence

from dptr.cache.table import table
from dptr.trainer.ablation.comparison import Result
from dptr.trainer.ablation.statistics import Interval
from dptr.trainer.report.page import Section, Table, render, text_row

COLUMNS = ["arm", "accuracy, %", "1-NED", "compared with", "points", "over seeds", "over images"]
COLUMNS += ["seeds", "steps", "seconds"]
HOW_TO_READ = (
    "Accuracy in per cent of words, mean ± sample standard deviation over seeds. Differences between two arms in "
    "points, paired by seed: 95 % intervals over seeds (paired t) and over test images (paired bootstrap). Seconds are "
    "those of fine-tuning steps, behind the + those of the pre-training it started from."
)


def as_text(results: Sequence[Result]) -> str:
    """Return one table for each test set."""
    parts = [f"{_title(test, own)}\n{table(COLUMNS, [*map(tuple, _cells(own))])}" for test, own in _by_test(results)]
    return "\n\n".join([*parts, HOW_TO_READ])


def as_markdown(results: Sequence[Result]) -> str:
    """Return the same tables as Markdown."""
    rule = "|" + " --- |" * len(COLUMNS)
    parts = []
    for test, own in _by_test(results):
        lines = ["| " + " | ".join(cells) + " |" for cells in [COLUMNS, *_cells(own)]]
        parts.append("\n".join([f"**{_title(test, own)}**", "", lines[0], rule, *lines[1:]]))
    return "\n\n".join(parts)


def as_page(name: str, results: Sequence[Result]) -> str:
    """Return the same tables as one self-contained HTML page."""
    sections = [
        Section(_title(test, own), HOW_TO_READ, tables=[Table(COLUMNS, [text_row(*cells) for cells in _cells(own)])])
        for test, own in _by_test(results)
    ]
    return render(f"Ablation {name}", sections)


def _by_test(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    tests = dict.fromkeys(result.test for result in results)
    return [(test, [result for result in results if result.test == test]) for test in tests]


def _title(test: str, results: Sequence[Result]) -> str:
    return f"{test} ({results[0].words:,} words)"


def _cells(results: Sequence[Result]) -> list[list[str]]:
    return [_row(result) for result in results]


def _row(result: Result) -> list[str]:
    spread = "" if result.spread is None else f" ± {100 * result.spread:.2f}"
    pretraining = f" + {result.pretrain_seconds:,.0f}" if result.pretrain_seconds else ""
    difference = result.difference
    compared = [""] * 4
    if difference is not None:
        compared = [
            difference.against,
            f"{100 * difference.mean:+.2f}",
            _interval(difference.over_seeds),
            _interval(difference.over_images),
        ]
    return [
        result.arm,
        f"{100 * result.accuracy:.2f}{spread}",
        f"{result.one_minus_ned:.3f}",
        *compared,
        str(result.seeds),
        f"{result.steps:,.0f}",
        f"{result.seconds:,.0f}{pretraining}",
    ]


def _interval(interval: Interval | None) -> str:
    return "one seed" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
