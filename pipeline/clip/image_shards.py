"""The shards of a store of pictures, filled one after the other with groups of pictures that are never parted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.stores.shard_record import Shard
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.image_shard import ShardInMaking
from dptr.pipeline.clip.loading import ImageTower, load_clip
from dptr.pipeline.parts.cluster import Crew, device_of_worker, fetched
from dptr.pipeline.parts.store_in_making import Place, StoreInMaking


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


class ImageShards:
    """Fills the shards of a store that are to be made; of the others it counts the pictures."""

    def __init__(self, making: StoreInMaking, tower: ImageTower, form: ShardForm) -> None:
        self._making, self._tower, self._form = making, tower, form
        self._shard: ShardInMaking | None = None
        self._rows = 0

    def add(self, pictures: Sequence[Picture]) -> None:
        """Take pictures that belong together; a shard that is full with them is written and committed."""
        form = self._form
        if self._rows == 0 and self._making.wants_next:
            self._shard = form.begin(self._tower, self._making.place)
        self._rows += len(pictures)
        if self._shard is not None:
            for picture in pictures:
                self._shard.add(picture.row, picture.pixels, picture.kept)
        if self._rows >= form.rows:
            self.commit()

    def commit(self) -> None:
        """Write and commit what was added since the last shard, if anything was."""
        if self._shard is not None:
            self._making.commit(self._shard.write(self._making.folder, self._form.details(self._shard)))
        if self._rows:
            self._making.pass_on(self._rows)
        self._shard, self._rows = None, 0


class ImageShardsOnCluster:
    """The same, made by workers of a cluster, in which the pictures stay until then."""

    def __init__(self, making: StoreInMaking, crew: Crew[tuple[Place, list[Any]], Shard], form: ShardForm) -> None:
        self._making, self._crew, self._form = making, crew, form
        self._groups: list[Any] = []
        self._rows = 0

    def add(self, pictures: Any, count: int) -> None:
        """Take the reference of ``count`` pictures that belong together."""
        self._groups.append(pictures)
        self._rows += count
        if self._rows >= self._form.rows:
            self._hand_out()

    def finish(self) -> None:
        """Commit all that was added."""
        if self._rows:
            self._hand_out()
        for shard in self._crew.finish():
            self._making.commit(shard)

    def _hand_out(self) -> None:
        wanted, place = self._making.wants_next, self._making.pass_on(self._rows)
        for shard in self._crew.give((place, self._groups)) if wanted else ():
            self._making.commit(shard)
        self._groups, self._rows = [], 0


def shard_maker(
    folder: Path, clip: str, precision: Precision, form: ShardForm
) -> Callable[[tuple[Place, list[Any]]], Shard]:
    """Return what makes a shard in a worker."""
    tower = ImageTower(load_clip(clip, precision, device_of_worker()))

    def make(work: tuple[Place, list[Any]]) -> Shard:
        place, groups = work
        shard = form.begin(tower, place)
        for pictures in groups:
            for picture in fetched(pictures):
                shard.add(picture.row, picture.pixels, picture.kept)
        return shard.write(folder, form.details(shard))

    return make
