"""The ORP bank: crops of natural photos, their image states, and a FAISS index over their pooled vectors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import StatesReader

#: Catalogue columns before ``pooled``, ``shard`` and ``row`` are added.
CATALOGUE_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("image", pa.string()),
        ("image_sha256", pa.string()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("thumbnail", pa.binary()),
    ]
)


class OrpBank:
    """A committed ORP bank, opened read-only; every crop has the same number of tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder, "orp")
        if not self.manifest.shards:
            raise DamagedStore(f"{folder} holds no finished shard", "Run `dptr build-orp-bank` again; it goes on")
        self._reader = StatesReader(folder, self.manifest.shards)

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """Width of one token state."""
        return int(self._reader.file(0).tokens.shape[1])

    @property
    def tokens_per_crop(self) -> int:
        """Tokens stored for each crop."""
        return int(self.manifest.identity["tokens_per_crop"])

    def tokens(self, crops: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return chosen tokens of chosen crops, in the precision that is stored (int8 as float32).

        Args:
            crops: crop row numbers, shape (batch,).
            positions: token positions within each crop, shape (batch, count), below :attr:`tokens_per_crop`.

        Returns:
            shape (batch, count, dim).
        """
        return self._reader.gather_tokens(crops, positions)

    def pooled(self, shard: int) -> NDArray[np.float32]:
        """Return the pooled vectors of one shard's crops, shape (rows, dim)."""
        return self._reader.file(shard).pooled.astype(np.float32)

    def pooled_of(self, crops: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the pooled vectors of chosen crops, shape (batch, dim)."""
        return self._reader.gather_pooled(crops)

    @cached_property
    def pooled_mean(self) -> NDArray[np.float32]:
        """Mean of the pooled vectors, each of length one: (dim,)."""
        return self._reader.mean_direction()

    def release(self) -> None:
        """Drop mapped pages from the process; the next batch reads them again from the page cache."""
        self._reader.release()
