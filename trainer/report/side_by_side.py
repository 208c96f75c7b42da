"""Two runs on one page: curves in one chart, what each reads of the same crops, and where their recipes differ."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dptr.cache.errors import UserError
from dptr.cache.file_names import METRICS_FILE
from dptr.cache.stores.files import atomic_path
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.model.recognizer import load_recognizer
from dptr.trainer.report.charts import line_chart
from dptr.trainer.report.image_readings import MOST_CROPS, read_crops
from dptr.trainer.report.mistakes import accuracy_by_length
from dptr.trainer.report.page import Cell, Chart, Section, Table, picture_address, render, text_row
from dptr.trainer.report.report import ReportSummary, logged, points
from dptr.trainer.training.runs import Run

_EXAMPLES = 24


def report_two(one: Run, other: Run, out: Path, crops: WordImages | None = None) -> ReportSummary:
    """Write the page of two runs.

    Args:
        one, other: runs of one kind with metrics. out: the file. crops: labelled word images that both read.

    Raises:
        UserError: they are the same run, of different kinds, or have not trained far enough.
    """
    started = time.monotonic()
    if one.folder.resolve() == other.folder.resolve() or one.kind != other.kind:
        raise UserError(f"{one.name} and {other.name} cannot be compared", "Name two runs of one kind")
    for run in (one, other):
        if not (run.folder / METRICS_FILE).is_file():
            raise UserError(f"{run.folder} has no metrics yet", "Let it train further")
        if crops is not None:
            run.require_recogniser()
    names = (one.name, other.name) if one.name != other.name else (str(one.folder), str(other.folder))
    sections = [_training(names, (one, other))]
    if crops is not None:
        sections += _readings(names, (one, other), crops)
    sections.append(_differences(names, (one, other)))
    with atomic_path(out) as temporary:
        page = render(f"dptr: {names[0]} beside {names[1]}", sections)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return ReportSummary(out, len(sections), time.monotonic() - started)


def _training(names: Sequence[str], runs: Sequence[Run]) -> Section:
    logs = [logged(run.folder / METRICS_FILE)[0] for run in runs]
    drawings = {
        "Training loss": ("loss", "loss", False),
        "Validation": ("validation_accuracy", "share read exactly", True),
    }
    charts = []
    for caption, (key, unit, share) in drawings.items():
        series = {name: points(log, key) for name, log in zip(names, logs, strict=True)}
        drawing = line_chart(key, series, unit, share=share, logarithmic=not share)
        if drawing is not None:
            charts.append(Chart(drawing, caption))
    steps = "; ".join(f"{name}: {run.step():,} steps" for name, run in zip(names, runs, strict=True))
    return Section("Training", steps, charts)


def _readings(names: Sequence[str], runs: Sequence[Run], crops: WordImages) -> list[Section]:
    chosen = np.random.default_rng(0).permutation(len(crops))[:MOST_CROPS].tolist()
    both = [dict(read_crops(load_recognizer(run), crops, chosen)) for run in runs]
    indices = [index for index in chosen if index in both[0]]
    if not indices:
        raise UserError("none of these crops can be decoded", "Check the files that --data names")
    truths = [crops.samples[index].label for index in indices]
    texts = [[read[index].text for index in indices] for read in both]
    right = [np.array([text == truth for text, truth in zip(found, truths, strict=True)]) for found in texts]
    counts = [
        text_row("both read", f"{int((right[0] & right[1]).sum()):,}"),
        text_row(f"only {names[0]} reads", f"{int((right[0] & ~right[1]).sum()):,}"),
        text_row(f"only {names[1]} reads", f"{int((~right[0] & right[1]).sum()):,}"),
        text_row("neither reads", f"{int((~right[0] & ~right[1]).sum()):,}"),
    ]
    charts = []
    for name, found in zip(names, texts, strict=True):
        chart = accuracy_by_length(truths, found)
        charts.append(Chart(chart.drawing, f"{name}. {chart.caption}"))
    said = f"{len(indices):,} of {len(crops):,} crops, read by both."
    sections = [Section("How well they read", said, charts, [Table([], counts)])]
    differing = [position for position in range(len(indices)) if right[0][position] != right[1][position]]
    if differing:
        sections.append(_one_reads(names, crops, indices, texts, differing[:_EXAMPLES]))
    return sections


def _one_reads(
    names: Sequence[str], crops: WordImages, indices: list[int], texts: list[list[str]], shown: list[int]
) -> Section:
    rows = []
    for position in shown:
        truth = crops.samples[indices[position]].label
        picture = Cell(picture=picture_address(crops.image(indices[position])), described=f"crop of {truth}")
        found = [Cell(text[position], wrong=text[position] != truth) for text in texts]
        rows.append([picture, Cell(truth), *found])
    return Section("Words that one of them reads", tables=[Table(["image", "truth", *names], rows)])


def _differences(names: Sequence[str], runs: Sequence[Run]) -> Section:
    recipes = [run.recipe.model_dump() for run in runs]
    rows = [
        text_row(f"{section}.{key}", value, recipes[1][section][key])
        for section, keys in recipes[0].items()
        for key, value in keys.items()
        if value != recipes[1][section][key]
    ]
    rows += [
        text_row(f"data: {name}", *(_described(run.data.get(name)) for run in runs))
        for name in sorted({*runs[0].data, *runs[1].data})
        if runs[0].data.get(name) != runs[1].data.get(name)
    ]
    if not rows:
        return Section("Where they differ", "Neither in their recipes nor in their data.")
    return Section("Where they differ", "Recipes as resolved, and data.", tables=[Table(["", *names], rows)])


def _described(data: object) -> str:
    """Data as JSON, with the beginnings of hashes, which tell them apart."""
    return (
        "" if data is None else re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", json.dumps(data, ensure_ascii=False))
    )
