"""Labelled crops to an image-feature store: find, distort, encode, commit shard by shard.

Results of workers are used in the order of the crops, a crop's copies are never split, and a batch never spans shards.
So a shard's bytes depend only on crops and settings, not on the number of workers or on interruptions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Container, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.crops.augmentation import augment
from dptr.cache.crops.dataset import UNREADABLE, WordImages, decode_crop
from dptr.cache.crops.samples import Sample
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import MANIFEST_FILE, QUARANTINE_FILE
from dptr.cache.progress import progress
from dptr.cache.rejections import Quarantine, example
from dptr.cache.stores.image_features import CATALOGUE_SCHEMA
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.image_shards import Picture, ShardForm, shard_worker
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.executors.executor import IN_PROCESS, read_ahead
from dptr.pipeline.executors.part import WHOLE, Part
from dptr.pipeline.executors.store_builder import Group, StoreInMaking, StoreSummary, remember_inputs

#: Maximum of ``finetune.augmentation``, too.
STRONGEST = 10


@dataclass(frozen=True)
class EmbedCropsSettings:
    """Settings of embedding crops.

    Attributes:
        clip: ``tiny``, a directory or a hub id.
        charset: a name or a file, as of :meth:`Charset.named`, which labels must fit. normalization: of labels.
        copies: of each crop, the first undistorted. augmentation: strength of the distortions; 1 is PARSeq's.
        seed: of the copies.
        precision: arithmetic of the image encoder. dtype: how embeddings are stored.
        shard_rows: copies of a shard; a killed run loses at most one shard.
        batch: views per forward pass; None: what suits the device. Another may change the last bits of the embeddings.
        workers: threads that read and distort crops ahead of the model. Never changes a byte.
        max_bad: rejected crops allowed; None allows any number.
    """

    clip: str = "tiny"
    charset: str = "94"
    normalization: Normalization = field(default_factory=Normalization)
    copies: int = 8
    augmentation: float = 1.0
    seed: int = 0
    precision: Precision = "fp32"
    dtype: EmbeddingsDtype = "float16"
    shard_rows: int = 1024
    batch: int | None = None
    workers: int = 1
    max_bad: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_at_least(1, copies=self.copies, shard_rows=self.shard_rows, batch=self.batch, workers=self.workers)
        require_at_least(0, seed=self.seed)
        if not 0 <= self.augmentation <= STRONGEST:
            raise UserError(f"--augmentation is {self.augmentation}", f"Give 0 to {STRONGEST}")


@dataclass(frozen=True, kw_only=True)
class EmbedCropsSummary(StoreSummary):
    """Result of a run; rows are copies of crops.

    Attributes:
        crops: in the store. duplicates: crops of this run that are the same bytes with the same label as another one.
    """

    crops: int
    duplicates: int


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
        build = _Build(out, clip, charset, settings, part)
        before = build.manifest.rows
        given = {"batch": build.batch, "shard_rows": settings.shard_rows, "charset": settings.charset}
        remember_inputs(build.manifest, [str(path) for path in paths], given)
        build.run(images)
    rows, folder = build.manifest.rows, build.making.folder
    if not build.making.rows:
        rejected = folder / QUARANTINE_FILE
        raise UserError(
            f"none of {len(images):,} crops can be used{example(rejected)}",
            f"Use others; the reasons are in {rejected}",
        )
    return EmbedCropsSummary(
        out=folder,
        rows=rows,
        crops=rows // settings.copies,
        computed=rows - before,
        duplicates=build.duplicates,
        quarantined=build.quarantined,
        seconds=time.monotonic() - started - clip.load_seconds,
        load_seconds=clip.load_seconds,
    )


def _charset_of(folder: Path) -> Charset | None:
    """Return the charset of the store in ``folder``; None where there is none."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    return Charset.from_text(Manifest.load(folder, "image_features").identity["charset"])


class _Build:
    """The state of one run."""

    def __init__(self, out: Path, clip: Clip, charset: Charset, settings: EmbedCropsSettings, part: Part) -> None:
        self.settings = settings
        self.charset = charset
        self.encoder = ImageEncoder(clip)
        # All but a class token, which has no position in the picture.
        self.kept = np.arange(self.encoder.class_tokens, self.encoder.tokens)
        self.making = StoreInMaking(out, "image_features", self._identity(clip), part)
        self.manifest = self.making.manifest
        self.in_store = _in_store(self.making.catalogues)
        rows = max(1, settings.shard_rows // settings.copies) * settings.copies
        self.batch = settings.batch or self.encoder.batch
        self.form = ShardForm(CATALOGUE_SCHEMA, rows, len(self.kept), settings.dtype, self.batch)
        self.duplicates = 0
        self.quarantined = 0

    def _identity(self, clip: Clip) -> dict[str, Any]:
        settings = self.settings
        return {
            **clip.identity(),
            "image_weights": clip.image_weights,
            "precision": settings.precision,
            "embeddings": "projected",
            "tokens_per_crop": len(self.kept),
            "charset": self.charset.text,
            "normalization": settings.normalization.identity(),
            "copies": settings.copies,
            "augmentation": settings.augmentation,
            "seed": settings.seed,
            "dtype": settings.dtype,
        }

    def run(self, images: WordImages) -> None:
        settings = self.settings
        worker = shard_worker(self.making.folder, self.encoder, settings.clip, settings.precision, self.form)
        with (
            self.manifest.rewriting(self.making.folder, QUARANTINE_FILE),
            Quarantine(self.making.folder / QUARANTINE_FILE) as quarantine,
        ):
            for source in images.sources:
                quarantine.reads(source)
            for one in images.rejected.listed:
                quarantine.reject(one.source, None, f"{one.key} {one.label!r}" if one.label else one.key, one.reason)
            quarantine.check(settings.max_bad)
            with closing(self._usable(images, quarantine)) as groups:
                self.making.fill(IN_PROCESS, worker, groups, self.form.rows)
            # With very many labels not all are listed.
            self.quarantined = quarantine.total + images.rejected.total - len(images.rejected.listed)
            self.making.finish()

    def _usable(self, images: WordImages, quarantine: Quarantine) -> Generator[Group, None, None]:
        """Yield the augmented copies of each new readable crop; record rejected crops and duplicates."""
        earlier = frozenset(self.in_store)
        reader = CropReader(images, self.encoder, self.settings, self.kept, earlier)
        with progress("crops into the store", len(images), "crops") as bar:
            for sample, crop in read_ahead(images.samples, reader.read, self.settings.workers):
                if isinstance(crop, str):
                    quarantine.reject(sample.source, None, f"{sample.key} {sample.label!r}", crop)
                    quarantine.check(self.settings.max_bad)
                elif (identity := (crop[0], sample.label)) not in self.in_store:
                    self.in_store.add(identity)
                    yield Group(len(crop[1]), identity, crop[1])
                else:
                    self.duplicates += identity not in earlier
                bar.advance(1, f"{quarantine.total} quarantined" if quarantine.total else "")


def _in_store(catalogues: Sequence[Path]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for catalogue in catalogues:
        table = pq.read_table(catalogue, columns=["image_sha256", "label"])
        found.update(zip(table["image_sha256"].to_pylist(), table["label"].to_pylist(), strict=True))
    return found


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
    in_store: Container[tuple[str, str]]

    def read(self, sample: Sample) -> tuple[str, list[Picture]] | str:
        """Return the crop's SHA-256 and its copies (none if they are in the store), or why it cannot be used."""
        try:
            encoded = self.images.read(sample)
            sha256 = hashlib.sha256(encoded).hexdigest()
            return sha256, [] if (sha256, sample.label) in self.in_store else self._copies(sample, encoded, sha256)
        except UNREADABLE as error:
            return f"unreadable image: {error}"

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
