"""Sections of a report on what a run reads: labelled crops with attention maps, or validation labels from text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dptr.cache.crops.dataset import UnreadableImage, WordImages, preprocess
from dptr.cache.errors import UserError
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.metrics import wilson
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.model.layers import Attention, DecoderLayer
from dptr.trainer.model.reading import read_pictures, width_for
from dptr.trainer.model.recognizer import Prediction, Recognizer, load_recognizer
from dptr.trainer.pretrain import read_prompts, split_rows
from dptr.trainer.report.page import Cell, Section, Table, picture_address
from dptr.trainer.training.runs import Run

_MOST_CROPS = 2000
_BATCH = 128
_EXAMPLES = 12
_LABELS_SHOWN = 24
_QUERY_LINE, _CHARACTER_LINE = 2, 7
#: Columns of a table of predictions without attention maps.
_WITHOUT_ATTENTION = 4
Read = tuple[int, Prediction]


def crop_sections(run: Run, crops: WordImages) -> list[Section]:
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
    if any(len(table.columns) > _WITHOUT_ATTENTION for table in tables):
        note += (
            " Attention maps: one line per query of the FMU, or per character of the decoder's last layer. Darker is"
            " more; columns are those of the image."
        )
    return [Section("Predictions", note, tables=tables)]


def prompt_sections(run: Run, store: PromptStore, bank: OrpBank | None) -> list[Section]:
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
    total = [Cell("word accuracy"), *(Cell(accuracy(count, len(labels))) for count in right)]
    columns = ["label", *(f"noise {ratio:g}" for ratio in ratios)]
    note = f"{len(labels):,} validation labels, read from their text embeddings and compared case-insensitively."
    return [Section("Predictions", note, tables=[Table("By noise ratio", columns, [total, *shown])])]


def accuracy(right: int, words: int) -> str:
    """Return a share with its 95 % interval."""
    low, high = wilson(right, words)
    return f"{right / words:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _equal(label: str, text: str) -> bool:
    return label.lower() == text.lower()


def _read_crops(recognizer: Recognizer, crops: WordImages, chosen: Sequence[int]) -> list[Read]:
    """Read the chosen crops; those that cannot be decoded are left out."""
    read: list[Read] = []
    for start in range(0, len(chosen), _BATCH):
        pictures, readable = [], []
        for index in chosen[start : start + _BATCH]:
            try:
                pictures.append(crops.image(index))
            except UnreadableImage:
                continue
            readable.append(index)
        read += zip(readable, read_pictures(recognizer, pictures), strict=True)
    return read


def _examples(title: str, recognizer: Recognizer, crops: WordImages, ranked: Sequence[Read]) -> Table:
    rows = []
    columns: list[str] = []
    for index, prediction in ranked:
        image, ground_truth = crops.image(index), crops.samples[index].label
        queries, decoder = attention_maps(recognizer, image)
        cells = {"image": Cell(picture=picture_address(image), described=f"crop of {ground_truth}")}
        if queries is not None:
            drawn = strip(queries, _QUERY_LINE)
            cells["FMU"] = Cell(picture=picture_address(drawn), height=52, described="attention of the FMU")
        if decoder is not None:
            drawn = strip(decoder[: max(len(prediction.text), 1)], _CHARACTER_LINE)
            cells["decoder"] = Cell(
                picture=picture_address(drawn), height=drawn.height, described="attention of the decoder"
            )
        cells["ground truth"] = Cell(ground_truth)
        cells["prediction"] = Cell(prediction.text, wrong=prediction.text != ground_truth)
        cells["confidence"] = Cell(f"{prediction.confidence:.2f}")
        columns = list(cells)
        rows.append(list(cells.values()))
    return Table(title, columns, rows)


#: Pixels of a strip for each column of the image.
_COLUMN = 5


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
    hooks: list[RemovableHandle] = [recognizer.fmu.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))]
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


def strip(columns: Tensor, line: int) -> Image.Image:
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
