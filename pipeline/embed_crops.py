"""Labelled crops to an image-feature store: find, distort, encode, commit shard by shard."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.crops.augmentation import augment
from dptr.cache.crops.dataset import UNREADABLE, WordImages, decode_crop
from dptr.cache.crops.samples import Sample
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.image_features import CATALOGUE_SCHEMA
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip.image_shards import Input, Picture, PictureSettings, PictureStore, PictureSummary
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.executors.executor import IN_PROCESS, WHOLE, Part
from dptr.pipeline.executors.store_builder import remember_inputs

#: Maximum of ``finetune.augmentation``, too.
STRONGEST = 10


@dataclass(frozen=True, kw_only=True)
class EmbedCropsSettings(PictureSettings):
    """Settings of embedding crops.

    Attributes:
        charset: a name or a file, as of :meth:`Charset.named`, which labels must fit. normalization: of labels.
        copies: of each crop, the first undistorted. augmentation: strength of the distortions; 1 is PARSeq's.
    """

    charset: str = "94"
    normalization: Normalization = field(default_factory=Normalization)
    copies: int = 8
    augmentation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, copies=self.copies)
        if not 0 <= self.augmentation <= STRONGEST:
            raise UserError(f"--augmentation is {self.augmentation}", f"Give 0 to {STRONGEST}")


@dataclass(frozen=True, kw_only=True)
class EmbedCropsSummary(PictureSummary):
    """Result of a run; rows are copies of crops, duplicates have the same bytes and the same label.

    Attributes:
        crops: in the store.
    """

    crops: int


def embed_crops(
    paths: Sequence[Path], out: Path, settings: EmbedCropsSettings, part: Part = WHOLE
) -> EmbedCropsSummary:
    """Embed labelled crops into the image-feature store ``out``, adding those that it lacks, or a ``part`` of that.

    Raises:
        UserError: no crop that can be used, or impossible settings.
        DamagedStore: ``out`` holds a store made with other settings, or a damaged one.
        TooManyRejected: more than ``settings.max_bad`` crops were rejected; what was computed is kept.
    """
    started = time.monotonic()
    named = Charset.named(settings.charset)
    with locked(part.beside(out)):
        charset = settings.normalization.charset(named, _charset_of(part.beside(out)))
        images = WordImages.open(paths, charset, settings.normalization)
        clip = load_clip(settings.clip, settings.precision, settings.device)
        encoder = ImageEncoder(clip)
        # All but a class token, which has no position in the picture.
        kept = np.arange(encoder.class_tokens, encoder.tokens)
        identity = _identity(clip, len(kept), charset, settings)
        columns, copies = ["image_sha256", "label"], settings.copies
        store = PictureStore(
            out, "image_features", identity, part, encoder, settings, CATALOGUE_SCHEMA, columns, copies
        )
        given = {"batch": store.batch, "shard_rows": settings.shard_rows, "charset": settings.charset}
        remember_inputs(store.manifest, [str(path) for path in paths], given)
        reader = CropReader(images, encoder, settings, kept, store.known)

        def read(quarantine: Quarantine) -> Iterator[Input]:
            for source in images.sources:
                quarantine.reads(source)
            for one in images.rejected.listed:
                quarantine.reject(one.source, None, f"{one.key} {one.label!r}" if one.label else one.key, one.reason)
            quarantine.check(settings.max_bad)
            for sample, known_by, pictures in IN_PROCESS.read_ahead(images.samples, reader.read, settings.workers):
                yield Input(sample.source, f"{sample.key} {sample.label!r}", known_by, pictures)

        store.fill(read, len(images), "crops into the store", "crops", IN_PROCESS)
        # With very many labels not all are listed.
        store.quarantined += images.rejected.total - len(images.rejected.listed)
    return EmbedCropsSummary(
        **store.figures(),
        crops=store.manifest.rows // copies,
        seconds=time.monotonic() - started - clip.load_seconds,
        load_seconds=clip.load_seconds,
    )


def _charset_of(folder: Path) -> Charset | None:
    """Return the charset of the store in ``folder``; None where there is none."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    return Charset.from_text(Manifest.load(folder, "image_features").identity["charset"])


def _identity(clip: Clip, tokens: int, charset: Charset, settings: EmbedCropsSettings) -> dict[str, Any]:
    return {
        **clip.identity(),
        "image_weights": clip.image_weights,
        "precision": settings.precision,
        "embeddings": "projected",
        "tokens_per_crop": tokens,
        "charset": charset.text,
        "normalization": settings.normalization.identity(),
        "copies": settings.copies,
        "augmentation": settings.augmentation,
        "seed": settings.seed,
        "dtype": settings.dtype,
    }


@dataclass(frozen=True)
class CropReader:
    """Reads one crop at a time; safe to call from several threads.

    The distortion of a copy depends only on the seed, the crop's SHA-256 and the copy's number.

    Attributes:
        images: the crops. encoder: prepares pixels. settings: how they are distorted. kept: positions of tokens.
        in_store: (SHA-256, label) of crops that are there already, which need no copies.
    """

    images: WordImages
    encoder: ImageEncoder
    settings: EmbedCropsSettings
    kept: NDArray[np.int64]
    in_store: Container[tuple[str, ...]]

    def read(self, sample: Sample) -> tuple[tuple[str, str] | str, list[Picture]]:
        """Return the crop's SHA-256 and label, or why it cannot be used, and its copies: none if the store has them."""
        try:
            encoded = self.images.read(sample)
            known_by = (hashlib.sha256(encoded).hexdigest(), sample.label)
            return known_by, [] if known_by in self.in_store else self._copies(sample, encoded, known_by[0])
        except UNREADABLE as error:
            return f"unreadable image: {error}", []

    def _copies(self, sample: Sample, encoded: bytes, sha256: str) -> list[Picture]:
        image, settings = decode_crop(encoded), self.settings
        copies = []
        for view in range(settings.copies):
            generator = np.random.default_rng((settings.seed, int(sha256, 16), view))
            drawn = augment(image, generator, settings.augmentation) if view else image
            place = {"source": sample.source, "key": sample.key, "image_sha256": sha256}
            row = {"label": sample.label, "view": view, **place}
            copies.append(Picture(row, self.encoder.preprocess_word(drawn), self.kept))
        return copies
