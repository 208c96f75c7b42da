"""The ORP bank: crops of natural photos, their image embeddings, and a FAISS index over their pooled vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.stores.shards import EmbeddingsStore, StoredTokens, checked_rows

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


class OrpBank(EmbeddingsStore):
    """A committed ORP bank, opened read-only; every crop has the same number of tokens."""

    KIND = "orp"
    MADE_BY = "dptr build-orp-bank"
    VIEW = "crops"

    @property
    def tokens_per_crop(self) -> int:
        """Tokens stored for each crop."""
        return self._required("tokens_per_crop", int)

    def tokens(self, crops: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return tokens as :meth:`stored_tokens` does, shape (batch, count, dim), with int8 converted to float32."""
        return self.stored_tokens(crops, positions).floating()

    def stored_tokens(self, crops: NDArray[np.int64], positions: NDArray[np.int64]) -> StoredTokens:
        """Return chosen tokens of chosen crops, in the stored precision.

        Args:
            crops: crop row numbers, shape (batch,).
            positions: token positions within each crop, shape (batch, count), below :attr:`tokens_per_crop`.

        Returns:
            shape (batch, count, dim).

        Raises:
            UserError: there is no such crop or token, or the shapes do not fit.
        """
        crops = self._batch(crops)
        positions = checked_rows(positions, self.tokens_per_crop, "token")
        if positions.ndim != 2 or len(positions) != len(crops):
            raise UserError(f"tokens of shape {positions.shape} for {len(crops)} crops", "Give some for each crop")
        return self._reader.gather_tokens(crops, positions)

    def pooled(self, shard: int) -> NDArray[np.float32]:
        """Return the pooled vectors of one shard's crops, shape (rows, dim)."""
        (number,) = checked_rows([shard], len(self.manifest.shards), "shard").tolist()
        return self._reader.file(number).pooled.astype(np.float32)
