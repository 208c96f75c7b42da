"""Predictions for labelled crops, or for words from their embeddings: ``predictions`` of ``dptr sql``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.choices import Units
from dptr.cache.crops.dataset import WordImages
from dptr.cache.file_names import PREDICTIONS_FOLDER, QUARANTINE_FILE, VALIDATION_WORDS
from dptr.cache.rejections import Quarantine
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path, remove_leftovers
from dptr.cache.text.units import number_of_units
from dptr.trainer.evaluate import ReadImages

#: ``correct`` compares as written; an image that could not be read has neither ``reading`` nor ``correct``.
SCHEMA = pa.schema(
    [
        ("data", pa.string()),  # the data set, as it was named
        ("key", pa.string()),  # which image of it
        ("ground_truth", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
        ("length", pa.int32()),  # units of the ground truth
        ("confidence", pa.float64()),
        ("character_confidences", pa.list_(pa.float64())),
        ("step", pa.int64()),  # of the training; null for a model file
    ]
)


def keep_predictions(folder: Path, data: str, read: ReadImages, step: int | None = None) -> Path:
    """Write the predictions on one data set into a run's folder, replacing earlier ones."""
    name = hashlib.sha256(str(Path(data).absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    out = folder / PREDICTIONS_FOLDER / f"{name}.parquet"
    ground_truths = [read.as_written(ground_truth) for ground_truth in read.ground_truths]
    texts = [read.as_written(prediction.text) for prediction in read.predictions]
    nothing = [None] * len(read.unreadable)
    rows = len(ground_truths) + len(nothing)
    columns: list[list[Any]] = [
        [_written(data)] * rows,
        [_written(key) for key in (*read.keys, *read.unreadable)],
        [*ground_truths, *nothing],
        [*texts, *nothing],
        [*(ground_truth == text for ground_truth, text in zip(ground_truths, texts, strict=True)), *nothing],
        [*(number_of_units(ground_truth, read.units) for ground_truth in ground_truths), *nothing],
        [*(prediction.confidence for prediction in read.predictions), *nothing],
        [*(prediction.character_confidences for prediction in read.predictions), *nothing],
        [step] * rows,
    ]
    _write(out, columns)
    return out


def keep_validation_predictions(
    folder: Path, labels: Sequence[str], predictions: Sequence[str], units: Units = "codepoint"
) -> None:
    """Write what a pre-training read last of its validation words, each of shape (words,), into its folder.

    Lengths count ``units``.
    """
    nothing = [None] * len(labels)
    correct = [label == prediction for label, prediction in zip(labels, predictions, strict=True)]
    lengths = [number_of_units(label, units) for label in labels]
    columns = [[VALIDATION_WORDS] * len(labels), labels, labels, predictions, correct, lengths, *[nothing] * 3]
    # The lock's holder is the only writer, except for a concurrent evaluation, which prints a note and continues.
    remove_leftovers(folder / PREDICTIONS_FOLDER)
    _write(folder / PREDICTIONS_FOLDER / "validation_words.parquet", columns)


def keep_rejections(folder: Path, images: WordImages) -> None:
    """Write which labelled images training left out, and why, into a run's folder: in ``rejected_words``."""
    if not images.rejected.total and not (folder / QUARANTINE_FILE).is_file():
        return
    with Quarantine(folder / QUARANTINE_FILE) as quarantine:
        for source in images.sources:
            quarantine.reads(_written(source))
        for rejection in images.rejected.listed:
            item = f"{rejection.key} {rejection.label!r}"
            quarantine.reject(_written(rejection.source), None, item, rejection.reason)


def _write(out: Path, columns: Sequence[Sequence[Any]]) -> None:
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(checksummed.METADATA))
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        checksummed.checksum(temporary)


def _written(name: str) -> str:
    """Return a name as Unicode: names of files need not be."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
