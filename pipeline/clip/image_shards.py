"""The shards of a store of pictures, each made of groups of pictures that are never parted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.stores.manifest import Shard
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.image_shard import ShardInMaking
from dptr.pipeline.clip.loading import ImageTower, load_clip
from dptr.pipeline.parts.cluster import device_of_worker, fetched
from dptr.pipeline.parts.executors import Work, Worker
from dptr.pipeline.parts.store_in_making import Place, ShardToMake


@dataclass(frozen=True)
class Picture:
    """One picture for a store.

    Attributes:
        row: its row of the catalogue, but for the id.
        pixels: as the tower takes them, shape (3, height, width).
        kept: positions of the tokens to keep, shape (tokens,).
    """

    row: dict[str, Any]
    pixels: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True)
class ShardForm:
    """What all shards of a store have in common.

    Attributes:
        schema: of the catalogue. rows: pictures of a full shard. tokens: kept of each picture. dtype: of the states.
        batch: pictures of a forward pass. counted: a detail of each shard, by the column whose values it counts.
    """

    schema: pa.Schema
    rows: int
    tokens: int
    dtype: StatesDtype
    batch: int
    counted: tuple[str, str] | None = None

    def begin(self, tower: ImageTower, place: Place) -> ShardInMaking:
        """Return an empty shard."""
        return ShardInMaking(tower, place, self.schema, self.rows, self.tokens, self.dtype, self.batch)

    def details(self, shard: ShardInMaking) -> dict[str, Any]:
        """Return what the manifest says about a shard."""
        return {} if self.counted is None else {self.counted[0]: shard.distinct(self.counted[1])}


def shard_worker(folder: Path, tower: ImageTower, clip: str, precision: Precision, form: ShardForm) -> Worker[Shard]:
    """Return what makes shards of groups of pictures in ``folder``, with ``tower`` in this process."""
    return Worker(_work_of(folder, tower, form), _make_work, (folder.absolute(), clip, precision, form))


def _make_work(folder: Path, clip: str, precision: Precision, form: ShardForm) -> Work[Shard]:
    return _work_of(folder, ImageTower(load_clip(clip, precision, device_of_worker())), form)


def _work_of(folder: Path, tower: ImageTower, form: ShardForm) -> Work[Shard]:
    def encode(to_make: ShardToMake) -> Callable[[], Shard]:
        shard = form.begin(tower, to_make.place)
        for pictures in to_make.payloads:
            for picture in fetched(pictures):
                shard.add(picture.row, picture.pixels, picture.kept)
        shard.encode_rest()
        return lambda: shard.write(folder, form.details(shard))

    return encode
