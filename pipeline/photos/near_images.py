"""Rejection of photos that are near-duplicates of excluded images, such as a benchmark's.

Nearness is the cosine of the pooled vectors of whole pictures, so that a resized or re-encoded copy is found as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.progress import progress
from dptr.cache.rejections import Rejection
from dptr.pipeline.clip.loading import ImageEncoder
from dptr.pipeline.photos import crops as photo_crops
from dptr.pipeline.photos.faiss_index import normalized
from dptr.pipeline.photos.photo_files import Photo, count_photos, find_photos


class NearImages:
    """Finds photos that nearly equal one of some images.

    Args:
        paths: folders, pictures and archives with the images.
        threshold: cosine from which on a photo counts as equal.
        encoder: encodes both sides.

    Raises:
        UserError: there is no image, or one that cannot be read: a photo equal to it would slip through.
    """

    def __init__(self, paths: Sequence[Path], threshold: float, encoder: ImageEncoder) -> None:
        if not 0 < threshold <= 1:
            raise UserError(
                f"threshold {threshold} is not a cosine similarity", "Use a number above 0 and up to 1, such as 0.95"
            )
        count_photos(paths)
        self.threshold = threshold
        self._encoder = encoder
        self._images = list(find_photos(paths))

    def identity(self) -> dict[str, object]:
        """Return what decides which photos are kept out: the images' bytes, in any order, and the threshold."""
        hashes = sorted(hashlib.sha256(self._read(image)).hexdigest() for image in self._images)
        return {"images": hashlib.sha256("".join(hashes).encode()).hexdigest(), "threshold": self.threshold}

    def reason(self, whole: NDArray[np.float32]) -> str | None:
        """Return why a photo must be kept out, or None.

        Args:
            whole: the photo's pixels, shape (3, height, width).
        """
        # One picture at a time, so that a photo's vector does not depend on its neighbours in a batch.
        cosines = self._vectors @ normalized(self._encoder.encode(whole[None])[1])[0]
        nearest = int(np.argmax(cosines))
        if cosines[nearest] < self.threshold:
            return None
        return f"near an excluded image: cosine {cosines[nearest]:.4f} to {self._places[nearest]}"

    @property
    def _places(self) -> list[str]:
        return [image.place for image in self._images if isinstance(image, Photo)]

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        pooled = []
        with progress("images to keep out", len(self._images), "images") as bar:
            for image in self._images:
                pooled.append(self._encoder.encode(self._pixels(image)[None])[1])
                bar.advance()
        return normalized(np.concatenate(pooled))

    def _pixels(self, image: Photo | Rejection) -> NDArray[np.float32]:
        try:
            return self._encoder.preprocess(photo_crops.central_square(decode(self._read(image))))
        except UnusablePicture as error:
            raise _unreadable(image, str(error)) from error

    def _read(self, image: Photo | Rejection) -> bytes:
        if isinstance(image, Rejection):
            raise _unreadable(image, image.reason)
        try:
            return image.read()
        except UnusablePicture as error:
            raise _unreadable(image, str(error)) from error
        except OSError as error:
            raise _unreadable(image, error.strerror or str(error)) from error


def _unreadable(image: Photo | Rejection, why: str) -> UserError:
    place = image.place if isinstance(image, Photo) else image.source
    return UserError(f"{place}, named with --exclude-near, cannot be used: {why}", "Fix or remove it")
