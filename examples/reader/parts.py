"""Augment few real crops: parts of their words, and concatenated parts of two words.

    python examples/reader/parts.py real/iiit5k_train-train.lmdb real/ic15_train-train.lmdb -o parts.lmdb

A recogniser soon memorises a few thousand real crops. CTC alignment of the label with a trained recogniser
locates each letter; crops are cut between letters. Concatenations of parts are no words, so the recogniser has to read
the letters.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.crops.dataset import WordImages, preprocess, write_word_images
from dptr.cache.errors import run_script
from dptr.cache.text.normalization import Normalization
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.model.recognizer import Recognizer, load_recognizer

#: Least mean log probability of a column for an alignment to be believed.
_BELIEVED = -0.35
_SHORTEST, _LONGEST_LABEL, _LONGEST_JOINED = 2, 20, 15
_BATCH = 64
_TRIES = 20


@dataclass(frozen=True)
class Cuttable:
    """A crop and the places in pixels, one more than its label has letters, where it may be cut."""

    image: Image.Image
    label: str
    cuts: list[float]

    def part(self, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """Draw a third of the letters or more that follow each other."""
        count = int(rng.integers(max(1, len(self.label) // 3), len(self.label) + 1))
        first = int(rng.integers(0, len(self.label) - count + 1))
        left, right = round(self.cuts[first]), round(self.cuts[first + count])
        box = (left, 0, max(left + 2, right), self.image.height)
        return self.image.crop(box), self.label[first : first + count]


def main() -> None:
    """Parse, align, cut, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path, nargs="+", help="labelled crops of any form")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="a recogniser that reads by CTC from columns")
    parser.add_argument("--each", type=int, default=6, help="how many to make, times the crops")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recognizer = load_recognizer(ModelFile.open(arguments.model))
    images = WordImages.open(arguments.crops, recognizer.charset, Normalization())
    found = list(cuttable(recognizer, images))
    if not found:
        raise SystemExit(f"{arguments.model} finds the letters of none of {len(images):,} crops: train it longer")
    print(f"{len(found):,} of {len(images):,} crops can be cut")
    rng = np.random.default_rng(arguments.seed)
    with write_word_images(arguments.out) as writer:
        for _ in range(arguments.each * len(found)):
            image, label = draw(found, rng)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=95, subsampling=0)
            writer.write(stream.getvalue(), label)


def cuttable(recognizer: Recognizer, images: WordImages) -> Iterator[Cuttable]:
    """Yield the crops whose letters the recogniser finds."""
    rows = [row for row, sample in enumerate(images.samples) if _SHORTEST <= len(sample.label) <= _LONGEST_LABEL]
    for start in range(0, len(rows), _BATCH):
        pictures = [images.image(row) for row in rows[start : start + _BATCH]]
        pixels = torch.from_numpy(np.stack([preprocess(picture, *recognizer.image_size) for picture in pictures]))
        with torch.inference_mode():
            scores = recognizer.decoder(recognizer.memory(pixels)).log_softmax(-1).numpy()
        for row, picture, columns in zip(rows[start : start + _BATCH], pictures, scores, strict=True):
            label = images.samples[row].label
            centres, score = align(columns, recognizer.charset.encode(label), recognizer.decoder.end)
            if score > _BELIEVED and picture.width >= picture.height:
                between = (centres[1:] + centres[:-1] + 1) / 2 * picture.width / len(columns)
                yield Cuttable(picture, label, [0.0, *between.tolist(), float(picture.width)])


def align(scores: NDArray[np.float32], ids: NDArray[np.int64], blank: int) -> tuple[NDArray[np.float64], float]:
    """Find the likeliest path of a label through columns (Viterbi over letters with blanks between).

    Args:
        scores: log probabilities, shape (columns, classes). ids: of the label's letters, shape (letters,).
        blank: the class of no letter.

    Returns:
        The middle column of each letter, shape (letters,), and the path's mean log probability.
    """
    embeddings = np.full(2 * len(ids) + 1, blank)
    embeddings[1::2] = ids
    # A letter may follow the one before at once, unless they are equal.
    skips = np.zeros(len(embeddings), bool)
    skips[2:] = (embeddings[2:] != blank) & (embeddings[2:] != embeddings[:-2])
    best = np.full(len(embeddings), -np.inf)
    best[:2] = scores[0, embeddings[:2]]
    came = np.zeros((len(scores), len(embeddings)), int)
    for column in range(1, len(scores)):
        one = np.concatenate([[-np.inf], best[:-1]])
        two = np.where(skips, np.concatenate([[-np.inf, -np.inf], best[:-2]]), -np.inf)
        choices = np.stack([best, one, two])
        came[column] = choices.argmax(0)
        best = choices.max(0) + scores[column, embeddings]
    state = len(embeddings) - 1 - int(best[-2] > best[-1])
    score = float(best[state]) / len(scores)
    path = np.zeros(len(scores), int)
    for column in range(len(scores) - 1, -1, -1):
        path[column] = state
        state -= came[column, state]
    middles = [np.flatnonzero(path == 2 * letter + 1) for letter in range(len(ids))]
    return np.array([found.mean() if len(found) else np.nan for found in middles]), score


def draw(found: list[Cuttable], rng: np.random.Generator) -> tuple[Image.Image, str]:
    """Draw a part of a crop, half of the time with a part of another at its right."""
    image, label = found[int(rng.integers(len(found)))].part(rng)
    if rng.random() < 0.5:
        return image, label
    for _ in range(_TRIES):
        other, more = found[int(rng.integers(len(found)))].part(rng)
        if len(label) + len(more) <= _LONGEST_JOINED:
            return _joined(image, other), label + more
    return image, label


def _joined(left: Image.Image, right: Image.Image) -> Image.Image:
    height = max(left.height, right.height)
    scaled = [
        part.resize((max(2, round(part.width * height / part.height)), height), Image.Resampling.BICUBIC)
        for part in (left, right)
    ]
    joined = Image.new("RGB", (scaled[0].width + scaled[1].width, height))
    joined.paste(scaled[0], (0, 0))
    joined.paste(scaled[1], (scaled[0].width, 0))
    return joined


if __name__ == "__main__":
    run_script(main)
