"""One shard of encoded pictures in the making: pictures in, states out, a batch at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.shards import States, write_shard
from dptr.pipeline.clip.loading import ImageTower
from dptr.pipeline.parts.store_in_making import Place


class ShardInMaking:
    """Collects a fixed number of pictures and encodes them in batches that end with the shard.

    Args:
        tower: encodes.
        place: where the shard comes in its store.
        schema: of the catalogue; ``id`` is filled in here.
        capacity: pictures it takes at most.
        tokens_per_picture: tokens kept of each picture.
        dtype: how states are stored.
        batch: pictures per forward pass.
    """

    def __init__(
        self,
        tower: ImageTower,
        place: Place,
        schema: pa.Schema,
        capacity: int,
        tokens_per_picture: int,
        dtype: StatesDtype,
        batch: int,
    ) -> None:
        self._tower = tower
        self._number, self._first_id = place.number, place.first_id
        self._schema = schema
        self._dtype = dtype
        self._batch = batch
        # Rounded to the stored format at once where that is possible: a shard in memory is then half as large.
        held = np.float16 if dtype == "float16" else np.float32
        self._tokens: NDArray[np.floating] = np.empty((capacity, tokens_per_picture, tower.dim), held)
        self._pooled = np.empty((capacity, tower.dim), np.float32)
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        self._rows: list[dict[str, Any]] = []
        self._encoded = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether it takes no more pictures."""
        return len(self) >= len(self._pooled)

    def add(self, row: dict[str, Any], pixels: NDArray[np.float32], kept: NDArray[np.int64]) -> None:
        """Take a picture.

        Args:
            row: its row of the catalogue.
            pixels: as the tower takes them, shape (3, height, width).
            kept: positions of the tokens to keep, shape (tokens_per_picture,).
        """
        self._rows.append({"id": self._first_id + len(self._rows), **row})
        self._waiting.append((pixels, kept))
        if len(self._waiting) == self._batch:
            self._encode()

    def distinct(self, column: str) -> int:
        """Return how many different values a column of the catalogue has so far."""
        return len({row[column] for row in self._rows})

    def encode_rest(self) -> None:
        """Encode the pictures that wait for a full batch."""
        if self._waiting:
            self._encode()

    def write(self, folder: Path, details: dict[str, Any]) -> Shard:
        """Encode what is left and write the shard; the caller commits it."""
        self.encode_rest()
        rows, count = len(self), self._tokens.shape[1]
        states = States(
            self._tokens[:rows].reshape(rows * count, -1), np.full(rows, count, np.int64), self._pooled[:rows]
        )
        catalogue = pa.Table.from_pylist(self._rows, self._schema)
        return write_shard(folder, self._number, catalogue, states, self._dtype, details)

    def _encode(self) -> None:
        tokens, pooled = self._tower.encode(np.stack([pixels for pixels, _ in self._waiting]))
        kept = np.stack([positions for _, positions in self._waiting])
        rows = slice(self._encoded, self._encoded + len(kept))
        with np.errstate(over="ignore"):
            self._tokens[rows] = np.take_along_axis(tokens, kept[:, :, None], axis=1)
        if not np.isfinite(self._tokens[rows]).all():
            raise UserError(f"the image tower gives states that {self._dtype} cannot hold", "Use --dtype float32")
        self._pooled[rows] = pooled
        self._encoded += len(kept)
        self._waiting.clear()
