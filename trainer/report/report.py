"""A run as one self-contained HTML page: its curves, what it reads, and, by stage, the noise or the FMU's attention."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, METRICS_FILE, RUN_FILE, TIMINGS_FILE
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.model.recognizer import load_recognizer
from dptr.trainer.report.charts import line_chart
from dptr.trainer.report.image_readings import image_sections
from dptr.trainer.report.page import Chart, Section, Table, render, text_row
from dptr.trainer.report.prompt_readings import prompt_sections
from dptr.trainer.training.runs import Run

_RECIPE_SECTIONS = {
    "pretrain": ("decoder", "noise", "pretrain"),
    "finetune": ("encoder", "fmu", "decoder", "finetune"),
}


@dataclass(frozen=True)
class ReportSummary:
    """What was written: the page, and how many sections it has."""

    out: Path
    sections: int
    seconds: float


def report(
    run: Run,
    out: Path,
    crops: WordImages | None = None,
    stores: tuple[PromptStore, OrpBank | None] | None = None,
) -> ReportSummary:
    """Write the report of ``run``.

    Args:
        run: a run with a checkpoint. out: the file to write.
        crops: labelled word images to read, for a fine-tuning run.
        stores: what a pre-training run was trained on; without it the page has no readings and no noise.

    Raises:
        UserError: the run has not trained far enough, or crops are given for a decoder without an encoder.
    """
    started = time.monotonic()
    if crops is not None:
        run.require_recogniser()
    if not (run.folder / METRICS_FILE).is_file():
        raise UserError(f"{run.folder} has no metrics yet", "Let it train further")
    sections = [_training(run)]
    if run.kind == "pretrain" and stores is not None:
        sections += prompt_sections(run, *stores)
    if run.kind == "finetune" and crops is not None:
        sections += image_sections(load_recognizer(run), crops)
    sections += [_facts(run), _recipe(run)]
    with atomic_path(out) as temporary:
        # Names of files need not be UTF-8; what cannot be written is written as its code.
        page = render(f"dptr: {run.folder.name}", sections)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return ReportSummary(out, len(sections), time.monotonic() - started)


def _training(run: Run) -> Section:
    metrics, damaged = logged(run.folder / METRICS_FILE)
    timings, _ = logged(run.folder / TIMINGS_FILE)
    shares = sorted(
        {key for line in metrics for key in line if key.startswith(("validation_accuracy", "validation_top"))}
    )
    validation = {key.removeprefix("validation_").replace("_", " "): points(metrics, key) for key in shares}
    drawings = {
        "Training loss": line_chart("loss", {"loss": points(metrics, "loss")}, "loss", logarithmic=True),
        "Validation": line_chart("validation", validation, "share read exactly", share=True),
        "Learning rate": line_chart("learning rate", {"": points(metrics, "learning_rate")}, "learning rate"),
        "Speed": line_chart("speed", {"": points(timings, "rows_per_second")}, "rows a second"),
    }
    charts = [Chart(drawing, caption) for caption, drawing in drawings.items() if drawing is not None]
    said = f"{run.step():,} steps done."
    if damaged:
        said += f" {damaged} lines of {METRICS_FILE} are damaged and not drawn."
    return Section("Training", said, charts)


def logged(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a log that can be read, and how many cannot: a killed process may leave half a line."""
    lines, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            lines.append({"step": 0, **json.loads(line)})
        except (ValueError, TypeError):
            damaged += 1
    return lines, damaged


def points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each line that has ``key``."""
    return [(line["step"], line[key]) for line in lines if key in line]


def _facts(run: Run) -> Section:
    described = json.loads((run.folder / RUN_FILE).read_text(encoding="utf-8"))
    rows = [
        text_row("stage", run.kind),
        text_row("charset", f"{len(run.charset.characters)} characters: {''.join(run.charset.characters)}"),
        text_row("memory", f"{run.memory_dim} wide"),
        *(text_row(name, version) for name, version in described.get("versions", {}).items()),
        *(text_row(f"data: {name}", json.dumps(value, ensure_ascii=False)) for name, value in run.data.items()),
    ]
    return Section("The run", tables=[Table([], rows)])


def _recipe(run: Run) -> Section:
    recipe = run.recipe.model_dump()
    tables = [
        Table([name, ""], [text_row(key, value) for key, value in recipe[name].items() if value != ""])
        for name in _RECIPE_SECTIONS[run.kind]
    ]
    return Section("Recipe", "As resolved from defaults, recipe and options.", tables=tables)


def matching_stores(run: Run, folders: Sequence[Path]) -> tuple[PromptStore, OrpBank | None] | None:
    """Open the prompt store and ORP bank that ``run`` was trained on, or None when they are no longer these."""
    prompts, orp = folders
    if not (prompts / MANIFEST_FILE).is_file():
        return None
    store = PromptStore(prompts)
    known: dict[str, Any] = run.data
    if not store.manifest.is_described_by(known.get("prompts")):
        return None
    if "orp" not in known:
        return store, None
    bank = OrpBank(orp) if (orp / MANIFEST_FILE).is_file() else None
    return (store, bank) if bank is not None and bank.manifest.is_described_by(known["orp"]) else None
