"""One labelled crop read, hashed and prepared in all of its views, ready for the image tower."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptr.cache.charset import Charset
from dptr.cache.normalization import Normalization
from dptr.cache.pictures import UnusablePicture
from dptr.cache.word_images.augmentation import augment
from dptr.cache.word_images.dataset import decode_crop
from dptr.cache.word_images.form import Refused, Source
from dptr.cache.word_images.listing import usable_label
from dptr.cache.word_images.sources import find_sources
from dptr.pipeline.clip.loading import ImageEncoder


@dataclass(frozen=True)
class FoundCrop:
    """A crop as a data set lists it; ``label`` is the raw one, or why there is none."""

    source: Source
    key: str
    label: str | Refused

    @property
    def item(self) -> str:
        """Key and label, for people."""
        return self.key if isinstance(self.label, Refused) else f"{self.key} {self.label!r}"


@dataclass(frozen=True)
class ReadCrop:
    """A crop that can be used.

    Attributes:
        label: normalised.
        image_sha256: of its encoded bytes.
        views: pixels of each view, shape (3, height, width); empty when it is in the store already.
    """

    label: str
    image_sha256: str
    views: list[NDArray[np.float32]]


def find_crops(paths: Sequence[Path]) -> Iterator[FoundCrop]:
    """List the crops at ``paths``, of any form, in order.

    Raises:
        UserError: a path holds no labelled crops, or a damaged data set.
    """
    for path in paths:
        for source in find_sources(path):
            for key, label in source.labels():
                yield FoundCrop(source, key, label)


@dataclass(frozen=True)
class CropReader:
    """Reads one crop at a time; safe to call from several threads.

    What is drawn for a view depends on the seed, the crop's SHA-256 and the view's number and on nothing else.

    Attributes:
        tower: prepares pixels.
        charset: that labels must fit. normalization: how they come to be.
        views: of each crop; the first is the crop as it is. augmentation: strength of the others.
        seed: of the views.
        in_store: (SHA-256, label) of crops that are there already, which need no views.
    """

    tower: ImageEncoder
    charset: Charset
    normalization: Normalization
    views: int
    augmentation: float
    seed: int
    in_store: Container[tuple[str, str]]

    def read(self, found: FoundCrop) -> ReadCrop | Refused:
        """Return the crop in all of its views, or the reason why it cannot be used."""
        if isinstance(found.label, Refused):
            return found.label
        label = usable_label(found.label, self.charset, self.normalization)
        if isinstance(label, Refused):
            return label
        try:
            encoded = found.source.read(found.key)
            sha256 = hashlib.sha256(encoded).hexdigest()
            views = [] if (sha256, label) in self.in_store else self._views(encoded, sha256)
        except (OSError, KeyError, ValueError, UnusablePicture) as error:
            return Refused(f"unreadable image: {error}")
        return ReadCrop(label, sha256, views)

    def _views(self, encoded: bytes, sha256: str) -> list[NDArray[np.float32]]:
        image = decode_crop(encoded)
        drawn = [
            augment(image, np.random.default_rng((self.seed, int(sha256, 16), view)), self.augmentation)
            for view in range(1, self.views)
        ]
        return [self.tower.preprocess_word(picture) for picture in (image, *drawn)]
