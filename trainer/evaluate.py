"""Judge a recogniser by the field's protocol: word accuracy and 1-NED, per data set and charset."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.progress import note, progress
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess
from dptr.trainer.metrics import Score, score
from dptr.trainer.model.recognizer import Reading, Recognizer

PROTOCOLS = ("36", "62", "94")
_BATCH = 128
_EXAMPLES = 20


@dataclass(frozen=True)
class ReadImages:
    """Readings of word images beside the truth; unreadable images are left out and counted."""

    keys: list[str] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Mistake:
    """A word that was read wrongly."""

    key: str
    truth: str
    reading: str
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of one recogniser.

    Attributes:
        sets: data set -> protocol -> score. weighted: protocol -> accuracy over all words (PARSeq's "combined").
        averaged: protocol -> mean of the sets' accuracies (OpenOCR's).
        accuracy_by_length: characters of the truth -> (words, accuracy), 94-character protocol.
        mistakes: the most confident wrong readings.
    """

    sets: dict[str, dict[str, Score]]
    weighted: dict[str, float]
    averaged: dict[str, float]
    accuracy_by_length: dict[int, tuple[int, float]]
    mistakes: list[Mistake]
    words: int
    quarantined: int
    seconds: float


def evaluate(recognizer: Recognizer, sets: dict[str, WordImages], device: str = "cpu") -> Evaluation:
    """Read every image of every data set and compare.

    Raises:
        UserError: a data set has no readable image.
    """
    started = time.monotonic()
    read = {name: read_word_images(recognizer, images, torch.device(device)) for name, images in sets.items()}
    for name, result in read.items():
        if not result.truths:
            raise UserError(f"{name} has no readable word image", "Check the folder and its label file")
    scores = {
        name: {
            protocol: score(result.truths, [r.text for r in result.readings], Charset.named(protocol))
            for protocol in PROTOCOLS
        }
        for name, result in read.items()
    }
    words = {name: len(result.truths) for name, result in read.items()}
    total = sum(words.values())
    refused = sum(sum(images.refused.values()) for images in sets.values())
    return Evaluation(
        sets=scores,
        weighted={p: sum(scores[n][p].accuracy * words[n] for n in scores) / total for p in PROTOCOLS},
        averaged={p: sum(scores[n][p].accuracy for n in scores) / len(scores) for p in PROTOCOLS},
        accuracy_by_length=_by_length(list(read.values())),
        mistakes=_mistakes(list(read.values())),
        words=total,
        quarantined=refused + sum(len(result.unreadable) for result in read.values()),
        seconds=time.monotonic() - started,
    )


def read_word_images(recognizer: Recognizer, images: WordImages, device: torch.device) -> ReadImages:
    """Read labelled word images in order, in batches."""
    recognizer.eval()
    result = ReadImages()
    with progress("reading", len(images), "images") as shown:
        for start in range(0, len(images), _BATCH):
            pixels = []
            for index in range(start, min(start + _BATCH, len(images))):
                try:
                    pixels.append(preprocess(images.image(index), *recognizer.image_size))
                except UnreadableImage as error:
                    note(f"left out: {error}")
                    result.unreadable.append(images.samples[index].key)
                    continue
                result.keys.append(images.samples[index].key)
                result.truths.append(images.samples[index].label)
            if pixels:
                result.readings.extend(recognizer.read(torch.from_numpy(np.stack(pixels)).to(device)))
            shown.advance(min(_BATCH, len(images) - start))
    return result


def _by_length(results: Sequence[ReadImages]) -> dict[int, tuple[int, float]]:
    hits: dict[int, list[bool]] = defaultdict(list)
    for result in results:
        for truth, reading in zip(result.truths, result.readings, strict=True):
            hits[len(truth)].append(truth == reading.text)
    return {length: (len(found), sum(found) / len(found)) for length, found in sorted(hits.items())}


def _mistakes(results: Sequence[ReadImages]) -> list[Mistake]:
    wrong = [
        Mistake(key, truth, reading.text, reading.confidence)
        for result in results
        for key, truth, reading in zip(result.keys, result.truths, result.readings, strict=True)
        if truth != reading.text
    ]
    return sorted(wrong, key=lambda mistake: -mistake.confidence)[:_EXAMPLES]
