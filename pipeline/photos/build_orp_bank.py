"""Photos to an ORP bank: find, cut, encode, commit shard by shard, index.

Results of workers are used in the order of the photos, and a batch never spans shards. So a shard's bytes depend only
on photos and settings, not on the number of workers or on interruptions.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.progress import progress
from dptr.cache.rejections import Quarantine, Rejection, example
from dptr.cache.stores.lock import locked
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.image_shards import ShardForm, shard_worker
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.executors.executor import IN_PROCESS, Executor
from dptr.pipeline.executors.part import WHOLE, Part
from dptr.pipeline.executors.store_builder import Group, StoreInMaking, StoreSummary, remember_inputs
from dptr.pipeline.photos import faiss_index
from dptr.pipeline.photos.crops import CropSettings, PhotoReader, ReadPhoto
from dptr.pipeline.photos.near_images import NearImages
from dptr.pipeline.photos.photo_files import Photo, count_photos, find_photos


@dataclass(frozen=True, kw_only=True)
class OrpBankSettings(CropSettings):
    """Settings of a bank: those of :class:`CropSettings`, and how crops are embedded.

    Attributes:
        clip: ``tiny``, a directory in transformers' format, or a hub id.
        precision: arithmetic of the image encoder.
        tokens_per_crop: tokens kept of each crop, drawn at random; None keeps all.
        seed: of crops and tokens.
        dtype: how embeddings are stored.
        shard_rows: crops per shard; a killed run loses at most these.
        batch: crops per forward pass; None: what suits the device. Another may change the last bits of the embeddings.
        workers: threads that read and cut photos ahead of the model. Never changes a byte.
        max_bad: rejected photos allowed; None allows any number.
        exclude_near: images, such as a benchmark's, that no photo of the bank may nearly equal.
        exclude_threshold: cosine of the pooled vectors of whole pictures from which on two count as equal.
        device: a torch device.
    """

    clip: str = "tiny"
    precision: Precision = "fp32"
    tokens_per_crop: int | None = None
    seed: int = 0
    dtype: EmbeddingsDtype = "float16"
    shard_rows: int = 1024
    batch: int | None = None
    workers: int = 1
    max_bad: int | None = None
    exclude_near: tuple[Path, ...] = ()
    exclude_threshold: float = 0.95
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Otherwise drawing would fail for each photo, and all would be rejected.
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"seed {self.seed} is impossible", "Use 0 or any whole number below 2**64")
        require_at_least(1, batch=self.batch)

    def crops(self) -> CropSettings:
        """Return the settings of the rectangles."""
        return CropSettings(**{part.name: getattr(self, part.name) for part in fields(CropSettings)})


@dataclass(frozen=True, kw_only=True)
class OrpBankSummary(StoreSummary):
    """Result of a run; rows are crops.

    Attributes:
        photos: in the bank. duplicates: photos of this run that are the same bytes as another one.
        index: kind, parameters and measured recall of the index.
    """

    photos: int
    duplicates: int
    index: dict[str, Any]


def build_orp_bank(
    paths: Sequence[Path],
    out: Path,
    settings: OrpBankSettings,
    part: Part = WHOLE,
    executor: Executor = IN_PROCESS,
) -> OrpBankSummary:
    """Make a bank of photo crops, or a part of one, or resume it.

    Photos in the bank are not computed again, so the same call resumes a killed run and adds new photos.

    Args:
        paths: folders, pictures and archives (tar, zip, Parquet, LMDB).
        out: the bank's folder.
        settings: see :class:`~dptr.pipeline.photos.build_orp_bank.OrpBankSettings`.
        part: to make; parts have no index.
        executor: where photos are read and encoded; it changes no byte.

    Raises:
        UserError: no photos, or impossible settings.
        DamagedStore: ``out`` holds a bank made with other settings, or a damaged one.
        TooManyRejected: more than ``settings.max_bad`` photos were rejected; what was computed is kept.
    """
    started = time.monotonic()
    total = count_photos(paths)
    with locked(part.beside(out)):
        clip = load_clip(settings.clip, settings.precision, settings.device)
        build = _Build(out, clip, settings, part)
        # Pillow warns about photos; their problems are recorded with the rejected photos.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")
            build.run(paths, total, executor)
        making = build.making
        if not making.rows:
            rejected = making.folder / QUARANTINE_FILE
            raise UserError(
                f"none of {total} photos can be used{example(rejected)}", f"Use others; the reasons are in {rejected}"
            )
        manifest = indexed(out).manifest if part.is_whole else making.manifest
    return OrpBankSummary(
        out=making.folder,
        rows=manifest.rows,
        photos=manifest.rows // settings.crops_per_image,
        computed=manifest.rows - build.rows_before,
        duplicates=build.duplicates,
        quarantined=build.quarantined,
        seconds=time.monotonic() - started - clip.load_seconds,
        load_seconds=clip.load_seconds,
        index=manifest.details.get("index", {}),
    )


def indexed(out: Path) -> OrpBank:
    """Open a bank whose crops are all committed, and update its index if needed."""
    bank = OrpBank(out)
    if not faiss_index.is_complete(bank):
        faiss_index.write_index(bank)
    return bank


class _Build:
    """The state of one run."""

    def __init__(self, out: Path, clip: Clip, settings: OrpBankSettings, part: Part) -> None:
        self.settings = settings
        self.encoder = ImageEncoder(clip)
        if settings.tokens_per_crop is not None and not 1 <= settings.tokens_per_crop <= self.encoder.tokens:
            raise UserError(
                f"{settings.tokens_per_crop} tokens per crop are impossible", f"Use 1 to {self.encoder.tokens}"
            )
        self.kept_out = (
            NearImages(settings.exclude_near, settings.exclude_threshold, self.encoder)
            if settings.exclude_near
            else None
        )
        self.making = StoreInMaking(out, "orp", _identity(clip, self.encoder, settings, self.kept_out), part)
        self.manifest, self.folder = self.making.manifest, self.making.folder
        self.in_bank = _hashes(self.making.catalogues)
        self.rows_before = self.manifest.rows
        self.duplicates = 0
        self.quarantined = 0
        per_photo = settings.crops_per_image
        self.form = ShardForm(
            CATALOGUE_SCHEMA,
            max(1, settings.shard_rows // per_photo) * per_photo,
            self.manifest.identity["tokens_per_crop"],
            settings.dtype,
            settings.batch or self.encoder.batch,
        )

    def run(self, paths: Sequence[Path], total: int, executor: Executor) -> None:
        settings = self.settings
        given = {name: getattr(settings, name) for name in ("shard_rows", "exclude_threshold")}
        given |= {"batch": self.form.batch, "exclude_near": [str(path) for path in settings.exclude_near]}
        remember_inputs(self.manifest, [str(path) for path in paths], given)
        worker = shard_worker(self.folder, self.encoder, settings.clip, settings.precision, self.form)
        keep_whole = self.kept_out is not None
        reader = PhotoReader(self.encoder, settings.crops(), settings.seed, self.form.tokens, keep_whole, self.in_bank)
        with (
            self.manifest.rewriting(self.folder, QUARANTINE_FILE),
            Quarantine(self.folder / QUARANTINE_FILE) as quarantine,
        ):
            read = executor.read_ahead(find_photos(paths), reader.read, settings.workers)
            with closing(self._usable(read, total, quarantine)) as groups:
                self.making.fill(executor, worker, groups, self.form.rows)
            self.quarantined = quarantine.total
            self.making.finish()

    def _usable(
        self, read: Iterable[tuple[Photo | Rejection, ReadPhoto | str, Any]], total: int, quarantine: Quarantine
    ) -> Generator[Group, None, None]:
        """Yield the crops of each new usable photo; record rejected photos and duplicates."""
        earlier = frozenset(self.in_bank)
        with progress("photos into the ORP bank", total, "photos") as bar:
            for found, photo, crops in read:
                quarantine.reads(found.source)
                if isinstance(photo, str):
                    self._reject(quarantine, found, photo)
                elif photo.sha256 in self.in_bank:
                    self.duplicates += photo.sha256 not in earlier
                elif near := self._near(photo):
                    self._reject(quarantine, found, near)
                else:
                    self.in_bank.add(photo.sha256)
                    yield Group(self.settings.crops_per_image, [photo.sha256], crops)
                bar.advance(isinstance(found, Photo), f"{quarantine.total} quarantined" if quarantine.total else "")

    def _reject(self, quarantine: Quarantine, found: Photo | Rejection, reason: str) -> None:
        quarantine.reject(found.source, None, found.key or found.source, reason)
        quarantine.check(self.settings.max_bad)

    def _near(self, photo: ReadPhoto) -> str | None:
        return self.kept_out.reason(photo.whole) if self.kept_out and photo.whole is not None else None


def _identity(
    clip: Clip, encoder: ImageEncoder, settings: OrpBankSettings, kept_out: NearImages | None
) -> dict[str, Any]:
    return {
        **clip.identity(),
        "precision": settings.precision,
        "embeddings": "projected",
        "tokens_per_crop": settings.tokens_per_crop or encoder.tokens,
        "crops": _cut(settings.crops()),
        "seed": settings.seed,
        "dtype": settings.dtype,
        "kept_out": kept_out.identity() if kept_out else None,
    }


def _cut(settings: CropSettings) -> dict[str, Any]:
    """Return which crops a bank holds; the kind only where it is not the default."""
    return {key: value for key, value in asdict(settings).items() if (key, value) != ("kind", "random")}


def _hashes(catalogues: Sequence[Path]) -> set[str]:
    hashes: set[str] = set()
    for catalogue in catalogues:
        hashes.update(pq.read_table(catalogue, columns=["image_sha256"]).column(0).to_pylist())
    return hashes
