"""Shards of a word-crop store made again from the labelled crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dptr.cache.charset import Charset
from dptr.cache.normalization import Normalization
from dptr.cache.stores.word_crops import CATALOGUE_SCHEMA
from dptr.pipeline.clip.image_shards import ShardInMaking
from dptr.pipeline.clip.loading import PICTURES_PER_BATCH, ImageEncoder, load_clip
from dptr.pipeline.read_ahead import read_ahead
from dptr.pipeline.repair.losses import Losses
from dptr.pipeline.word_crops.crop_reader import CropReader, ReadCrop, find_crops
from dptr.pipeline.word_crops.embed_crops import row_of

_Crop = tuple[str, str]  # SHA-256 of the picture, label


def rebuild(losses: Losses, scratch: Path) -> None:
    """Write the shards that are lost into ``scratch``, under their names.

    Raises:
        UserError: the crops are gone. DamagedStore: the CLIP is another.
    """
    identity = losses.manifest.identity
    inputs = losses.inputs()
    clip = load_clip(identity["encoder"], identity["precision"], "cpu")
    losses.manifest.require_equal(losses.folder, {"image_weights": clip.image_weights})
    tower = ImageEncoder(clip)
    kept = np.arange(tower.class_tokens, tower.tokens)
    elsewhere = {crop for path in losses.whole_catalogues for crop in _crops(path)}
    wanted = {number: _wanted(losses, number) for number, _ in losses.shards}
    elsewhere -= {crop for crops in wanted.values() for crop in crops or ()}
    reader = CropReader(
        tower,
        Charset.from_text(identity["charset"]),
        Normalization(**identity["normalization"]),
        identity["views"],
        identity["augmentation"],
        identity["seed"],
        elsewhere,
    )
    batch = losses.setting("batch", PICTURES_PER_BATCH)
    making = {
        number: ShardInMaking(
            tower, losses.place(number), CATALOGUE_SCHEMA, shard.rows, len(kept), identity["dtype"], batch
        )
        for number, shard in losses.shards
    }
    paths = [Path(path) for entry in inputs for path in entry["paths"]]
    for found, crop in read_ahead(find_crops(paths), reader.read, 1):
        if isinstance(crop, ReadCrop) and (which := (crop.image_sha256, crop.label)) not in elsewhere:
            elsewhere.add(which)
            fitting = [n for n, shard in making.items() if not shard.full and which in (wanted[n] or {which})]
            fitting.sort(key=lambda number: wanted[number] is None)
            for view, pixels in enumerate(crop.views if fitting else ()):
                making[fitting[0]].add(row_of(found, crop, view), pixels, kept)
    for shard in making.values():
        if len(shard):
            shard.write(scratch, {})


def _wanted(losses: Losses, number: int) -> set[_Crop] | None:
    """Return the crops of a shard; None where its catalogue is lost."""
    name = losses.manifest.shards[number].catalogue
    return None if name in losses.files else _crops(losses.folder / name)


def _crops(catalogue: Path) -> set[_Crop]:
    table = pq.read_table(catalogue, columns=["image_sha256", "label"])
    return set(zip(table["image_sha256"].to_pylist(), table["label"].to_pylist(), strict=True))
