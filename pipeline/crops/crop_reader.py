"""One labelled crop read, hashed and prepared in all of its augmented copies, ready for the image encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dptr.cache.crops.augmentation import augment
from dptr.cache.crops.dataset import UNREADABLE, WordImages, decode_crop
from dptr.cache.crops.form import Rejected
from dptr.cache.crops.samples import Sample
from dptr.pipeline.clip.loading import ImageEncoder


@dataclass(frozen=True)
class ReadCrop:
    """A crop that can be used.

    Attributes:
        image_sha256: of its encoded bytes.
        views: pixels of each copy, shape (3, height, width); empty when the crop is in the store already.
    """

    image_sha256: str
    views: list[NDArray[np.float32]]


@dataclass(frozen=True)
class CropReader:
    """Reads one crop at a time; safe to call from several threads.

    What is drawn for a copy depends on the seed, the crop's SHA-256 and the copy's number and on nothing else.

    Attributes:
        images: the crops. encoder: prepares pixels.
        views: copies of each crop; the first is the crop as it is. augmentation: strength of the others.
        seed: of the copies.
        in_store: (SHA-256, label) of crops that are there already, which need no copies.
    """

    images: WordImages
    encoder: ImageEncoder
    views: int
    augmentation: float
    seed: int
    in_store: Container[tuple[str, str]]

    def read(self, sample: Sample) -> ReadCrop | Rejected:
        """Return the crop in all of its copies, or the reason why it cannot be used."""
        try:
            encoded = self.images.read(sample)
            sha256 = hashlib.sha256(encoded).hexdigest()
            views = [] if (sha256, sample.label) in self.in_store else self._views(encoded, sha256)
        except UNREADABLE as error:
            return Rejected(f"unreadable image: {error}")
        return ReadCrop(sha256, views)

    def _views(self, encoded: bytes, sha256: str) -> list[NDArray[np.float32]]:
        image = decode_crop(encoded)
        drawn = [
            augment(image, np.random.default_rng((self.seed, int(sha256, 16), view)), self.augmentation)
            for view in range(1, self.views)
        ]
        return [self.encoder.preprocess_word(picture) for picture in (image, *drawn)]
