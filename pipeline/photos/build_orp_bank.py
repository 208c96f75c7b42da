"""Photos to an ORP bank: find, cut, encode, commit shard by shard, index."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.lock import locked
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.pipeline.clip.image_shards import Input, PictureSettings, PictureStore, PictureSummary
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.executors.executor import IN_PROCESS, WHOLE, Executor, Part
from dptr.pipeline.executors.store_builder import remember_inputs
from dptr.pipeline.photos import faiss_index
from dptr.pipeline.photos.crops import CropSettings, NearImages, PhotoReader
from dptr.pipeline.photos.photo_files import Photo, count_photos, find_photos


@dataclass(frozen=True, kw_only=True)
class OrpBankSettings(CropSettings, PictureSettings):
    """Settings of a bank: of the rectangles and of their embeddings.

    Attributes:
        tokens_per_crop: tokens kept of each crop, drawn at random; None keeps all.
        exclude_near: images, such as a benchmark's, that no photo of the bank may nearly equal.
        exclude_threshold: cosine of the pooled vectors of whole pictures from which on two count as equal.
    """

    tokens_per_crop: int | None = None
    exclude_near: tuple[Path, ...] = ()
    exclude_threshold: float = 0.95

    def __post_init__(self) -> None:
        CropSettings.__post_init__(self)
        PictureSettings.__post_init__(self)

    def crops(self) -> CropSettings:
        """Return the settings of the rectangles."""
        return CropSettings(**{part.name: getattr(self, part.name) for part in fields(CropSettings)})


@dataclass(frozen=True, kw_only=True)
class OrpBankSummary(PictureSummary):
    """Result of a run; rows are crops.

    Attributes:
        photos: in the bank. index: kind, parameters and measured recall of the index.
    """

    photos: int
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
        settings: of the bank.
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
        encoder = ImageEncoder(clip)
        if settings.tokens_per_crop is not None and not 1 <= settings.tokens_per_crop <= encoder.tokens:
            raise UserError(f"{settings.tokens_per_crop} tokens per crop are impossible", f"Use 1 to {encoder.tokens}")
        kept_out = (
            NearImages(settings.exclude_near, settings.exclude_threshold, encoder) if settings.exclude_near else None
        )
        identity = _identity(clip, encoder, settings, kept_out)
        store = PictureStore(
            out, "orp", identity, part, encoder, settings, CATALOGUE_SCHEMA, ["image_sha256"], settings.crops_per_image
        )
        given = {name: getattr(settings, name) for name in ("shard_rows", "exclude_threshold")}
        given |= {"batch": store.batch, "exclude_near": [str(path) for path in settings.exclude_near]}
        remember_inputs(store.manifest, [str(path) for path in paths], given)
        reader = PhotoReader(
            encoder, settings.crops(), settings.seed, identity["tokens_per_crop"], kept_out is not None, store.known
        )

        def read(quarantine: Quarantine) -> Iterator[Input]:
            for found, photo, crops in executor.read_ahead(find_photos(paths), reader.read, settings.workers):
                quarantine.reads(found.source)
                known_by = photo if isinstance(photo, str) else (photo.sha256,)
                if kept_out and not isinstance(photo, str) and photo.whole is not None and known_by not in store.known:
                    known_by = kept_out.reason(photo.whole) or known_by
                yield Input(found.source, found.key or found.source, known_by, crops, isinstance(found, Photo))

        # Pillow warns about photos; their problems are recorded with the rejected photos.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")
            store.fill(read, total, "photos into the ORP bank", "photos", executor)
        manifest = indexed(out).manifest if part.is_whole else store.manifest
    return OrpBankSummary(
        **store.figures(),
        photos=manifest.rows // settings.crops_per_image,
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
