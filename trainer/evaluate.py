"""Evaluation by the field's protocol or the Chinese benchmark's: word accuracy and 1-NED per data set.

Predictions are kept in a run's folder, as ``predictions`` of ``dptr sql``.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dptr.cache.choices import Units
from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.errors import UserError
from dptr.cache.file_names import PREDICTIONS_FOLDER, QUARANTINE_FILE, VALIDATION_WORDS
from dptr.cache.printing import table as laid_out
from dptr.cache.progress import note, progress
from dptr.cache.rejections import Quarantine
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path, remove_leftovers
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import number_of_units, script_of_label
from dptr.trainer.choices import Protocol
from dptr.trainer.data.image_features import StoredCrops
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.metrics import (
    LONGEST,
    ProtocolScore,
    calibration_error,
    chinese_score,
    field_score,
    score_as_written,
    wilson,
)
from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Prediction, Recognizer

Key = TypeVar("Key")
#: The field's charsets.
FIELD_PROTOCOLS = ("36", "62", "94")
CHINESE = "chinese"
AS_WRITTEN = "as_written"
#: What predictions are compared by, in the order of tables; the labels as they are written always come last.
PROTOCOLS: dict[Protocol, tuple[str, ...]] = {
    "field": (*FIELD_PROTOCOLS, AS_WRITTEN),
    "chinese": (CHINESE, AS_WRITTEN),
}

_BATCH = 128
_EXAMPLES = 20


@dataclass(frozen=True)
class ReadImages:
    """Predictions and ground truth of labelled crops, in ``units`` of labels; unreadable crops are counted.

    ``form`` is what ground truths and predictions are compared in as written: that of the recogniser's charset.
    """

    keys: list[str] = field(default_factory=list)
    ground_truths: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    units: Units = "codepoint"
    form: Normalization = field(default_factory=Normalization)

    def as_written(self, text: str) -> str:
        """Return a ground truth or a prediction in the form for comparison."""
        return self.form.apply(text)


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction."""

    key: str
    ground_truth: str
    prediction: str
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of one recogniser.

    Attributes:
        protocols: what was compared by, some of :data:`PROTOCOLS`.
        sets: data set -> protocol -> figures, with how many words the protocol leaves out.
        weighted: protocol -> accuracy over all words (PARSeq's "combined"); None where no word counts.
        averaged: protocol -> mean of the sets' accuracies (OpenOCR's); None where no word counts.
        accuracy_by_script: script of the ground truth's letters -> (words, accuracy), as written; the commonest first.
        accuracy_by_length: units of the ground truth -> (words, accuracy), as written.
        calibration_error: expected calibration error of confidences over all words, as written, 0 to 1.
        mistakes: the most confident wrong predictions, as written.
        words: images read. quarantined: images that are missing or cannot be read.
        read: data set -> every reading, beside the ground truth.
    """

    protocols: tuple[str, ...]
    sets: dict[str, dict[str, ProtocolScore]]
    weighted: dict[str, float | None]
    averaged: dict[str, float | None]
    accuracy_by_length: dict[int, tuple[int, float]]
    accuracy_by_script: dict[str, tuple[int, float]]
    calibration_error: float
    mistakes: list[Mistake]
    words: int
    quarantined: int
    seconds: float
    read: dict[str, ReadImages] = field(repr=False)


def evaluate(
    recognizer: Recognizer,
    sets: dict[str, WordImages],
    device: str = "cpu",
    protocol: Protocol = "field",
    single_view: bool = False,
) -> Evaluation:
    """Read every image of every data set and compare.

    Args:
        recognizer: reads.
        sets: name -> data set with its labels as stored, from :meth:`WordImages.open_as_written`.
        device: where to read. protocol: by which rules to compare.
        single_view: read each image once, as published tables do; see :func:`dptr.trainer.model.reading.read_pictures`.

    Raises:
        UserError: a data set has no readable image.
    """
    started = time.monotonic()
    where = torch.device(device)
    read = {name: read_word_images(recognizer, images, where, single_view) for name, images in sets.items()}
    for name, result in read.items():
        if not result.ground_truths:
            raise UserError(f"{name} has no readable word image", "Check the folder and its label file")
    protocols, results = PROTOCOLS[protocol], list(read.values())
    rejected = sum(images.rejected.total for images in sets.values())
    scores = {name: {p: _score(result, p) for p in protocols} for name, result in read.items()}
    of_protocol = {p: [of_set[p] for of_set in scores.values()] for p in protocols}
    judged = [(*row, result.units) for result in results for row in _as_written(result)]
    by_length = _accuracy_by((number_of_units(truth, units), truth == found.text) for _, truth, found, units in judged)
    by_script = _accuracy_by((script_of_label(truth), truth == found.text) for _, truth, found, _ in judged)
    right = [truth == found.text for _, truth, found, _ in judged]
    wrong = [row for row in judged if row[1] != row[2].text]
    return Evaluation(
        protocols=protocols,
        sets=scores,
        weighted={p: _weighted(found) for p, found in of_protocol.items()},
        averaged={p: _averaged(found) for p, found in of_protocol.items()},
        accuracy_by_length=dict(sorted(by_length.items())),
        accuracy_by_script=dict(sorted(by_script.items(), key=lambda item: (-item[1][0], item[0]))),
        calibration_error=calibration_error([found.confidence for _, _, found, _ in judged], right) if judged else 0.0,
        mistakes=[
            Mistake(key, truth, found.text, found.confidence)
            for key, truth, found, _ in sorted(wrong, key=lambda row: -row[2].confidence)[:_EXAMPLES]
        ],
        words=sum(len(result.ground_truths) for result in results),
        quarantined=rejected + sum(len(result.unreadable) for result in results),
        seconds=time.monotonic() - started,
        read=read,
    )


def read_stored_crops(recognizer: Recognizer, crops: StoredCrops, device: torch.device) -> ReadImages:
    """Read the crops of a store in order, in batches; ``recognizer`` takes tokens for images."""
    recognizer.eval()
    keys, labels = [sample.key for sample in crops.samples], [sample.label for sample in crops.samples]
    result = _empty(recognizer, keys, labels)
    with progress("reading", len(crops), "crops") as shown:
        for start in range(0, len(crops), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(crops)))
            result.predictions.extend(recognizer.read(StoredTensor.of(crops.plain(rows)).to(device)))
            shown.advance(len(rows))
    return result


def read_word_images(
    recognizer: Recognizer, images: WordImages, device: torch.device, single_view: bool = False
) -> ReadImages:
    """Read labelled word images in order, in batches; ``single_view``: each once."""
    recognizer.eval()
    result = _empty(recognizer, [], [])
    with progress("reading", len(images), "images") as shown:
        for start in range(0, len(images), _BATCH):
            pictures = []
            for index in range(start, min(start + _BATCH, len(images))):
                try:
                    pictures.append(images.image(index))
                except UnreadableImage as error:
                    note(f"skipped: {error}")
                    result.unreadable.append(images.samples[index].key)
                    continue
                result.keys.append(images.samples[index].key)
                result.ground_truths.append(images.samples[index].label)
            result.predictions.extend(read_pictures(recognizer, pictures, device, single_view=single_view))
            shown.advance(min(_BATCH, len(images) - start))
    return result


def _empty(recognizer: Recognizer, keys: list[str], labels: list[str]) -> ReadImages:
    charset = recognizer.charset
    return ReadImages(keys, labels, units=charset.units, form=Normalization.of(charset))


def _score(read: ReadImages, protocol: str) -> ProtocolScore:
    texts = [prediction.text for prediction in read.predictions]
    if protocol in FIELD_PROTOCOLS:
        return field_score(read.ground_truths, texts, Charset.named(protocol))
    if protocol == CHINESE:
        return chinese_score(read.ground_truths, texts, read.units)
    return score_as_written(read.ground_truths, texts, read.units, read.form)


def _weighted(scores: Sequence[ProtocolScore]) -> float | None:
    words = sum(result.words for result in scores)
    return sum(s.score.accuracy * s.words for s in scores if s.score) / words if words else None


def _averaged(scores: Sequence[ProtocolScore]) -> float | None:
    accuracies = [result.score.accuracy for result in scores if result.score]
    return sum(accuracies) / len(accuracies) if accuracies else None


def _as_written(read: ReadImages) -> list[tuple[str, str, Prediction]]:
    """Key, label and reading of each word whose label is not empty, both in the form that they are compared in."""
    predictions = (replace(prediction, text=read.as_written(prediction.text)) for prediction in read.predictions)
    rows = zip(read.keys, map(read.as_written, read.ground_truths), predictions, strict=True)
    return [row for row in rows if row[1]]


def _accuracy_by(judged: Iterable[tuple[Key, bool]]) -> dict[Key, tuple[int, float]]:
    """Return words and accuracy by a key of each word."""
    hits: dict[Key, list[bool]] = defaultdict(list)
    for key, right in judged:
        hits[key].append(right)
    return {key: (len(found), sum(found) / len(found)) for key, found in hits.items()}


_TITLES = {
    **{name: f"{name} characters" for name in FIELD_PROTOCOLS},
    CHINESE: "Chinese benchmark",
    AS_WRITTEN: "exact",
}
_RULES = {
    "36": f"36, 62, 94: labels folded to ASCII as in PARSeq; empty ones and those over {LONGEST} characters excluded",
    CHINESE: "Chinese benchmark: NFKC, case-insensitive, simplified, without white space",
}


def table(result: Evaluation) -> str:
    """Return words, accuracy with interval and 1-NED per set and protocol, and the most confident mistakes."""
    rows = [row for name in result.sets for row in _rows_of_set(result, name)]
    if len(result.sets) > 1:
        rows += [row for protocol in result.protocols for row in _totals(result, protocol)]
    lines = [laid_out(["data", "compared", "words", "accuracy", "95 % interval", "1-NED"], rows, numbers=(2, 3, 4, 5))]
    lines += ["", *_left_out(result)]
    if len(result.accuracy_by_script) > 1:
        lines += ["", *_accuracy_by_script(result)]
    lines += ["", f"accuracy by length, exact: {_accuracy_by_length(result)}"]
    lines += [f"expected calibration error of confidences, exact: {result.calibration_error:.3f}"]
    if result.mistakes:
        mistakes = [(m.key, m.ground_truth, m.prediction, f"{m.confidence:.3f}") for m in result.mistakes[:10]]
        lines += [
            "",
            "most confident mistakes:",
            laid_out(["image", "ground_truth", "prediction", "confidence"], mistakes, (3,)),
        ]
    return "\n".join(lines)


def figures(result: Evaluation) -> dict[str, Any]:
    """Return everything as plain values; ``metrics`` holds the totals."""
    return {
        "rows": result.words,
        "computed": result.words,
        "quarantined": result.quarantined,
        "seconds": result.seconds,
        "sets": {name: {p: _plain(scores[p]) for p in result.protocols} for name, scores in result.sets.items()},
        "metrics": {
            **{f"accuracy_{p}_weighted": result.weighted[p] for p in result.protocols},
            **{f"accuracy_{p}_averaged": result.averaged[p] for p in result.protocols},
            "calibration_error": result.calibration_error,
        },
        "accuracy_by_length": {length: share for length, (_, share) in result.accuracy_by_length.items()},
        "accuracy_by_script": {script: share for script, (_, share) in result.accuracy_by_script.items()},
        "mistakes": [asdict(mistake) for mistake in result.mistakes],
    }


def _rows_of_set(result: Evaluation, name: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each protocol of a set; 62 and 94 only where their figures are none that another row shows."""
    shown = [result.sets[name][protocol].score for protocol in result.protocols if protocol not in ("62", "94")]
    data = name
    for protocol in result.protocols:
        found = result.sets[name][protocol]
        if protocol in ("62", "94"):
            if found.score in shown:
                continue
            shown.append(found.score)
        accuracy = found.score.accuracy if found.score else None
        one_minus_ned = f"{found.score.one_minus_ned:.3f}" if found.score else "-"
        yield (
            data,
            _TITLES[protocol],
            f"{found.words:,}",
            _share(accuracy),
            _between(accuracy, found.words),
            one_minus_ned,
        )
        data = ""


def _totals(result: Evaluation, protocol: str) -> Iterator[tuple[str, ...]]:
    """Yield both totals of a protocol that every set shows."""
    if protocol in ("62", "94"):
        return
    words = sum(scores[protocol].words for scores in result.sets.values())
    weighted = result.weighted[protocol]
    yield "all words", _TITLES[protocol], f"{words:,}", _share(weighted), _between(weighted, words), ""
    yield "mean of sets", _TITLES[protocol], "", _share(result.averaged[protocol]), "", ""


def _accuracy_by_script(result: Evaluation) -> list[str]:
    """Return accuracy by the script of the label, for data of several scripts."""
    rows = [(script, f"{words:,}", _share(part)) for script, (words, part) in result.accuracy_by_script.items()]
    return ["accuracy by script, exact:", laid_out(["script", "words", "accuracy"], rows, numbers=(1, 2))]


def _accuracy_by_length(result: Evaluation) -> str:
    """Return accuracy by ranges of five characters."""
    ranges: dict[int, list[tuple[int, float]]] = {}
    for length, words_and_share in result.accuracy_by_length.items():
        ranges.setdefault((length - 1) // 5, []).append(words_and_share)
    shown = []
    for number, found in sorted(ranges.items()):
        words = sum(words for words, _ in found)
        right = sum(words * part for words, part in found)
        shown.append(f"{5 * number + 1}-{5 * number + 5}: {right / words:.0%} of {words:,}")
    return ", ".join(shown)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _between(accuracy: float | None, words: int) -> str:
    """Return the ends of the interval that holds the accuracy on such words in 95 of 100 tests."""
    if accuracy is None:
        return "-"
    low, high = wilson(round(accuracy * words), words)
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _left_out(result: Evaluation) -> list[str]:
    """Return the rules by which words do not count, and how many: figures of other programs can be compared then."""
    lines = [_RULES[protocol] for protocol in ("36", CHINESE) if protocol in result.protocols]
    for protocol in result.protocols:
        empty = sum(scores[protocol].empty for scores in result.sets.values())
        too_long = sum(scores[protocol].too_long for scores in result.sets.values())
        if empty or too_long:
            lines.append(f"  {_TITLES[protocol]}: excluded: {empty:,} empty, {too_long:,} too long")
    return lines


def _plain(result: ProtocolScore) -> dict[str, Any]:
    if result.score is None:
        return {"words": 0, "empty": result.empty, "too_long": result.too_long}
    interval = wilson(round(result.score.accuracy * result.words), result.words)
    return {**asdict(result.score), "accuracy_interval": interval, "empty": result.empty, "too_long": result.too_long}


#: Predictions for labelled crops, or for words from their embeddings, as ``dptr sql`` shows them. ``correct`` compares
#: as written; an image that could not be read has neither ``prediction`` nor ``correct``.
PREDICTIONS = pa.schema(
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
    rows = [
        {**_judged(key, read.as_written(truth), read.as_written(found.text), read.units), "step": step,
         "confidence": found.confidence, "character_confidences": found.character_confidences}
        for key, truth, found in zip(read.keys, read.ground_truths, read.predictions, strict=True)
    ]  # fmt: skip
    rows += [{"key": _unicode(key), "step": step} for key in read.unreadable]
    name = hashlib.sha256(str(Path(data).absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return _write(folder / PREDICTIONS_FOLDER / f"{name}.parquet", data, rows)


def keep_validation_predictions(
    folder: Path, labels: Sequence[str], predictions: Sequence[str], units: Units = "codepoint"
) -> None:
    """Write what a pre-training read last of its validation words, each of shape (words,), into its folder.

    Lengths count ``units``.
    """
    # The lock's holder is the only writer, except for a concurrent evaluation, which prints a note and continues.
    remove_leftovers(folder / PREDICTIONS_FOLDER)
    rows = [_judged(label, label, text, units) for label, text in zip(labels, predictions, strict=True)]
    _write(folder / PREDICTIONS_FOLDER / "validation_words.parquet", VALIDATION_WORDS, rows)


def _judged(key: str, truth: str, text: str, units: Units) -> dict[str, Any]:
    found = {"ground_truth": truth, "prediction": text, "correct": truth == text}
    return {"key": _unicode(key), **found, "length": number_of_units(truth, units)}


def _write(out: Path, data: str, rows: list[dict[str, Any]]) -> Path:
    schema = PREDICTIONS.with_metadata(checksummed.METADATA)
    table = pa.Table.from_pylist([{**row, "data": _unicode(data)} for row in rows], schema)
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        checksummed.checksum(temporary)
    return out


def keep_rejections(folder: Path, images: WordImages) -> None:
    """Write which labelled images training left out, and why, into a run's folder: in ``rejected_words``."""
    if not images.rejected.total and not (folder / QUARANTINE_FILE).is_file():
        return
    with Quarantine(folder / QUARANTINE_FILE) as quarantine:
        for source in images.sources:
            quarantine.reads(_unicode(source))
        for rejection in images.rejected.listed:
            item = f"{rejection.key} {rejection.label!r}"
            quarantine.reject(_unicode(rejection.source), None, item, rejection.reason)


def _unicode(name: str) -> str:
    """Return a name as Unicode: names of files need not be."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
