"""Base of prompt stores, ORP banks and image-feature stores: a manifest, and shards of token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.stores.checksummed import RESTORE
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.stores.shards import EmbeddingsReader, checked_rows

if TYPE_CHECKING:
    import duckdb

Part = TypeVar("Part", int, str)


class EmbeddingsStore:
    """A committed store, opened read-only; it is pickled as its path.

    Opening reads only the manifest; other files are read on first use, embeddings by memory map.

    Attributes:
        KIND: which kind of store. MADE_BY: the command that writes such a store. VIEW: its name in ``dptr sql``.
    """

    KIND: ClassVar[StoreKind]
    MADE_BY: ClassVar[str]
    VIEW: ClassVar[str]

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder = Path(folder)
        self.manifest = Manifest.load(folder, self.KIND)
        if not self.manifest.shards:
            raise DamagedStore(f"{folder} holds no finished shard", f"Rerun `{self.MADE_BY}`; it resumes")
        self._reader = EmbeddingsReader(folder, self.manifest.shards)

    def __getstate__(self) -> dict[str, Any]:
        # Caches are not pickled.
        return {name: self.__dict__[name] for name in ("folder", "manifest", "_reader")}

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        encoder = self.manifest.identity.get("encoder")
        return f"{type(self).__name__}({str(self.folder)!r}, rows={len(self):,}, dim={self.dim}, encoder={encoder!r})"

    def catalogue(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the catalogue as an Arrow table, rows in order of the embeddings; all columns by default."""
        rows = self._dataset()
        unknown = [name for name in columns or () if name not in rows.schema.names]
        if unknown:
            raise UserError(f"{self.folder} has no column {unknown[0]}", f"There are {', '.join(rows.schema.names)}")
        return rows.to_table(columns and list(columns))

    def pooled_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the pooled vectors of chosen rows, shape (batch,), as float32 of shape (batch, pooled_dim).

        ``torch.from_numpy`` takes the arrays of all methods without a copy.
        """
        return self._reader.gather_pooled(self._batch(rows))

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a caller's row numbers after checking them."""
        return checked_rows(rows, self.manifest.rows)

    def _batch(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return row numbers as :meth:`_rows` does; their shape must be (batch,)."""
        checked = self._rows(rows)
        if checked.ndim != 1:
            raise UserError(f"rows of shape {checked.shape}", "Give them in one dimension")
        return checked

    def require_finite(self, rows: NDArray[np.int64]) -> None:
        """Raise :class:`DamagedStore` where embeddings or pooled vectors of ``rows``, (rows,), hold NaN or infinity."""
        for row in rows.tolist():
            embeddings = self._reader.gather(np.array([row]))
            if not (np.isfinite(embeddings.tokens).all() and np.isfinite(embeddings.pooled).all()):
                shards, within = self._reader.locate(np.array([row]))
                name = self.manifest.shards[int(shards[0])].embeddings
                raise DamagedStore(
                    f"row {within[0]} of {self.folder / name} holds NaN or infinity",
                    f"Run `{self.MADE_BY}` again into another folder, with --precision fp32",
                )

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """Return a read-only DuckDB connection with this store's view; see ``dptr sql``."""
        from dptr.cache.sql.views import connect_to

        return connect_to(self.VIEW, self._dataset())

    def _told(self, name: str, kind: type[Part]) -> Part:
        """Return a required part of the store's identity."""
        part = self.manifest.identity.get(name)
        if not isinstance(part, kind):
            problem = f"has no {name}" if part is None else f"has a {name} of another type"
            raise DamagedStore(f"{self.folder / MANIFEST_FILE} {problem}", RESTORE)
        return part

    def _dataset(self) -> ds.Dataset:
        files = [str((self.folder / f"{shard.name}.parquet").absolute()) for shard in self.manifest.shards]
        return ds.dataset(files, format="parquet")

    @property
    def dim(self) -> int:
        """Width of a token embedding."""
        return int(self._reader.file(0).tokens.shape[1])

    @cached_property
    def pooled_mean(self) -> NDArray[np.float32]:
        """Mean of the pooled vectors, each of length one: (pooled_dim,)."""
        return self._reader.mean_direction()

    def check_embeddings(self) -> None:
        """Start to compare all embeddings with their hashes in the background: :mod:`dptr.cache.stores.checks`."""
        self._reader.check_all()

    def release(self) -> None:
        """Drop mapped pages from the process; the next batch reads them again from the page cache."""
        self._reader.release()
