"""A run as one self-contained HTML page: the result, curves, predictions, attention maps, and how it was made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, METRICS_FILE, PREDICTIONS_FOLDER, RUN_FILE, TIMINGS_FILE
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.adapt import SUMMARY_FILE
from dptr.trainer.report.page import Chart, Section, Table, line_chart, render, text_row
from dptr.trainer.report.predictions import accuracy, crop_sections, prompt_sections
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
        stores: what a pre-training run was trained on; without it the page has no predictions and no noise.

    Raises:
        UserError: the run has not trained far enough, or crops are given for a decoder without an encoder.
    """
    started = time.monotonic()
    if crops is not None:
        run.require_recogniser()
    metrics, damaged = logged(run.folder / METRICS_FILE) if (run.folder / METRICS_FILE).is_file() else ([], 0)
    # An adaptation that did not help keeps the weights of its start, which have no step and no metrics.
    if not metrics and run.step():
        raise UserError(f"{run.folder} has no metrics yet", "Train longer")
    compared = _compared(run)
    sections = [_result(compared)] if compared else []
    sections += [_curves(run, metrics)] if metrics else []
    if run.kind == "pretrain" and stores is not None:
        sections += prompt_sections(run, *stores)
    if run.kind == "finetune" and crops is not None:
        sections += crop_sections(run, crops)
    sections.append(_made(run))
    summary = f"{run.step():,} steps."
    if damaged:
        summary += f" {damaged} lines of {METRICS_FILE} are damaged and not drawn."
    with atomic_path(out) as temporary:
        # Names of files need not be UTF-8; what cannot be written is written as its code.
        page = render(f"dptr: {run.folder.name}", _headline(run, metrics, compared), summary, sections)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return ReportSummary(out, len(sections), time.monotonic() - started)


def _compared(run: Run) -> dict[str, Any]:
    """Return what an adaptation measured before and after training, by crops; nothing for other runs."""
    path = run.folder / SUMMARY_FILE
    summary = checksummed.read_json(path)["summary"] if path.is_file() else {}
    named = {"own": "your crops, held out", "general": "general words, rendered"}
    return {title: summary[key] for key, title in named.items() if summary.get(key)}


def _result(compared: dict[str, Any]) -> Section:
    rows = [
        text_row(
            title,
            f"{one['crops']:,}",
            f"{one['before']:.1%}",
            f"{one['after']:.1%}",
            "{:.1%} to {:.1%}".format(*one["interval"]),
        )
        for title, one in compared.items()
    ]
    columns = ["crops", "number", "before", "after", "95 % interval"]
    return Section("Result", tables=[Table("Word accuracy, with the interval after training", columns, rows)])


def _headline(run: Run, metrics: Sequence[dict[str, Any]], compared: dict[str, Any]) -> str:
    """Return the validation accuracy before training and at the best step."""
    if compared:
        own = next(iter(compared.values()))
        low, high = own["interval"]
        return f"Word accuracy {own['before']:.1%} → {own['after']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    measured = [point for point in points(metrics, "validation_accuracy") if math.isfinite(point[1])]
    if not measured:
        return "Not validated yet"
    step, best = max(measured, key=lambda point: point[1])
    words = _validation_words(run)
    said = accuracy(round(best * words), words) if words else f"{best:.1%}"
    before = f", from {measured[0][1]:.1%} at step {measured[0][0]:,}" if measured[0][0] < step else ""
    return f"Validation word accuracy {said} at step {step:,}{before}"


def _validation_words(run: Run) -> int:
    """Return how many words a run validates on; of a share of the data, about how many."""
    kept = run.folder / PREDICTIONS_FOLDER / "validation_words.parquet"
    if run.kind == "pretrain":
        return pq.read_metadata(kept).num_rows if kept.is_file() else 0
    if run.kind != "finetune":
        return 0
    known = run.data.get("validation") or {}
    images = run.data.get("images") or {}
    return int(known.get("rows") or round(run.recipe.finetune.validation_share * images.get("rows", 0)))


def _curves(run: Run, metrics: Sequence[dict[str, Any]]) -> Section:
    timings, _ = logged(run.folder / TIMINGS_FILE)
    keys = sorted(
        {key for line in metrics for key in line if key.startswith(("validation_accuracy", "validation_top"))}
    )
    validation = {key.removeprefix("validation_").replace("_", " "): points(metrics, key) for key in keys}
    drawings = {
        "Training loss": line_chart("loss", {"loss": points(metrics, "loss")}, "loss", logarithmic=True),
        "Validation": line_chart("validation", validation, "word accuracy", share=True),
        "Learning rate": line_chart("learning rate", {"": points(metrics, "learning_rate")}, "learning rate"),
        "Speed": line_chart("speed", {"": points(timings, "rows_per_second")}, "rows a second"),
    }
    return Section("Curves", charts=[Chart(drawing, name) for name, drawing in drawings.items() if drawing is not None])


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


def _made(run: Run) -> Section:
    """Return from what, with what and by which settings a run was made."""
    described = checksummed.read_json(run.folder / RUN_FILE)
    facts = {
        "stage": run.kind,
        "characters": f"{len(run.charset.characters)}: {''.join(run.charset.characters)}",
        "memory width": run.memory_dim,
        **flat(run.data),
        **described.get("versions", {}),
    }
    recipe = run.recipe.model_dump()
    tables = [Table("Run", [], [text_row(name, value) for name, value in facts.items()])]
    for name in _RECIPE_SECTIONS[run.kind]:
        rows = [text_row(key, value) for key, value in recipe[name].items() if value != ""]
        tables.append(Table(f"Recipe: {name}", [], rows))
    return Section("How it was made", tables=tables)


def flat(data: dict[str, Any], before: str = "") -> dict[str, object]:
    """Return nested values by the names that lead to them, as in ``images.rows``; nothing for None."""
    found: dict[str, object] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}.")
        elif value is not None:
            found[before + name] = value
    return found


def matching_stores(run: Run, folders: Sequence[Path]) -> tuple[PromptStore, OrpBank | None] | None:
    """Open the prompt store and ORP bank that ``run`` was trained on, or None when they are no longer these."""
    prompts, orp = folders
    if not (prompts / MANIFEST_FILE).is_file():
        return None
    store = PromptStore(prompts)
    known: dict[str, Any] = run.data
    if store.manifest.fingerprint() != known.get("prompts"):
        return None
    if "orp" not in known:
        return store, None
    bank = OrpBank(orp) if (orp / MANIFEST_FILE).is_file() else None
    return (store, bank) if bank is not None and bank.manifest.fingerprint() == known["orp"] else None
