"""One shard of an ORP bank in the making: crops in, states out, a batch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.orp import CATALOGUE_SCHEMA
from dptr.cache.stores.shards import States, write_shard
from dptr.pipeline.clip.loading import ImageTower
from dptr.pipeline.photos.reader import Crop, CutPhoto


class ShardInMaking:
    """Collects a fixed number of crops and encodes them in batches that end with the shard.

    Args:
        tower: encodes.
        number: of the shard.
        first_id: id of its first crop.
        capacity: crops it takes at most.
        tokens_per_crop: tokens kept of each crop.
        dtype: how states are stored.
        batch: crops per forward pass.
    """

    def __init__(
        self,
        tower: ImageTower,
        number: int,
        first_id: int,
        capacity: int,
        tokens_per_crop: int,
        dtype: StatesDtype,
        batch: int,
    ) -> None:
        self._tower = tower
        self._number = number
        self._first_id = first_id
        self._dtype = dtype
        self._batch = batch
        # Rounded to the stored format at once where that is possible: a shard in memory is then half as large.
        held = np.float16 if dtype == "float16" else np.float32
        self._tokens: NDArray[np.floating] = np.empty((capacity, tokens_per_crop, tower.dim), held)
        self._pooled = np.empty((capacity, tower.dim), np.float32)
        self._waiting: list[Crop] = []
        self._rows: list[dict[str, object]] = []
        self._encoded = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether it takes no more crops."""
        return len(self) >= len(self._pooled)

    def add(self, photo: CutPhoto) -> None:
        """Take a photo's crops; all of them must fit."""
        for crop in photo.crops:
            self._rows.append(
                {
                    "id": self._first_id + len(self._rows),
                    "image": photo.photo.place,
                    "image_sha256": photo.sha256,
                    **vars(crop.box),
                    "thumbnail": crop.thumbnail,
                }
            )
            self._waiting.append(crop)
            if len(self._waiting) == self._batch:
                self._encode()

    def write(self, folder: Path) -> Shard:
        """Encode what is left and write the shard; the caller commits it."""
        if self._waiting:
            self._encode()
        rows, count = len(self), self._tokens.shape[1]
        states = States(
            self._tokens[:rows].reshape(rows * count, -1), np.full(rows, count, np.int64), self._pooled[:rows]
        )
        catalogue = pa.Table.from_pylist(self._rows, CATALOGUE_SCHEMA)
        photos = len({row["image_sha256"] for row in self._rows})
        return write_shard(folder, self._number, catalogue, states, self._dtype, {"photos": photos})

    def _encode(self) -> None:
        tokens, pooled = self._tower.encode(np.stack([crop.pixels for crop in self._waiting]))
        kept = np.stack([crop.tokens for crop in self._waiting])
        rows = slice(self._encoded, self._encoded + len(kept))
        with np.errstate(over="ignore"):
            self._tokens[rows] = np.take_along_axis(tokens, kept[:, :, None], axis=1)
        if not np.isfinite(self._tokens[rows]).all():
            raise UserError(f"the image tower gives states that {self._dtype} cannot hold", "Use --dtype float32")
        self._pooled[rows] = pooled
        self._encoded += len(kept)
        self._waiting.clear()
