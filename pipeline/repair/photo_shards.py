"""Shards of an ORP bank made again from their photos."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from dptr.cache.stores.orp import CATALOGUE_SCHEMA
from dptr.pipeline.clip.image_shards import ShardInMaking
from dptr.pipeline.clip.loading import PICTURES_PER_BATCH, ImageEncoder, load_clip
from dptr.pipeline.photos.build_orp_bank import row_of
from dptr.pipeline.photos.crops import CropSettings
from dptr.pipeline.photos.photo_files import find_photos
from dptr.pipeline.photos.reader import CutPhoto, PhotoReader
from dptr.pipeline.photos.seen_photos import SeenPhotos
from dptr.pipeline.read_ahead import read_ahead
from dptr.pipeline.repair.losses import Losses


def rebuild(losses: Losses, scratch: Path) -> None:
    """Write the shards that are lost into ``scratch``, under their names.

    Raises:
        UserError: the photos are gone. DamagedStore: the CLIP is another.
    """
    identity = losses.manifest.identity
    inputs = losses.inputs()
    clip = load_clip(identity["encoder"], identity["precision"], "cpu")
    losses.manifest.require_equal(losses.folder, {"weights": clip.identity()["weights"]})
    tower, kept = ImageEncoder(clip), int(identity["tokens_per_crop"])
    elsewhere = {photo for path in losses.whole_catalogues for photo in _photos(path)}
    wanted = {number: _wanted(losses, number) for number, _ in losses.shards}
    elsewhere -= {photo for photos in wanted.values() for photo in photos or ()}
    crops = CropSettings(**identity["crops"])
    nothing = SeenPhotos(scratch)
    reader = PhotoReader(tower, crops, identity["seed"], kept, False, elsewhere, nothing, True)
    batch = losses.setting("batch", PICTURES_PER_BATCH)
    making = {
        number: ShardInMaking(tower, losses.place(number), CATALOGUE_SCHEMA, shard.rows, kept, identity["dtype"], batch)
        for number, shard in losses.shards
    }
    paths = [Path(path) for entry in inputs for path in entry["paths"]]
    for _, photo in read_ahead(find_photos(paths), reader.read, 1):
        if isinstance(photo, CutPhoto) and photo.sha256 not in elsewhere:
            elsewhere.add(photo.sha256)
            # One whose catalogue is lost takes what no other one has, in order.
            fitting = [
                n for n, shard in making.items() if not shard.full and photo.sha256 in (wanted[n] or {photo.sha256})
            ]
            fitting.sort(key=lambda number: wanted[number] is None)
            for crop in photo.crops if fitting else ():
                making[fitting[0]].add(row_of(photo, crop), crop.pixels, crop.tokens)
    for shard in making.values():
        if len(shard):
            shard.write(scratch, {})


def _wanted(losses: Losses, number: int) -> set[str] | None:
    """Return the photos of a shard by their SHA-256; None where its catalogue is lost."""
    name = losses.manifest.shards[number].catalogue
    return None if name in losses.files else _photos(losses.folder / name)


def _photos(catalogue: Path) -> set[str]:
    return set(pq.read_table(catalogue, columns=["image_sha256"]).column(0).to_pylist())
