"""Photos to an ORP bank: find, cut, encode, commit shard by shard, index.

What the workers bring is taken in the photos' own order, and a batch never reaches across shards. So the bytes of a
shard depend on the photos and the settings alone: not on the number of workers, and not on whether an earlier run was
killed between two shards.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.file_names import INDEX_FILE, PHOTOS_FILE, QUARANTINE_FILE
from dptr.cache.progress import progress
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.quarantine import Quarantine
from dptr.pipeline.clip.image_shard import ShardInMaking
from dptr.pipeline.clip.loading import Clip, ImageTower, load_clip
from dptr.pipeline.neighbours import faiss_index
from dptr.pipeline.photos.near_images import NearImages
from dptr.pipeline.photos.orp_settings import OrpBankSettings
from dptr.pipeline.photos.photo import Photo, Refusal
from dptr.pipeline.photos.photo_files import count_photos, find_photos
from dptr.pipeline.photos.reader import Crop, CutPhoto, PhotoReader
from dptr.pipeline.photos.seen_photos import SeenPhotos
from dptr.pipeline.read_ahead import read_ahead
from dptr.pipeline.repair.losses import remember_inputs

__all__ = ["OrpBankSettings", "OrpBankSummary", "build_orp_bank"]


@dataclass(frozen=True)
class OrpBankSummary:
    """What a run did.

    Attributes:
        out: the bank's folder.
        rows: crops in the bank.
        photos: photos in the bank.
        computed: crops encoded by this run.
        duplicates: photos of this run that are the same bytes as another one.
        quarantined: photos and archives refused.
        seconds: the whole run without loading CLIP.
        load_seconds: loading CLIP.
        index: kind, parameters and measured recall of the index.
    """

    out: Path
    rows: int
    photos: int
    computed: int
    duplicates: int
    quarantined: int
    seconds: float
    load_seconds: float
    index: dict[str, Any]


def build_orp_bank(paths: Sequence[Path], out: Path, settings: OrpBankSettings) -> OrpBankSummary:
    """Make a bank of photo crops, or go on with one.

    What the bank already holds is not computed again, so the same call resumes a killed run and adds new photos.

    Args:
        paths: folders, pictures and archives (tar, zip, Parquet, LMDB).
        out: the bank's folder.
        settings: see :class:`~dptr.pipeline.photos.orp_settings.OrpBankSettings`.

    Raises:
        UserError: no photos, or impossible settings.
        DamagedStore: ``out`` holds a bank made with other settings, or a damaged one.
        TooManyRefused: more than ``settings.max_bad`` photos were refused; what was computed is kept.
    """
    started = time.monotonic()
    settings.crops()
    total = count_photos(paths)
    with locked(out):
        return _build(paths, total, out, settings, started)


def _build(paths: Sequence[Path], total: int, out: Path, settings: OrpBankSettings, started: float) -> OrpBankSummary:
    clip = load_clip(settings.clip, settings.precision, settings.device)
    build = _Build(out, clip, settings)
    # Pillow warns about single photos; what is wrong with them is in the quarantine.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        build.run(paths, total)
    if not build.manifest.shards:
        raise UserError(f"none of {total} photos can be used", f"See why in {out / QUARANTINE_FILE}")
    bank = OrpBank(out)
    indexed = bank.manifest.details.get("index", {}).get("rows")
    if indexed != len(bank) or not bank.manifest.is_intact(out, INDEX_FILE):
        faiss_index.write_index(bank)
    return OrpBankSummary(
        out,
        len(bank),
        sum(shard.details["photos"] for shard in bank.manifest.shards),
        build.computed,
        build.duplicates,
        build.quarantined,
        time.monotonic() - started - clip.load_seconds,
        clip.load_seconds,
        bank.manifest.details["index"],
    )


class _Build:
    """The state of one run."""

    def __init__(self, out: Path, clip: Clip, settings: OrpBankSettings) -> None:
        self.out = out
        self.settings = settings
        self.tower = ImageTower(clip)
        if settings.tokens_per_crop is not None and not 1 <= settings.tokens_per_crop <= self.tower.tokens:
            raise UserError(
                f"{settings.tokens_per_crop} tokens per crop are impossible", f"Use 1 to {self.tower.tokens}"
            )
        self.kept_out = (
            NearImages(settings.exclude_near, settings.exclude_threshold, self.tower) if settings.exclude_near else None
        )
        self.manifest = Manifest.begin_or_go_on(out, "orp", _identity(clip, self.tower, settings, self.kept_out))
        self.in_bank = _hashes(out, self.manifest)
        self.rows_before = self.manifest.rows
        self.duplicates = 0
        self.quarantined = 0
        self.shard: ShardInMaking | None = None

    @property
    def computed(self) -> int:
        return self.manifest.rows - self.rows_before

    def run(self, paths: Sequence[Path], total: int) -> None:
        remember_inputs(self.manifest, [str(path) for path in paths], {"batch": self.settings.batch})
        with self.manifest.rewriting(self.out, PHOTOS_FILE, QUARANTINE_FILE):
            self.seen = SeenPhotos(self.out)
            self._read(paths, total)

    def _read(self, paths: Sequence[Path], total: int) -> None:
        earlier = frozenset(self.in_bank)
        reader = PhotoReader(
            self.tower,
            self.settings.crops(),
            self.settings.seed,
            self.manifest.identity["tokens_per_crop"],
            self.kept_out is not None,
            self.in_bank,
            self.seen,
            self.settings.retry_quarantined,
        )
        with (
            Quarantine(self.out / QUARANTINE_FILE) as quarantine,
            progress("photos into the ORP bank", total, "photos") as bar,
        ):
            try:
                for found, result in read_ahead(find_photos(paths), reader.read, self.settings.workers):
                    quarantine.reads(found.file)
                    if isinstance(result, str):
                        self._refuse(quarantine, found, result)
                    elif result.sha256 not in self.in_bank:
                        self._add_or_keep_out(quarantine, result)
                    else:
                        self.seen.remember(result.photo, result.sha256, None)
                        self.duplicates += result.sha256 not in earlier
                    bar.advance(isinstance(found, Photo), f"{quarantine.total} quarantined" if quarantine.total else "")
                self._commit()
            finally:
                self.seen.save()
                self.quarantined = quarantine.total

    def _refuse(self, quarantine: Quarantine, found: Photo | Refusal, reason: str) -> None:
        quarantine.refuse(found.file, None, found.member or found.file, reason)
        if isinstance(found, Photo):
            self.seen.remember(found, None, reason)
        quarantine.check(self.settings.max_bad)

    def _add_or_keep_out(self, quarantine: Quarantine, photo: CutPhoto) -> None:
        near = self.kept_out.reason(photo.whole) if self.kept_out and photo.whole is not None else None
        if near:
            self._refuse(quarantine, photo.photo, near)
        else:
            self._add(photo)

    def _add(self, photo: CutPhoto) -> None:
        self.in_bank.add(photo.sha256)
        self.seen.remember(photo.photo, photo.sha256, None)
        if self.shard is None:
            per_photo = self.settings.crops_per_image
            self.shard = ShardInMaking(
                self.tower,
                self.manifest,
                CATALOGUE_SCHEMA,
                max(1, self.settings.shard_rows // per_photo) * per_photo,
                self.manifest.identity["tokens_per_crop"],
                self.settings.dtype,
                self.settings.batch,
            )
        for crop in photo.crops:
            self.shard.add(row_of(photo, crop), crop.pixels, crop.tokens)
        if self.shard.full:
            self._commit()

    def _commit(self) -> None:
        if self.shard is None:
            return
        self.manifest.shards.append(self.shard.write(self.out, {"photos": self.shard.distinct("image_sha256")}))
        # The index no longer describes the bank; leaving it listed would let a kill while it is rewritten damage it.
        self.manifest.files.pop(INDEX_FILE, None)
        self.manifest.save(self.out)
        self.shard = None


def row_of(photo: CutPhoto, crop: Crop) -> dict[str, Any]:
    """Return a crop's row of the catalogue, but for its id."""
    place = {"image": photo.photo.place, "image_sha256": photo.sha256}
    return {**place, **vars(crop.box), "thumbnail": crop.thumbnail}


def _identity(clip: Clip, tower: ImageTower, settings: OrpBankSettings, kept_out: NearImages | None) -> dict[str, Any]:
    return {
        **clip.identity(),
        "precision": settings.precision,
        "states": "projected",
        "tokens_per_crop": settings.tokens_per_crop or tower.tokens,
        "crops": asdict(settings.crops()),
        "seed": settings.seed,
        "dtype": settings.dtype,
        "kept_out": kept_out.identity() if kept_out else None,
    }


def _hashes(out: Path, manifest: Manifest) -> set[str]:
    hashes: set[str] = set()
    for catalogue in manifest.catalogues(out):
        hashes.update(pq.read_table(catalogue, columns=["image_sha256"]).column(0).to_pylist())
    return hashes
