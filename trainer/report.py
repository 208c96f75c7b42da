"""A run as one self-contained HTML page: the result, curves, predictions with attention maps, and how it was made.

matplotlib draws the charts as SVG in placeholder colours, which are then exchanged for CSS variables: the same picture
serves a light and a dark page. Texts stay text, in the page's own font.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rcsetup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from dptr.cache.crops.dataset import UnreadableImage, WordImages, preprocess
from dptr.cache.errors import UserError
from dptr.cache.file_names import (
    ADAPTATION_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    PREDICTIONS_FOLDER,
    RUN_FILE,
    TIMINGS_FILE,
)
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.data.prompt_batches import NoiseSource, split_rows
from dptr.trainer.metrics import wilson
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.model.layers import Attention, DecoderLayer
from dptr.trainer.model.reading import read_pictures, width_for
from dptr.trainer.model.recognizer import Prediction, Recognizer, load_recognizer
from dptr.trainer.pretrain import read_prompts
from dptr.trainer.training import step_log
from dptr.trainer.training.runs import Run, require_recogniser

_MOST_CROPS, _BATCH, _EXAMPLES, _LABELS_SHOWN = 2000, 128, 12, 24
#: Pixels of a picture at most; of an attention map for each column of the image, each query and each character.
_THUMBNAIL, _COLUMN, _QUERY_LINE, _CHARACTER_LINE = (320, 64), 5, 2, 7
_INK, _LINE = "#0a0b0c", "#0d0e0f"
_SERIES = ("#a00001", "#a00002", "#a00003", "#a00004")
_VARIABLES = {_INK: "ink", _LINE: "line", **{colour: f"series-{number}" for number, colour in enumerate(_SERIES, 1)}}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    # Dashes distinguish lines that cover each other, and all of them without colours.
    "axes.prop_cycle": rcsetup.cycler(color=_SERIES, linestyle=["-", "--", ":", "-."]),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _LINE),
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text or a picture.

    Attributes:
        text: shown as it is, never as HTML. wrong: marks a mistake. picture: a ``data:`` address.
        height: of the picture on screen, in pixels. described: what a screen reader says of the picture.
    """

    text: str = ""
    wrong: bool = False
    picture: str = ""
    height: int = 40
    described: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells below a title and column names; without names the first cell of each row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in this order: note, charts by their captions, tables."""

    title: str
    note: str = ""
    charts: Mapping[str, Markup] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def report(
    run: Run,
    out: Path,
    crops: WordImages | None = None,
    stores: tuple[PromptStore, OrpBank | None] | None = None,
) -> int:
    """Write the report of ``run``; return how many sections it has.

    Args:
        run: a run with a checkpoint. out: the file to write.
        crops: labelled word images to read, for a fine-tuning run.
        stores: what a pre-training run was trained on; without it the page has no predictions and no noise.

    Raises:
        UserError: the run has not trained far enough, or crops are given for a decoder without an encoder.
    """
    if crops is not None:
        require_recogniser(run)
    metrics, damaged = step_log.read(run.folder / METRICS_FILE)
    # An adaptation that did not help keeps the weights of its start, which have no step and no metrics.
    if not metrics and run.step():
        raise UserError(f"{run.folder} has no metrics yet", "Train longer")
    compared = _compared(run)
    sections = [_result(compared)] if compared else []
    sections += [_curves(run, metrics)] if metrics else []
    if run.kind == "pretrain" and stores is not None:
        sections.append(_predicted_prompts(run, *stores))
    if run.kind == "finetune" and crops is not None:
        sections.append(_predicted_crops(run, crops))
    sections.append(_made(run))
    summary = f"{run.step():,} steps."
    if damaged:
        summary += f" {damaged} lines of {METRICS_FILE} are damaged and not drawn."
    with atomic_path(out) as temporary:
        # Names of files need not be UTF-8; what cannot be written is written as its code.
        page = render(f"dptr: {run.folder.name}", _headline(run, metrics, compared), summary, sections)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return len(sections)


def render(title: str, headline: str, summary: str, sections: Sequence[Section]) -> str:
    """Return the whole page, with the result and a sentence on it first; texts are escaped, and it loads no file."""
    environment = Environment(
        loader=PackageLoader("dptr.trainer", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title, headline=headline, summary=summary, sections=sections
    )


def _compared(run: Run) -> dict[str, Any]:
    """Return what an adaptation measured before and after training, by crops; nothing for other runs."""
    path = run.folder / ADAPTATION_FILE
    summary = checksummed.read_json(path)["summary"] if path.is_file() else {}
    named = {"own": "your crops, held out", "general": "general words, rendered"}
    return {title: summary[key] for key, title in named.items() if summary.get(key)}


def _result(compared: dict[str, Any]) -> Section:
    shown = "{crops:,}|{before:.1%}|{after:.1%}|{interval[0]:.1%} to {interval[1]:.1%}"
    rows = [_texts(title, *shown.format(**one).split("|")) for title, one in compared.items()]
    columns = ["crops", "number", "before", "after", "95 % interval"]
    return Section("Result", tables=[Table("Word accuracy, with the interval after training", columns, rows)])


def _texts(*texts: object) -> list[Cell]:
    return [Cell(str(text)) for text in texts]


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
    known, images = run.data.get("validation") or {}, run.data.get("images") or {}
    return int(known.get("rows") or round(run.recipe.finetune.validation_share * images.get("rows", 0)))


def _curves(run: Run, metrics: Sequence[dict[str, Any]]) -> Section:
    timings, _ = step_log.read(run.folder / TIMINGS_FILE)
    keys = sorted({key for line in metrics for key in line if key.startswith("validation_accuracy")})
    validation = {key.removeprefix("validation_").replace("_", " "): points(metrics, key) for key in keys}
    drawings = {
        "Training loss": line_chart("loss", {"": points(metrics, "loss")}, logarithmic=True),
        "Validation": line_chart("word accuracy", validation, share=True),
        "Learning rate": line_chart("learning rate", {"": points(metrics, "learning_rate")}),
        "Speed": line_chart("rows a second", {"": points(timings, "rows_per_second")}),
    }
    return Section("Curves", charts={name: drawing for name, drawing in drawings.items() if drawing is not None})


def points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value) of each line that has ``key``."""
    return [(line["step"], line[key]) for line in lines if key in line]


def line_chart(
    unit: str, series: Mapping[str, Sequence[tuple[float, float]]], share: bool = False, logarithmic: bool = False
) -> Markup | None:
    """Draw values over optimiser steps as SVG; None when no series has a point to draw.

    Args:
        unit: of the upright axis. series: name -> (step, value); values that are not finite are left out.
        share: values lie between 0 and 1 and are shown in per cent.
    """
    lines = {
        name: [point for point in found if math.isfinite(point[1]) and (point[1] > 0 or not logarithmic)]
        for name, found in series.items()
    }
    lines = {name: found for name, found in lines.items() if found}
    if not lines:
        return None
    stream = io.StringIO()
    # The salt makes ids that are the same at every writing, and other ones for each chart of a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": unit}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for name, found in lines.items():
            steps, values = zip(*found, strict=True)
            axes.plot(steps, values, label=name, marker="o" if len(found) == 1 else None)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(0, 1 if share else None)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %") if share else "{x:,.10g}")
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", stream.getvalue(), flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn[drawn.index("<svg") :])
    for placeholder, variable in _VARIABLES.items():
        drawn = drawn.replace(placeholder, f"var(--{variable})")
    head = f'<svg role="img" aria-label="{html.escape(unit)}" '
    # Its size is the page's; matplotlib escapes the texts that it writes.
    return Markup(head + re.sub(r'^<svg |(?<=\s)(?:width|height)="[\d.]+pt"', "", drawn))


def accuracy(right: int, words: int) -> str:
    """Return a share with its 95 % interval."""
    low, high = wilson(right, words)
    return f"{right / words:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _predicted_prompts(run: Run, store: PromptStore, bank: OrpBank | None) -> Section:
    """Read the validation labels from their text embeddings, clean and with noise."""
    decoder = build_decoder(run.recipe.decoder, len(run.charset.characters), run.memory_dim, run.recipe.memory)
    decoder.load_state_dict(run.weights())
    rows = np.random.default_rng(0).permutation(split_rows(store, run.recipe)[0])
    noise = None if bank is None else NoiseSource(bank, run.recipe.replace("noise", draw="random").noise, None)
    ratios = [0.0] if noise is None else [0.0, run.recipe.noise.ratio, 1.0]
    kind, cpu = run.recipe.memory, torch.device("cpu")
    predictions = [read_prompts(decoder, store, rows, noise, ratio, kind, cpu, run.charset) for ratio in ratios]
    labels = store.labels_of(rows)
    right = [sum(map(_equal, labels, texts)) for texts in predictions]
    shown = [
        [Cell(label), *(Cell(text, wrong=not _equal(label, text)) for text in texts)]
        for label, *texts in list(zip(labels, *predictions, strict=True))[:_LABELS_SHOWN]
    ]
    total = _texts("word accuracy", *(accuracy(count, len(labels)) for count in right))
    columns = ["label", *(f"noise {ratio:g}" for ratio in ratios)]
    note = f"{len(labels):,} validation labels, read from their text embeddings and compared case-insensitively."
    return Section("Predictions", note, tables=[Table("By noise ratio", columns, [total, *shown])])


def _equal(label: str, text: str) -> bool:
    return label.lower() == text.lower()


def _predicted_crops(run: Run, crops: WordImages) -> Section:
    """Read crops (2,000 of them where there are more, always the same) and show some, with attention maps.

    Raises:
        UserError: none of them can be decoded.
    """
    recognizer = load_recognizer(run)
    chosen = np.random.default_rng(0).permutation(len(crops))[:_MOST_CROPS].tolist()
    read = _read_crops(recognizer, crops, chosen)
    if not read:
        raise UserError("none of these crops can be decoded", "Check the files of these crops")
    by_confidence = sorted(read, key=lambda one: -one[1].confidence)
    right = [one for one in by_confidence if one[1].text == crops.samples[one[0]].label]
    wrong = [one for one in by_confidence if one[1].text != crops.samples[one[0]].label]
    # Labels in capitals would otherwise fill the table with predictions that differ in case alone.
    wrong.sort(key=lambda one: _equal(crops.samples[one[0]].label, one[1].text))
    folded = sum(_equal(crops.samples[index].label, prediction.text) for index, prediction in read)
    tables = [
        _examples(title, recognizer, crops, ranked[:_EXAMPLES])
        for title, ranked in (("Errors, most confident first", wrong), ("Correct, least confident first", right[::-1]))
        if ranked
    ]
    note = f"{len(read):,} of {len(crops):,} crops: word accuracy {accuracy(len(right), len(read))} exact, "
    note += f"{accuracy(folded, len(read))} case-insensitive."
    if len(read) < len(chosen):
        note += f" {len(chosen) - len(read):,} more could not be decoded."
    if any({"FMU", "decoder"} & set(table.columns) for table in tables):
        note += (
            " Attention maps: one line per query of the FMU, or per character of the decoder's last layer. Darker is"
            " more; columns are those of the image."
        )
    return Section("Predictions", note, tables=tables)


def _read_crops(recognizer: Recognizer, crops: WordImages, chosen: Sequence[int]) -> list[tuple[int, Prediction]]:
    """Read the chosen crops; those that cannot be decoded are left out."""
    read: list[tuple[int, Prediction]] = []
    for start in range(0, len(chosen), _BATCH):
        pictures: dict[int, Image.Image] = {}
        for index in chosen[start : start + _BATCH]:
            try:
                pictures[index] = crops.image(index)
            except UnreadableImage:
                continue
        read += zip(pictures, read_pictures(recognizer, list(pictures.values())), strict=True)
    return read


def _examples(title: str, recognizer: Recognizer, crops: WordImages, ranked: Sequence[tuple[int, Prediction]]) -> Table:
    rows = []
    for index, prediction in ranked:
        image, ground_truth = crops.image(index), crops.samples[index].label
        queries, decoder = attention_maps(recognizer, image)
        small = image.copy()
        small.thumbnail(_THUMBNAIL)
        cells = {"image": Cell(picture=_address(small), described=f"crop of {ground_truth}")}
        if queries is not None:
            drawn = _strip(queries, _QUERY_LINE)
            cells["FMU"] = Cell(picture=_address(drawn), height=52, described="attention of the FMU")
        if decoder is not None:
            drawn = _strip(decoder[: max(len(prediction.text), 1)], _CHARACTER_LINE)
            cells["decoder"] = Cell("", False, _address(drawn), drawn.height, "attention of the decoder")
        cells["ground truth"] = Cell(ground_truth)
        cells["prediction"] = Cell(prediction.text, wrong=prediction.text != ground_truth)
        cells["confidence"] = Cell(f"{prediction.confidence:.2f}")
        rows.append(cells)
    return Table(title, list(rows[0]), [list(cells.values()) for cells in rows])


def _address(image: Image.Image) -> str:
    """Return an image as a ``data:`` address."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@torch.inference_mode()
def attention_maps(recognizer: Recognizer, image: Image.Image) -> tuple[Tensor | None, Tensor | None]:
    """Read one image and return attention weights, each None where the recogniser has no such part.

    Returns:
        Of the Feature Merge Unit (queries, columns), and of the decoder's last layer, reading from left to right before
        any refinement, (positions, columns): weights averaged over heads, summed over rows of the image, each line's
        sum is one. Columns are those of the encoder's grid of tokens.
    """
    height = recognizer.image_size[0]
    pixels = preprocess(image, height, width_for(image, height, recognizer.encoder.widths))
    tokens: list[Tensor] = []
    queries: list[Tensor] = []
    keys: list[Tensor] = []

    def note_query(_: Any, __: Any, projected: Tensor) -> None:
        if len(keys) == 1:  # refinement makes the keys anew
            queries.append(projected)

    cross = _last_cross_attention(recognizer)
    hooks = [recognizer.fmu.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))]
    if cross is not None:
        hooks.append(cross.key_value.register_forward_hook(lambda _, __, made: keys.append(made)))
        hooks.append(cross.query.register_forward_hook(note_query))
    try:
        recognizer.decoder.decode(recognizer.memory(torch.from_numpy(pixels)[None]))
    finally:
        for hook in hooks:
            hook.remove()
    rows = recognizer.encoder.grid[0]
    merged = recognizer.fmu.attention_map(tokens[0])[0] if isinstance(recognizer.fmu, FeatureMergeUnit) else None
    read = _weights(cross, torch.cat(queries, 1), keys[0]) if cross is not None and queries else None
    if read is not None and merged is not None:
        read = read @ merged
    found = (merged, read)
    merged, read = (None if weights is None else weights.view(len(weights), rows, -1).sum(1) for weights in found)
    return merged, read


def _strip(columns: Tensor, line: int) -> Image.Image:
    """Draw a line of ``line`` pixels for each row of (rows, columns), scaled to its own maximum: darker is more."""
    shares = (columns / columns.amax(1, keepdim=True).clamp(min=1e-9)).float().numpy()
    shape = (columns.shape[1] * _COLUMN, len(columns) * line)
    return Image.fromarray(np.uint8(255 - 255 * shares)).resize(shape, Image.Resampling.NEAREST)


def _last_cross_attention(recognizer: Recognizer) -> Attention | None:
    layers = getattr(recognizer.decoder, "layers", None)
    last = layers[-1] if layers is not None and len(layers) else None
    return last.cross_attention if isinstance(last, DecoderLayer) else None


def _weights(cross: Attention, queries: Tensor, keys_values: Tensor) -> Tensor:
    """Attention of queries (1, positions, dim) over keys and values (1, tokens, 2 * dim): (positions, tokens)."""
    keys = keys_values.chunk(2, dim=-1)[0]
    apart = [x[0].view(x.shape[1], cross.heads, -1).transpose(0, 1) for x in (queries, keys)]
    weights = (apart[0] @ apart[1].transpose(-1, -2) * apart[0].shape[-1] ** -0.5).softmax(-1)
    averaged: Tensor = weights.mean(0)
    return averaged


def _made(run: Run) -> Section:
    """Return from what, with what and by which settings a run was made."""
    facts = {
        "stage": run.kind,
        "characters": f"{len(run.charset.characters)}: {''.join(run.charset.characters)}",
        "memory width": run.memory_dim,
        **flat(run.data),
        **checksummed.read_json(run.folder / RUN_FILE).get("versions", {}),
    }
    named = {"Run": facts, "Recipe": flat(run.recipe.defining(run.kind))}
    tables = [Table(title, [], [_texts(*row) for row in rows.items()]) for title, rows in named.items()]
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
    if store.manifest.fingerprint() != run.data.get("prompts"):
        return None
    if "orp" not in run.data:
        return store, None
    bank = OrpBank(orp) if (orp / MANIFEST_FILE).is_file() else None
    return (store, bank) if bank is not None and bank.manifest.fingerprint() == run.data["orp"] else None
