"""Photos to crops: read, hashed, and cut into random rectangles or the central square of upright RGB.

A crop depends only on the seed, the photo's SHA-256 and the crop's number, not on the number of workers or the order of
files. Only ``Generator.random`` is used, whose numbers are the most stable over versions of NumPy.

Photos near excluded images, such as a benchmark's, are found by the cosine of the pooled vectors of whole pictures, so
that a resized or re-encoded copy is found as well.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache import pictures
from dptr.cache.choices import CropKind
from dptr.cache.errors import UserError
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.progress import progress
from dptr.cache.rejections import Rejection
from dptr.pipeline.clip.image_shards import Picture
from dptr.pipeline.clip.loading import ImageEncoder
from dptr.pipeline.photos.faiss_index import normalized
from dptr.pipeline.photos.photo_files import Photo, count_photos, find_photos

_THUMBNAIL_SIDE = 64


@dataclass(frozen=True)
class CropSettings:
    """Settings of rectangles; part of a bank's identity.

    Attributes:
        crops_per_image: rectangles per photo.
        min_area: smallest share of the photo's area.
        max_area: largest share of the photo's area.
        min_aspect: smallest width / height.
        max_aspect: largest width / height.
        smallest_side: no side of a crop is shorter, in pixels; smaller photos are rejected.
        kind: ``whole`` cuts the central square instead, one per photo, as the authors' bank does.
    """

    crops_per_image: int = 8
    min_area: float = 0.05
    max_area: float = 0.5
    min_aspect: float = 0.5
    max_aspect: float = 2.0
    smallest_side: int = 32
    kind: CropKind = "random"

    def __post_init__(self) -> None:
        if self.crops_per_image < 1 or self.smallest_side < 1:
            raise UserError("crops per image and smallest side must be at least 1", "Raise them")
        if self.kind == "whole" and self.crops_per_image != 1:
            raise UserError(
                f"--crops whole takes one crop of each photo, not {self.crops_per_image}", "Leave out --crops-per-image"
            )
        if not 0 < self.min_area <= self.max_area <= 1:
            raise UserError(
                f"crop areas {self.min_area} to {self.max_area} are not a range of shares",
                "Use 0 < minimum <= maximum <= 1",
            )
        if not 0 < self.min_aspect <= self.max_aspect:
            raise UserError(
                f"crop aspects {self.min_aspect} to {self.max_aspect} are not a range", "Use 0 < minimum <= maximum"
            )


@dataclass(frozen=True)
class Box:
    """A rectangle in a photo, in pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def draw_crop(
    size: tuple[int, int], settings: CropSettings, seed: int, image_sha256: str, number: int
) -> tuple[Box, np.random.Generator]:
    """Draw one rectangle: area uniform, aspect uniform in its logarithm, position uniform; or return the middle.

    Args:
        size: width and height of the photo.
        settings: which rectangles are allowed. One that does not fit into the photo shrinks, within the aspects.
        seed: the bank's seed.
        image_sha256: of the photo's file.
        number: which of the photo's crops.

    Returns:
        the box, and the crop's own generator for whatever else is drawn for it.

    Raises:
        UnusablePicture: the photo is smaller than the smallest side.
    """
    width, height = size
    if min(size) < settings.smallest_side:
        raise UnusablePicture(f"too small: {width}x{height}, crops need {settings.smallest_side}")
    generator = np.random.Generator(np.random.PCG64([seed, int(image_sha256, 16), number]))
    at_area, at_aspect, at_x, at_y = generator.random(4).tolist()
    if settings.kind == "whole":
        return central_box(size), generator
    area = width * height * (settings.min_area + at_area * (settings.max_area - settings.min_area))
    aspect = settings.min_aspect * (settings.max_aspect / settings.min_aspect) ** at_aspect
    crop_height = min((area / aspect) ** 0.5, height)
    crop_width = min((area * aspect) ** 0.5, width, crop_height * settings.max_aspect)
    crop_height = min(crop_height, crop_width / settings.min_aspect)
    whole_width = min(max(round(crop_width), settings.smallest_side), width)
    whole_height = min(max(round(crop_height), settings.smallest_side), height)
    x, y = int(at_x * (width - whole_width + 1)), int(at_y * (height - whole_height + 1))
    return Box(x, y, whole_width, whole_height), generator


def draw_tokens(generator: np.random.Generator, tokens: int, count: int) -> NDArray[np.int64]:
    """Draw ``count`` of ``tokens`` token positions without replacement, sorted, shape (count,)."""
    return np.sort(np.argsort(generator.random(tokens), kind="stable")[:count])


def cut(image: Image.Image, box: Box) -> Image.Image:
    """Return the part of ``image`` inside ``box``."""
    return image.crop((box.x, box.y, box.x + box.width, box.y + box.height))


def central_box(size: tuple[int, int]) -> Box:
    """Return the square in the middle of a photo of this width and height, its side the shorter of the two."""
    side = min(size)
    return Box((size[0] - side) // 2, (size[1] - side) // 2, side, side)


def central_square(image: Image.Image) -> Image.Image:
    """Return the middle of a photo, as CLIP's preparation cuts it; a long strip would first be enlarged as a whole."""
    return cut(image, central_box(image.size))


def thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of ``image``, its longer side at most 64 pixels."""
    small = image.copy()
    small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


@dataclass(frozen=True)
class ReadPhoto:
    """A photo that can be read: where it is, the SHA-256 of its bytes, and its own pixels where they are needed."""

    photo: Photo
    sha256: str
    whole: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PhotoReader:
    """Reads one photo at a time; safe to call from several threads.

    Attributes:
        encoder: prepares pixels. settings: which crops to cut. seed: of the crops.
        tokens_per_crop: how many token positions to draw.
        keep_whole: also prepare the whole photo.
        in_bank: SHA-256, in a tuple, of photos that need no crops any more; may grow while photos are read.
    """

    encoder: ImageEncoder
    settings: CropSettings
    seed: int
    tokens_per_crop: int
    keep_whole: bool
    in_bank: Container[tuple[str, ...]]

    def read(self, found: Photo | Rejection) -> tuple[ReadPhoto | str, list[Picture]]:
        """Return the photo, or the reason why it cannot be used, and its crops: none where the bank has them."""
        if isinstance(found, Rejection):
            return found.reason, []
        try:
            data = found.read()
            sha256 = hashlib.sha256(data).hexdigest()
            if (sha256,) in self.in_bank:
                return ReadPhoto(found, sha256), []
            image = pictures.decode(data)
            crops = [self._crop(image, found, sha256, number) for number in range(self.settings.crops_per_image)]
            whole = self.encoder.preprocess(central_square(image)) if self.keep_whole else None
            return ReadPhoto(found, sha256, whole), crops
        except UnusablePicture as error:
            return str(error), []
        # Five libraries raise many exception types on damaged files; one photo must not end a long run.
        except Exception as error:
            return f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}", []

    def _crop(self, image: Image.Image, photo: Photo, sha256: str, number: int) -> Picture:
        box, generator = draw_crop(image.size, self.settings, self.seed, sha256, number)
        tokens = draw_tokens(generator, self.encoder.tokens, self.tokens_per_crop)
        crop = cut(image, box)
        row = {"image": photo.place, "image_sha256": sha256, **vars(box), "thumbnail": thumbnail(crop)}
        return Picture(row, self.encoder.preprocess(crop), tokens)


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
            return self._encoder.preprocess(central_square(decode(self._read(image))))
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
