"""One photo read, hashed and cut, ready for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache import pictures
from dptr.cache.pictures import UnusablePicture
from dptr.cache.rejections import Rejection
from dptr.pipeline.clip.loading import ImageEncoder
from dptr.pipeline.photos import crops as photo_crops
from dptr.pipeline.photos.crops import Box, CropSettings
from dptr.pipeline.photos.photo import Photo
from dptr.pipeline.photos.seen_photos import SeenPhotos


@dataclass(frozen=True)
class Crop:
    """One crop, ready for the image encoder.

    Attributes:
        box: where in the photo.
        tokens: positions of the tokens to keep, sorted, shape (tokens_per_crop,), int64.
        pixels: shape (3, height, width), float32.
        thumbnail: small JPEG.
    """

    box: Box
    tokens: NDArray[np.int64]
    pixels: NDArray[np.float32]
    thumbnail: bytes


@dataclass(frozen=True)
class CutPhoto:
    """A readable photo.

    Attributes:
        photo: where it is.
        sha256: of its encoded bytes.
        crops: its crops; empty when it is in the bank already.
        whole: pixels of the whole photo, where they are needed.
    """

    photo: Photo
    sha256: str
    crops: list[Crop]
    whole: NDArray[np.float32] | None


@dataclass(frozen=True)
class PhotoReader:
    """Reads one photo at a time; safe to call from several threads.

    Attributes:
        encoder: prepares pixels.
        settings: which crops to cut.
        seed: of the crops.
        tokens_per_crop: how many token positions to draw.
        keep_whole: also prepare the whole photo.
        in_bank: SHA-256 of photos that need no crops any more; may grow while photos are read.
        seen: what earlier runs found.
        retry: read again what was rejected earlier.
    """

    encoder: ImageEncoder
    settings: CropSettings
    seed: int
    tokens_per_crop: int
    keep_whole: bool
    in_bank: Container[str]
    seen: SeenPhotos
    retry: bool

    def read(self, found: Photo | Rejection) -> CutPhoto | str:
        """Return the photo with its crops, or the reason why it cannot be used."""
        if isinstance(found, Rejection):
            return found.reason
        seen = self.seen.recall(found)
        if seen and seen.reason and not self.retry:
            return seen.reason
        if seen and seen.image_sha256 and seen.image_sha256 in self.in_bank:
            return CutPhoto(found, seen.image_sha256, [], None)
        try:
            data = found.read()
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 in self.in_bank:
                return CutPhoto(found, sha256, [], None)
            image = pictures.decode(data)
            return CutPhoto(found, sha256, self._crops(image, sha256), self._whole(image))
        except UnusablePicture as error:
            return str(error)
        # Prediction is done by five libraries on damaged files; one photo must not end a long run.
        except Exception as error:
            return f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}"

    def _crops(self, image: Image.Image, sha256: str) -> list[Crop]:
        crops = []
        for number in range(self.settings.crops_per_image):
            box, generator = photo_crops.draw_crop(image.size, self.settings, self.seed, sha256, number)
            tokens = photo_crops.draw_tokens(generator, self.encoder.tokens, self.tokens_per_crop)
            picture = photo_crops.cut(image, box)
            crops.append(Crop(box, tokens, self.encoder.preprocess(picture), photo_crops.thumbnail(picture)))
        return crops

    def _whole(self, image: Image.Image) -> NDArray[np.float32] | None:
        return self.encoder.preprocess(photo_crops.central_square(image)) if self.keep_whole else None
