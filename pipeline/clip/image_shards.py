"""The shards of a store of pictures, filled one after the other with groups of pictures that are never parted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.pipeline.clip.image_shard import ShardInMaking
from dptr.pipeline.clip.loading import ImageTower
from dptr.pipeline.parts.store_in_making import StoreInMaking


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
            self._shard = ShardInMaking(
                self._tower, self._making.place, form.schema, form.rows, form.tokens, form.dtype, form.batch
            )
        self._rows += len(pictures)
        if self._shard is not None:
            for picture in pictures:
                self._shard.add(picture.row, picture.pixels, picture.kept)
        if self._rows >= form.rows:
            self.commit()

    def commit(self) -> None:
        """Write and commit what was added since the last shard, if anything was."""
        if self._shard is not None:
            counted = self._form.counted
            details = {} if counted is None else {counted[0]: self._shard.distinct(counted[1])}
            self._making.commit(self._shard.write(self._making.folder, details))
        if self._rows:
            self._making.pass_on(self._rows)
        self._shard, self._rows = None, 0
