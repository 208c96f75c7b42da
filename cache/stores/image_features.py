"""The image-feature store: CLIP image tokens of labelled crops and their augmented copies.

A crop's copies are consecutive, equally many of each crop: copy ``v`` of crop ``c`` is row ``c * copies + v``.
Copy 0 is undistorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.stores.shards import EmbeddingsStore, StoredTokens, checked_rows
from dptr.cache.text.charset import Charset

#: Catalogue columns before ``pooled``, ``shard`` and ``row`` are added.
CATALOGUE_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("label", pa.string()),
        ("view", pa.int16()),
        ("source", pa.string()),  # the data set
        ("key", pa.string()),  # the crop's key in the data set
        ("image_sha256", pa.string()),
    ]
)


class WordCropStore(EmbeddingsStore):
    """A committed image-feature store, opened read-only. Its unit is the crop, not the row."""

    KIND = "image_features"
    MADE_BY = "dptr embed-crops"
    VIEW = "image_features"

    def __len__(self) -> int:
        return self.manifest.rows // self.copies

    @property
    def copies(self) -> int:
        """Augmented copies of each crop."""
        return self._required("copies", int)

    @property
    def tokens_per_crop(self) -> int:
        """Tokens of each copy."""
        return self._required("tokens_per_crop", int)

    @cached_property
    def charset(self) -> Charset:
        """The charset of all labels."""
        return Charset.from_text(self._required("charset", str))

    def crops(self) -> Iterator[tuple[str, str, str]]:
        """Yield label, source and key of each crop."""
        return self._of_crops("label", "source", "key")  # type: ignore[return-value]  # three columns

    def image_hashes(self) -> Iterator[bytes]:
        """Yield the SHA-256 of each crop's encoded picture, 32 bytes."""
        return (bytes.fromhex(sha256) for (sha256,) in self._of_crops("image_sha256"))

    def _of_crops(self, *columns: str) -> Iterator[tuple[str, ...]]:
        for path in self.manifest.catalogues(self.folder):
            # A shard holds all copies of its crops.
            whole = pq.read_table(path, columns=list(columns))
            chosen = whole.take(pa.array(np.arange(0, len(whole), self.copies)))
            yield from zip(*(column.to_pylist() for column in chosen.columns), strict=True)

    def tokens(self, crops: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return tokens as :meth:`stored_tokens` does, shape (batch, tokens, dim), with int8 converted to float32."""
        return self.stored_tokens(crops, views).floating()

    def stored_tokens(self, crops: NDArray[np.int64], views: NDArray[np.int64]) -> StoredTokens:
        """Return the tokens of crops and copies, both of shape (batch,), in the stored precision.

        Returns:
            shape (batch, tokens, dim).

        Raises:
            UserError: there is no such crop or copy, or the shapes differ.
        """
        rows = self._rows_of(crops, views)
        positions = np.broadcast_to(np.arange(self.tokens_per_crop), (len(rows), self.tokens_per_crop))
        return self._reader.gather_tokens(rows, positions)

    def pooled(self, crops: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the pooled vectors of crops and copies, both of shape (batch,): (batch, pooled_dim)."""
        return self.pooled_of(self._rows_of(crops, views))

    def _rows_of(self, crops: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        crops, views = checked_rows(crops, len(self), "crop"), checked_rows(views, self.copies, "view")
        if crops.shape != views.shape:
            raise UserError(f"{crops.shape} crops in {views.shape} copies", "Give one copy for each crop")
        return crops * self.copies + views
