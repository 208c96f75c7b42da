"""One photo read, hashed and cut, ready for the model; and which photos earlier runs have read.

What has not changed since an earlier run is neither read nor rejected twice. That only saves work: whether a photo is
in a bank follows from the committed catalogues alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dptr.cache import pictures
from dptr.cache.file_names import PHOTOS_FILE
from dptr.cache.pictures import UnusablePicture
from dptr.cache.progress import note
from dptr.cache.rejections import Rejection
from dptr.cache.stores.files import atomic_path, begun_anew
from dptr.pipeline.clip.loading import ImageEncoder
from dptr.pipeline.photos import crops as photo_crops
from dptr.pipeline.photos.crops import Box, CropSettings
from dptr.pipeline.photos.photo_files import Photo

SCHEMA = pa.schema(
    [
        ("place", pa.string()),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
        ("image_sha256", pa.string()),  # null when it could not be read
        ("reason", pa.string()),  # why it was rejected; null for those that can be used
    ]
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a photo."""

    size: int
    modified_ns: int
    image_sha256: str | None
    reason: str | None


class SeenPhotos:
    """The photos that this bank's runs have read, by place.

    Whether the file is still what they wrote is checked by the manifest (``Manifest.rewriting``).
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PHOTOS_FILE
        self._seen: dict[str, Seen] = {}
        if not self._path.is_file():
            return
        try:
            for row in pq.read_table(self._path, schema=SCHEMA).to_pylist():
                place = row.pop("place")
                self._seen[place] = Seen(**row)
        except (pa.ArrowException, OSError, ValueError):
            self._seen.clear()
            note(begun_anew(self._path))

    def recall(self, photo: Photo) -> Seen | None:
        """Return what came of ``photo``, or None when it is new or its file has changed."""
        seen = self._seen.get(photo.place)
        unchanged = seen is not None and (seen.size, seen.modified_ns) == (photo.size, photo.modified_ns)
        return seen if unchanged else None

    def remember(self, photo: Photo, image_sha256: str | None, reason: str | None) -> None:
        """Keep what came of ``photo``."""
        self._seen[photo.place] = Seen(photo.size, photo.modified_ns, image_sha256, reason)

    def save(self) -> None:
        """Write the file, atomically."""
        columns = {
            "place": list(self._seen),
            **{
                name: [getattr(seen, name) for seen in self._seen.values()]
                for name in ("size", "modified_ns", "image_sha256", "reason")
            },
        }
        with atomic_path(self._path) as path:
            pq.write_table(pa.table(columns, SCHEMA), path, compression="zstd")


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
        # Five libraries read, also damaged files; one photo must not end a long run.
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
