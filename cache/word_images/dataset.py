"""Labelled word images for training and evaluation: which there are, which were left out and why, and their pixels.

Labels are normalised and checked once, when the data is opened. Images are read on demand, in whichever process needs
them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.errors import DptrError, UserError
from dptr.cache.normalization import Normalization
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.validation import validation_position
from dptr.cache.word_images.form import NotLabelled, Refused, Source
from dptr.cache.word_images.sources import find_sources

_EXAMPLES = 3
_MOST_REFUSALS = 100_000
_LEAST_SIDE = 2


class UnreadableImage(DptrError):
    """A word image that cannot be decoded; the caller counts it and goes on."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One word image that can be used: where it is, what it says, and which of the data sets named it belongs to."""

    source: str
    key: str
    label: str
    data_set: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """One word image that cannot be used: where it is, what its label says, and why."""

    source: str
    key: str
    label: str
    reason: str


@dataclass
class WordImages:
    """A map from position to labelled word image; picklable, also to spawned workers.

    Attributes:
        samples: what can be used, in the order of the data.
        refused: how many labels were left out, by reason. changed: how many were kept but altered, by what was done.
        examples: some raw labels for each reason, behind their source and key.
        refusals: each that was left out, but for what would be more than 100,000.
    """

    samples: list[Sample] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict, repr=False)
    refusals: list[Refusal] = field(default_factory=list, repr=False)

    @classmethod
    def open(cls, paths: Sequence[Path], charset: Charset, normalization: Normalization) -> WordImages:
        """List the labelled images at ``paths``, which may be of different forms.

        Raises:
            UserError: a path holds no labelled images in an accepted form, or no label can be used.
        """
        images = cls()
        images._list(paths, lambda source, key, raw: images._usable(source, key, raw, charset, normalization))
        if not images.samples:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in images.refused.most_common(3))
            raise UserError(
                f"no usable label in {', '.join(map(str, paths))}: {reasons or 'there are none'}",
                "Choose a charset and a longest label that fit the data",
            )
        return images

    @classmethod
    def open_as_written(cls, paths: Sequence[Path]) -> WordImages:
        """List the labelled images at ``paths`` with their labels as stored, whatever they hold: for evaluation.

        Raises:
            UserError: a path holds no labelled images in an accepted form, or not one label.
        """
        images = cls()
        images._list(paths, lambda source, key, raw: raw)
        if not images.samples:
            raise NotLabelled(f"no label in {', '.join(map(str, paths))}", "Name data with labels and images")
        return images

    def _list(self, paths: Sequence[Path], usable: Callable[[str, str, str], str | None]) -> None:
        for number, path in enumerate(paths):
            for source in find_sources(path):
                self.sources[source.name] = source
                for key, raw in source.labels():
                    if isinstance(raw, Refused):
                        self._refuse(source.name, key, "", raw.reason)
                    elif (label := usable(source.name, key, raw)) is not None:
                        self.samples.append(Sample(source.name, key, label, number))

    def _usable(self, source: str, key: str, raw: str, charset: Charset, normalization: Normalization) -> str | None:
        """Return the label of ``raw``, counting what was changed, or None after counting why it cannot be used."""
        normalized = normalization.apply(raw)
        label = usable_label(raw, charset, normalization)
        if isinstance(label, Refused):
            self._refuse(source, key, raw, label.reason)
            return None
        place = f"{source} {key}"
        if label != normalized:
            self._count(self.changed, "case folded, as the charset has one case only", place, raw)
        if normalized != raw:
            only_spaces = normalized == "".join(raw.split())
            self._count(self.changed, "spaces removed" if only_spaces else "normalised", place, raw)
        return label

    def _refuse(self, source: str, key: str, raw: str, reason: str) -> None:
        self._count(self.refused, reason.split(":", 1)[0], f"{source} {key}", raw)
        if len(self.refusals) < _MOST_REFUSALS:
            self.refusals.append(Refusal(source, key, raw, reason))

    def _count(self, counts: Counter[str], reason: str, place: str, raw: str) -> None:
        counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{place} {raw[:40]!r}")

    def __len__(self) -> int:
        return len(self.samples)

    def listed(self) -> list[str]:
        """Name and label of each sample, in order, as identities of data are made of."""
        return [f"{sample.key}\t{sample.label}" for sample in self.samples]

    def identity(self) -> dict[str, Any]:
        """What a run saves about its images, so that it notices when they change."""
        return {"rows": len(self), "sha256": hashlib.sha256("\n".join(self.listed()).encode()).hexdigest()}

    def image(self, index: int) -> Image.Image:
        """Return the image of sample ``index``, RGB, as large as it is stored.

        Raises:
            UnreadableImage: it is missing, damaged, or too small to hold a character.
        """
        sample = self.samples[index]
        try:
            image = decode_crop(self.sources[sample.source].read(sample.key))
        except (OSError, KeyError, ValueError, UnusablePicture) as error:
            raise UnreadableImage(f"image {sample.key} of {sample.source} cannot be read ({error})") from error
        return image

    def only(self, indices: Sequence[int]) -> Self:
        """Return the samples at ``indices``; what was refused stays with the whole."""
        return replace(
            self,
            samples=[self.samples[index] for index in indices],
            refused=Counter(),
            changed=Counter(),
            examples={},
            refusals=[],
        )


Images = TypeVar("Images", bound=WordImages)


def usable_label(raw: str, charset: Charset, normalization: Normalization) -> str | Refused:
    """Return what a recogniser is to read where ``raw`` stands, or why it cannot be used."""
    label = charset.fold_case(normalization.apply(raw))
    refusal = normalization.refuse(label, charset)
    return label if refusal is None else Refused(refusal)


def split(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Choose about ``share`` of the images for validation, each by its own key and label: more data moves none.

    Returns:
        The images to train on and those for validation, each in the order of the data.

    Raises:
        UserError: one of the two would be empty.
    """
    positions = [validation_position(f"{sample.key}\t{sample.label}", seed) for sample in images.samples]
    # Of few images none may fall below the share: the nearest to it is better than nothing.
    limit = max(share, min(positions, default=0.0) + 1e-15)
    chosen = [position < limit for position in positions]
    if share <= 0 or all(chosen):
        raise UserError(
            f"cannot keep {share:g} of {len(images)} images for validation",
            "Give a share between 0 and 1, or more data",
        )
    indices = range(len(images))
    return images.only([i for i in indices if not chosen[i]]), images.only([i for i in indices if chosen[i]])


def decode_crop(encoded: bytes) -> Image.Image:
    """Decode one word image to upright RGB; see :func:`dptr.cache.pictures.decode`.

    Raises:
        UnusablePicture: it is damaged, or too small to hold a character.
    """
    image = decode(encoded)
    if min(image.size) < _LEAST_SIDE:
        raise UnusablePicture(f"{image.width} x {image.height} pixels")
    return image


def preprocess(image: Image.Image, height: int = 32, width: int = 128) -> NDArray[np.uint8]:
    """Resize to the model's input as PARSeq does, bicubic and without keeping the shape.

    Returns:
        Pixels, shape (3, height, width), uint8. The batch is scaled to [-1, 1] where it is used.
    """
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
