"""Top-1 retrieval of labels by labelled crops with a CLIP alone, without a decoder.

The paper's premise is that CLIP's embeddings of a word's image and of its prompt are similar (its Fig. 1). This
measures it for a CLIP and labelled crops, with the labels of all crops, and optionally a lexicon, as candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.errors import UserError
from dptr.cache.printing import table
from dptr.cache.progress import progress
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.templates import Template
from dptr.trainer.metrics import wilson

#: How embeddings are centred before they are compared, in the order of the table.
CENTRED = ("nothing", "each side by its own mean")
_AMONG = 5
_PROMPTS_AT_ONCE = 4096


@dataclass(frozen=True)
class NearestWords:
    """Figures of one CLIP.

    Attributes:
        words: candidates: distinct labels, and a lexicon's words. rejected: those that CLIP's tokenizer cannot write.
        crops: crops compared, by data set. quarantined: crops that cannot be read, or whose label was rejected.
        first, among: centring -> data set -> crops whose own word is the nearest, or among the five nearest.
    """

    words: int
    rejected: int
    crops: dict[str, int]
    quarantined: int
    first: dict[str, dict[str, int]]
    among: dict[str, dict[str, int]]
    seconds: float
    load_seconds: float

    def figures(self) -> dict[str, Any]:
        """Return everything as plain values; ``metrics`` has accuracies over all crops."""
        total = sum(self.crops.values())
        shares = {kind: sum(of_sets.values()) / total for kind, of_sets in self.first.items()}
        return {
            "rows": total,
            "computed": total,
            "quarantined": self.quarantined,
            "seconds": self.seconds,
            "load_seconds": self.load_seconds,
            "words": self.words,
            "sets": {
                name: {kind: {"crops": count, "first": self.first[kind][name], "among_five": self.among[kind][name]}
                       for kind in CENTRED}
                for name, count in self.crops.items()
            },
            "metrics": {"accuracy": shares[CENTRED[0]], "accuracy_centred": shares[CENTRED[1]]},
        }  # fmt: skip

    def table(self) -> str:
        """Return a line for each centring and data set, with the 95 % interval of Wilson."""
        rows = []
        for kind in CENTRED:
            for name, count in self.crops.items():
                right = self.first[kind][name]
                low, high = wilson(right, count)
                among = f"{self.among[kind][name] / count:.1%}"
                interval = f"{100 * low:.1f}-{100 * high:.1f}"
                rows.append((kind, name, f"{count:,}", f"{right / count:.1%}", interval, among))
        head = ["centred by", "data", "crops", "nearest is its own", "95 % interval", "among five"]
        return f"{table(head, rows, numbers=(2, 3, 4, 5))}\n{self.words:,} words to choose from, case-insensitive"


def nearest_words(
    clip_name: str, sets: dict[str, WordImages], lexicon: Iterable[str] = (), device: str = "cpu"
) -> NearestWords:
    """Compare the image embedding of each crop with the text embeddings of all words.

    Args:
        clip_name: as for :func:`~dptr.pipeline.clip.loading.load_clip`.
        sets: name -> labelled crops as written. Crops are stretched to the image encoder's square.
        lexicon: words beside the labels. Case is folded, as CLIP's tokenizer folds it.

    Raises:
        UserError: CLIP cannot be loaded, or no crop has a label that its tokenizer can write.
    """
    clip = load_clip(clip_name, "fp32", device)
    started = time.monotonic()
    texts, images = TextEncoder(clip, Template()), ImageEncoder(clip)
    labels = [sample.label.lower() for one in sets.values() for sample in one.samples]
    wanted = list(dict.fromkeys([*labels, *(word.lower() for word in lexicon)]))
    words, vectors = _text_vectors(texts, wanted)
    column = {word: number for number, word in enumerate(words)}
    found: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    with progress("comparing", len(labels), "crops") as bar:
        for name, one in sets.items():
            own, pictures = list[int](), list[NDArray[np.float32]]()
            for place, encoded in _image_vectors(images, one, column):
                bar.advance(len(place))
                own += [column[one.samples[row].label.lower()] for row in place]
                pictures.append(encoded)
            if own:
                found[name] = np.array(own), np.concatenate(pictures)
    if not found:
        raise UserError(
            f"no crop has a label that the tokenizer of {clip_name} can write", "Use a CLIP of its language"
        )
    crops = {name: len(own) for name, (own, _) in found.items()}
    rejected = len(labels) - sum(crops.values())
    first: dict[str, dict[str, int]] = {kind: {} for kind in CENTRED}
    among: dict[str, dict[str, int]] = {kind: {} for kind in CENTRED}
    text_mean, image_mean = vectors.mean(0), np.concatenate([seen for _, seen in found.values()]).mean(0)
    for kind in CENTRED:
        centred = kind != CENTRED[0]
        candidates = _unit(vectors - text_mean) if centred else vectors
        for name, (own_words, seen) in found.items():
            ranks = _ranks(_unit(seen - image_mean) if centred else seen, candidates, own_words)
            first[kind][name], among[kind][name] = int((ranks == 0).sum()), int((ranks < _AMONG).sum())
    seconds = time.monotonic() - started
    return NearestWords(len(words), len(wanted) - len(words), crops, rejected, first, among, seconds, clip.load_seconds)


def _text_vectors(encoder: TextEncoder, wanted: list[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Return the words that the tokenizer can write and their vectors of length one, (words, dim)."""
    words, parts = list[str](), list[NDArray[np.float32]]()
    for start in range(0, len(wanted), _PROMPTS_AT_ONCE):
        some = wanted[start : start + _PROMPTS_AT_ONCE]
        ids = encoder.tokenize([encoder.template.prompt(word) for word in some])
        usable = [number for number, one in enumerate(ids) if encoder.why_unusable(one) is None]
        if usable:
            words += [some[number] for number in usable]
            parts.append(_unit(encoder.encode([ids[number] for number in usable]).pooled))
    if not parts:
        return [], np.zeros((0, 1), np.float32)
    return words, np.concatenate(parts)


def _image_vectors(
    encoder: ImageEncoder, images: WordImages, column: dict[str, int]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Yield rows of crops whose label is a candidate, and their vectors of length one, (rows, dim)."""
    place, pixels = list[int](), list[NDArray[np.float32]]()
    for row in range(len(images)):
        if images.samples[row].label.lower() in column:
            try:
                pixels.append(encoder.preprocess_word(images.image(row)))
            except UnreadableImage:
                continue
            place.append(row)
        if place and (len(place) == encoder.batch or row + 1 == len(images)):
            yield place, _unit(encoder.encode(np.stack(pixels))[1])
            place, pixels = [], []
    if place:
        yield place, _unit(encoder.encode(np.stack(pixels))[1])


def _ranks(
    images: NDArray[np.float32], words: NDArray[np.float32], own: NDArray[np.int64], at_once: int = 256
) -> NDArray[np.int64]:
    """Return how many words are nearer to each image than its own, shape (images,); a tie counts as nearer."""
    ranks = []
    for start in range(0, len(images), at_once):
        similar = images[start : start + at_once] @ words.T
        mine = np.take_along_axis(similar, own[start : start + at_once, None], axis=1)
        ranks.append((similar >= mine).sum(axis=1) - 1)
    return np.concatenate(ranks)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled
