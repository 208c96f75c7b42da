"""Labelled word images for training and evaluation: which there are, which were left out and why, and their pixels.

Labels are normalised and checked once, when the data is listed. Images are read on demand, in whichever process needs
them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.errors import DptrError, UserError
from dptr.cache.normalization import Normalization
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.word_images.crop_columns import Columns
from dptr.cache.word_images.form import NotLabelled, Place, PlacedSource, Source
from dptr.cache.word_images.listing import Refusal, Rules, Tally, list_crops
from dptr.cache.word_images.samples import Rows, Sample, Samples
from dptr.cache.word_images.sources import find_sources

_LEAST_SIDE = 2
#: What reading a picture raises where it is missing or damaged.
_UNREADABLE = (OSError, KeyError, ValueError, UnusablePicture)


class UnreadableImage(DptrError):
    """A word image that cannot be decoded; the caller counts it and goes on."""


@dataclass
class WordImages:
    """A map from position to labelled word image; picklable, also to spawned workers.

    Attributes:
        samples: what can be used, in the order of the data.
        refused: how many labels were left out, by reason. changed: how many were kept but altered, by what was done.
        examples: some raw labels for each reason, behind their source and key.
        refusals: each that was left out, but for what would be more than 100,000.
    """

    samples: Samples = field(default_factory=Samples)
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
        images = cls._listed(paths, Rules(charset, normalization))
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
        images = cls._listed(paths, None)
        if not images.samples:
            raise NotLabelled(f"no label in {', '.join(map(str, paths))}", "Name data with labels and images")
        return images

    @classmethod
    def _listed(cls, paths: Sequence[Path], rules: Rules | None) -> WordImages:
        sources: dict[str, Source] = {}
        data_sets: list[Columns] = []
        tally = Tally()
        for path in paths:
            found = find_sources(path)
            sources |= {source.name: source for source in found}
            columns, of_path = list_crops(path, found, rules)
            data_sets.append(columns)
            tally.add(of_path)
        return cls(Samples(data_sets), sources=sources, **told(tally))

    def __len__(self) -> int:
        return len(self.samples)

    def identity(self) -> dict[str, Any]:
        """What a run saves about its images, so that it notices when they change."""
        return {"rows": len(self), "sha256": self.samples.digest()}

    def image(self, index: int) -> Image.Image:
        """Return the image of sample ``index``, RGB, as large as it is stored.

        Raises:
            UnreadableImage: it is missing, damaged, or too small to hold a character.
        """
        sample, place = self.samples.look(index)
        try:
            return decode_crop(self._encoded(sample, place))
        except _UNREADABLE as error:
            raise UnreadableImage(f"image {sample.key} of {sample.source} cannot be read ({error})") from error

    def _encoded(self, sample: Sample, place: Place | None) -> bytes:
        source = self.sources[sample.source]
        if place is not None and isinstance(source, PlacedSource):
            return source.read_at(place)
        return source.read(sample.key)

    def encoded(self, index: int) -> bytes:
        """Return the file of sample ``index``'s picture.

        Raises:
            UnreadableImage: it is missing or damaged.
        """
        sample, place = self.samples.look(index)
        try:
            return self._encoded(sample, place)
        except _UNREADABLE as error:
            raise UnreadableImage(f"image {sample.key} of {sample.source} cannot be read ({error})") from error

    def content_hashes(self) -> Iterator[bytes | None]:
        """Yield the SHA-256 of each sample's encoded picture, 32 bytes; None where it cannot be read."""
        for index in range(len(self)):
            try:
                yield hashlib.sha256(self._encoded(*self.samples.look(index))).digest()
            except _UNREADABLE:
                yield None

    def require_readable(self) -> None:
        """Check that at least one picture can be decoded.

        Raises:
            UserError: none can; the message names one.
        """
        problem = "there are none"
        for index in range(len(self)):
            try:
                self.image(index)
            except UnreadableImage as error:
                problem = str(error)
            else:
                return
        raise UserError(f"none of {len(self)} validation crops can be read: {problem}", "Copy or write them again")

    def only(self, indices: Rows | Sequence[int]) -> Self:
        """Return the samples at ``indices``; what was refused stays with the whole."""
        nothing = told(Tally())
        return replace(self, samples=self.samples.only(indices), **nothing)


def told(tally: Tally) -> dict[str, Any]:
    """Return what a tally counted, as :class:`WordImages` holds it."""
    examples = {
        reason: [f"{one.source} {one.key} {one.label[:40]!r}" for one in found]
        for reason, found in tally.examples.items()
    }
    counted = {"refused": tally.refused, "changed": tally.changed}
    return {**counted, "examples": examples, "refusals": tally.refusals}


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
