"""What a model's page on the hub says: what it reads, how well, what it was trained on, and how it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dptr.cache.file_names import METRICS_FILE, PREDICTIONS_FOLDER, RUN_FILE, VALIDATION_WORDS
from dptr.cache.stores import sealed
from dptr.trainer.metrics import wilson
from dptr.trainer.recipe import recipe_to_toml
from dptr.trainer.training.runs import Run, Trained

_KINDS = {
    "finetune": "A recogniser of cropped words, trained with dptr (decoder pre-training with only text).",
    "pretrain": "A decoder pre-trained from text alone with dptr: it spells, and does not see. Fine-tune from it.",
}
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Figure:
    """How many words of a data set were read exactly, as written."""

    data: str
    words: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share, from 0 to 1."""
        return self.right / self.words

    def row(self) -> str:
        """A line of a table."""
        low, high = wilson(self.right, self.words)
        return f"| {self.data} | {self.words:,} | {self.accuracy:.1%} ({low:.1%} to {high:.1%}) |"


def model_card(model: Trained, repo: str, folder: Path, licence: str | None = None) -> str:
    """Return the page as Markdown with the hub's header.

    Args:
        model: what is published. repo: its hub id.
        folder: that holds what ``dptr evaluate`` read with it. licence: its identifier on the hub.
    """
    figures = list(measured(folder))
    parts = [
        _header(model, repo, figures, licence),
        f"# {repo.rpartition('/')[2]}",
        _KINDS.get(model.kind, ""),
        _reads(model),
        "## Use",
        _use(model, repo),
        "## How well it reads",
        "\n".join(_told(model, figures)),
        "## What it was trained on",
        "Identities, by which `dptr` knows the data again: rows, and SHA-256 of names and labels.",
        _fenced("json", json.dumps(model.data, indent=2, ensure_ascii=False)),
        "## Recipe",
        _fenced("toml", recipe_to_toml(model.recipe).strip()),
        *_versions(model),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def measured(folder: Path) -> Iterator[Figure]:
    """Yield the figures of each data set that was read, by name; names of folders above it are not told."""
    for path in sorted((folder / PREDICTIONS_FOLDER).glob("*.parquet")):
        rows = pq.read_table(path, columns=["data", "correct"])
        correct = [value for value in rows["correct"].to_pylist() if value is not None]
        name = rows["data"][0].as_py() if len(rows) else ""
        if correct and name != VALIDATION_WORDS:
            yield Figure(Path(name).name or name, len(correct), sum(correct))


def _header(model: Trained, repo: str, figures: Sequence[Figure], licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=figure.data,
            dataset_name=figure.data,
            metric_type="accuracy",
            metric_name="word accuracy, as written",
            metric_value=round(figure.accuracy, 4),
        )
        for figure in figures
    ]
    data = ModelCardData(
        library_name="dptr",
        license=licence,
        pipeline_tag="image-to-text" if model.kind == "finetune" else None,
        tags=["dptr", "ocr", "scene-text-recognition"],
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _reads(model: Trained) -> str:
    characters = model.charset.characters
    shown = "".join(characters[:_MOST_CHARACTERS]) + ("…" if len(characters) > _MOST_CHARACTERS else "")
    decoder, encoder = model.recipe.decoder, model.recipe.encoder
    seen = f", encoder `{encoder.kind}`" if model.kind == "finetune" else ""
    said = (
        f"{len(characters):,} characters, up to {decoder.max_label_length} in a word; decoder `{decoder.kind}`{seen}."
    )
    return f"{said}\n\n{_fenced('text', shown)}"


def _use(model: Trained, repo: str) -> str:
    if model.kind != "finetune":
        return _fenced("", f"dptr finetune --from {repo} --data crops/")
    lines = ["import dptr", "", f'reader = dptr.load("{repo}")', 'print(reader.read(["word.png"]))']
    return _fenced("python", "\n".join(lines)) + "\n\n" + _fenced("", f"dptr read {repo} word.png")


def _told(model: Trained, figures: Sequence[Figure]) -> Iterator[str]:
    kept_back = _kept_back(model)
    if figures:
        yield "| data | words | word accuracy, as written (95 % interval) |\n| --- | --- | --- |"
        yield from (figure.row() for figure in figures)
    if kept_back:
        yield ("\n" if figures else "") + kept_back
    if not figures and not kept_back:
        yield "Not measured. `dptr evaluate` measures, and pushing it again puts the figures here."


def _kept_back(model: Trained) -> str:
    """Say what the newest validation found."""
    if not isinstance(model, Run) or not (model.folder / METRICS_FILE).is_file():
        return ""
    from dptr.trainer.report.report import logged

    lines = [line for line in logged(model.folder / METRICS_FILE)[0] if "validation_accuracy" in line]
    if not lines:
        return ""
    best = max(lines, key=lambda line: float(line["validation_accuracy"]))
    return (
        f"Of the words kept back from training, the best checkpoint reads {best['validation_accuracy']:.1%} "
        f"(step {best['step']:,})."
    )


def _versions(model: Trained) -> list[str]:
    if not isinstance(model, Run):
        return []
    versions: dict[str, Any] = sealed.read_json(model.folder / RUN_FILE).get("versions", {})
    return ["Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
