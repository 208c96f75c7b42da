"""Embeddings on disk: uncompressed Arrow IPC files, written once and read by memory map.

A shard is a Parquet catalogue for SQL and an IPC file for training. The IPC file holds one record batch:
``embeddings`` is list<fixed_size_list<dim>>, a list per row; ``pooled`` repeats the row's pooled vector in half
precision, so that a training step touches this one file only. Rows are read as NumPy views: Arrow's own ``take``
copies columns.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.stores import checks
from dptr.cache.stores.checksummed import RESTORE
from dptr.cache.stores.files import TEMPORARY_SUFFIX, atomic_path
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard, StoreKind

if TYPE_CHECKING:
    import duckdb


#: Each token touches at least one page, and the kernel maps neighbouring pages.
_TOKENS_BETWEEN_RELEASES = 1 << 14
_ENOUGH_FOR_A_MEAN = 100_000
_SHARD = "part-"
#: Linux limits a process to 65,530 mappings, and each costs some kilobytes.
_MOST_MAPPED = 8192
_STORED: dict[EmbeddingsDtype, type[np.generic]] = {"float16": np.float16, "float32": np.float32, "int8": np.int8}


@dataclass(frozen=True)
class Embeddings:
    """Ragged token embeddings of some rows.

    Attributes:
        tokens: concatenated tokens of all rows, shape (sum(lengths), dim), float32.
        lengths: tokens of each row, shape (rows,), int64.
        pooled: pooled vector of each row, shape (rows, pooled_dim), float32.
    """

    tokens: NDArray[np.float32]
    lengths: NDArray[np.int64]
    pooled: NDArray[np.float32]

    def at(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the embeddings of ``rows``, shape (any number,), which may repeat."""
        starts = np.cumsum(self.lengths) - self.lengths
        lengths = self.lengths[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Embeddings(self.tokens[np.repeat(starts[rows], lengths) + within], lengths, self.pooled[rows])


@dataclass(frozen=True)
class StoredTokens:
    """Token embeddings in the stored precision.

    Attributes:
        values: shape (.., dim), float16, float32 or int8.
        scale: factor of int8 values, shape (..), float32; None for other dtypes.
    """

    values: NDArray[np.generic]
    scale: NDArray[np.float32] | None = None

    def widened(self) -> NDArray[np.float32]:
        """Return the embeddings as float32, shape (.., dim)."""
        values = self.values.astype(np.float32)
        return values if self.scale is None else values * self.scale[..., None]

    def floating(self) -> NDArray[np.floating]:
        """Return the embeddings, shape (.., dim): in the stored precision, int8 as float32."""
        return self.widened() if self.scale is not None else cast("NDArray[np.floating]", self.values)


@dataclass(frozen=True)
class StoredEmbeddings:
    """:class:`Embeddings` in the stored precision: tokens as :class:`StoredTokens`, pooled as float16."""

    tokens: StoredTokens
    lengths: NDArray[np.int64]
    pooled: NDArray[np.float16]


def checked_rows(rows: Any, count: int, what: str = "row") -> NDArray[np.int64]:
    """Return a caller's indices of ``what`` as an array of the same shape.

    Raises:
        UserError: not whole numbers from 0 to below ``count``.
    """
    numbers = np.asarray(rows)
    advice = f"Give whole numbers from 0 to {count - 1}"
    if numbers.size and numbers.dtype.kind not in "iu":
        raise UserError(f"{what}s of type {numbers.dtype}", advice)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        raise UserError(f"there is no {what} {numbers[(numbers < 0) | (numbers >= count)].flat[0]}", advice)
    return numbers.astype(np.int64)


def shard_name(number: int) -> str:
    """Return the name of a store's shard by its number, counted from 0."""
    return f"{_SHARD}{number:05d}"


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished shards of lost workers, but not the writer's other unfinished files."""
    for left in folder.glob(f".{_SHARD}*{TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)


def write_shard(
    folder: Path,
    number: int,
    catalogue: pa.Table,
    embeddings: Embeddings,
    dtype: EmbeddingsDtype,
    details: dict[str, Any],
) -> Shard:
    """Write ``part-<number>.parquet`` and ``.arrow``; the caller commits the returned shard in the manifest.

    ``catalogue`` lacks ``pooled``, ``shard`` and ``row``, which are added here."""
    name = shard_name(number)
    rows = len(embeddings.lengths)
    catalogue = catalogue.append_column("pooled", _fixed_lists(embeddings.pooled.astype(np.float32)))
    catalogue = catalogue.append_column("shard", pa.array([name] * rows, pa.string()))
    catalogue = catalogue.append_column("row", pa.array(np.arange(rows, dtype=np.int64)))
    with atomic_path(folder / f"{name}.arrow") as path:
        write_embeddings(path, embeddings, dtype)
    with atomic_path(folder / f"{name}.parquet") as path:
        # Byte-stream-split halves the size of float columns but DuckDB cannot read it for every type: plain zstd.
        pq.write_table(catalogue, path, compression="zstd", use_dictionary=["shard", "source"], row_group_size=65536)
    files = {f"{name}{suffix}": FileRecord.of(folder / f"{name}{suffix}") for suffix in (".parquet", ".arrow")}
    return Shard(name, rows, files, details)


def write_embeddings(path: Path, embeddings: Embeddings, dtype: EmbeddingsDtype) -> None:
    """Write one IPC file of embeddings. int8 keeps an absmax scale per token in the column ``scale``."""
    offsets = np.zeros(len(embeddings.lengths) + 1, np.int32)
    np.cumsum(embeddings.lengths, out=offsets[1:])
    columns: dict[str, pa.Array] = {}
    tokens = embeddings.tokens
    if dtype == "int8":
        scale = np.maximum(np.abs(tokens).max(axis=1), 1e-12) / 127.0
        tokens = np.rint(tokens / scale[:, None])
        columns["scale"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(scale.astype(np.float32)))
    stored = np.ascontiguousarray(tokens, dtype=_STORED[dtype])
    columns = {
        "embeddings": pa.ListArray.from_arrays(pa.array(offsets), _fixed_lists(stored)),
        "pooled": _fixed_lists(embeddings.pooled.astype(np.float16)),
        **columns,
    }
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


class MappedFile:
    """A whole file, mapped read-only.

    Python's own ``mmap`` keeps a descriptor for as long as the map lives (until 3.13), Arrow's does not.

    Attributes:
        buffer: the file's bytes, uint8; the map lives as long as a reference to it.
    """

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            self.buffer: pa.Buffer = file.read_buffer()

    def release(self) -> None:
        """Release the pages if the system has ``madvise``; they are read again when touched."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None and self.buffer.size:
            address, size = ctypes.c_void_p(self.buffer.address), ctypes.c_size_t(self.buffer.size)
            ctypes.CDLL(None).madvise(address, size, ctypes.c_int(advice))


class EmbeddingsFile:
    """A memory-mapped IPC file of embeddings, as NumPy views.

    Attributes:
        offsets: shape (rows + 1,), int32; row i's tokens are ``tokens[offsets[i]:offsets[i + 1]]``.
        tokens: shape (all tokens, dim), as stored.
        scale: shape (all tokens,), float32, for int8 files; otherwise None.
        pooled: shape (rows, pooled_dim), float16.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._map = MappedFile(path)
            batch = ipc.open_file(self._map.buffer).get_batch(0)
            batch.validate()
            lists = batch.column("embeddings")
            self.offsets: NDArray[np.int32] = lists.offsets.to_numpy(zero_copy_only=True)
            self.tokens = _matrix(lists.values)
            self.pooled = _matrix(batch.column("pooled"))
            has_scale = "scale" in batch.schema.names
            self.scale: NDArray[np.float32] | None = (
                batch.column("scale").values.to_numpy(zero_copy_only=True) if has_scale else None
            )
            # The hash is compared in the background; wrong offsets would lead out of the map before.
            if self.offsets[0] < 0 or self.offsets[-1] > len(self.tokens) or (np.diff(self.offsets) < 0).any():
                raise ValueError("its offsets lead out of it")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            raise DamagedStore(f"{path} cannot be read ({error})", "See `dptr verify`") from error

    def release(self) -> None:
        """Release this file's pages; they are read again when touched."""
        self._map.release()

    def __reduce__(self) -> tuple[type[EmbeddingsFile], tuple[Path]]:
        return EmbeddingsFile, (self._path,)


class EmbeddingsReader:
    """All shards' embeddings as one table of rows; files are mapped on first use, with a limit on open maps.

    Mapped pages count as this process's memory: they are released regularly, so that it stays constant."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder = folder
        self._shards = list(shards)
        self._first_row = np.cumsum([0] + [shard.rows for shard in shards])
        self._files: dict[int, EmbeddingsFile] = {}
        self._tokens_since_release = 0

    def __getstate__(self) -> dict[str, Any]:
        # Maps are not pickled: another process maps the files that it reads.
        return {**self.__dict__, "_files": {}}

    def file(self, shard: int) -> EmbeddingsFile:
        """Return the mapped file of shard number ``shard``."""
        file = self._files.pop(shard, None)
        if file is None:
            found = self._shards[shard]
            checks.soon(self._folder / found.embeddings, found.files[found.embeddings])
            file = EmbeddingsFile(self._folder / found.embeddings)
            while len(self._files) >= _MOST_MAPPED:
                del self._files[next(iter(self._files))]
        self._files[shard] = file  # most recently used
        return file

    def check_all(self) -> None:
        """Start to compare every shard with its hash, for callers that pass it to workers, which check nothing."""
        for shard in self._shards:
            checks.soon(self._folder / shard.embeddings, shard.files[shard.embeddings])

    def locate(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Split global row numbers into shard numbers and rows within the shard, all of shape (batch,)."""
        shard = np.searchsorted(self._first_row, rows, side="right") - 1
        return shard, rows - self._first_row[shard]

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of each row, shape (batch,)."""
        shards, local = self.locate(rows)
        lengths = np.empty(len(rows), np.int64)
        for shard in np.unique(shards):
            chosen = shards == shard
            offsets = self.file(int(shard)).offsets
            lengths[chosen] = offsets[local[chosen] + 1] - offsets[local[chosen]]
        return lengths

    def gather(self, rows: NDArray[np.int64]) -> Embeddings:
        """Copy the embeddings of ``rows``, shape (batch,), in the order given, as float32."""
        stored = self.gather_stored(rows)
        return Embeddings(stored.tokens.widened(), stored.lengths, stored.pooled.astype(np.float32))

    def gather_stored(self, rows: NDArray[np.int64]) -> StoredEmbeddings:
        """Copy the embeddings of ``rows``, shape (batch,), in the order given, in the stored precision."""
        # Pages: one for a row's tokens, which are contiguous, one for its offset, one for its pooled vector.
        self._release_now_and_then(3 * len(rows))
        lengths = self.lengths(rows)
        ends = np.cumsum(lengths)
        shards, local = self.locate(rows)
        first = self.file(int(shards[0]) if len(rows) else 0)
        values = np.empty((int(lengths.sum()), first.tokens.shape[1]), first.tokens.dtype)
        scale = None if first.scale is None else np.empty(len(values), np.float32)
        pooled = np.empty((len(rows), first.pooled.shape[1]), np.float16)
        for index, (shard, row) in enumerate(zip(shards.tolist(), local.tolist(), strict=True)):
            file = self.file(shard)
            start, stop = int(file.offsets[row]), int(file.offsets[row + 1])
            target = slice(int(ends[index] - lengths[index]), int(ends[index]))
            values[target] = file.tokens[start:stop]
            if scale is not None and file.scale is not None:
                scale[target] = file.scale[start:stop]
            pooled[index] = file.pooled[row]
        return StoredEmbeddings(StoredTokens(values, scale), lengths, pooled)

    def gather_tokens(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> StoredTokens:
        """Copy chosen tokens of chosen rows: ``out[b, t] = embeddings of row rows[b] at token tokens[b, t]``.

        ``rows`` has shape (batch,), ``tokens`` (batch, count); the result is (batch, count, dim), as stored."""
        self._release_now_and_then(tokens.size)
        shards, local = self.locate(rows)
        files = [self.file(shard) for shard in shards.tolist()]
        starts = [int(file.offsets[row]) for file, row in zip(files, local.tolist(), strict=True)]
        positions = tokens + np.array(starts, np.int64)[:, None]
        first = files[0] if files else self.file(0)
        stored = np.empty((*tokens.shape, first.tokens.shape[1]), first.tokens.dtype)
        for index, file in enumerate(files):
            # NumPy copies into ``out`` without a temporary array only in a mode that never raises.
            np.take(file.tokens, positions[index], axis=0, out=stored[index], mode="clip")
        scales = [file.scale[chosen] for file, chosen in zip(files, positions, strict=True) if file.scale is not None]
        scale = np.stack(scales) if scales else None
        return StoredTokens(
            stored, np.empty(tokens.shape, np.float32) if first.scale is not None and not files else scale
        )

    def gather_pooled(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copy the pooled vectors of ``rows``, shape (rows, pooled_dim)."""
        shards, local = self.locate(rows)
        pooled = np.empty((len(rows), self.file(0).pooled.shape[1]), np.float32)
        for index, (shard, row) in enumerate(zip(shards.tolist(), local.tolist(), strict=True)):
            pooled[index] = self.file(shard).pooled[row]
        return pooled

    def mean_direction(self) -> NDArray[np.float32]:
        """Return the mean of the pooled vectors, each of length one, or of an evenly spaced sample: (pooled_dim,)."""
        step = -(-int(self._first_row[-1]) // _ENOUGH_FOR_A_MEAN)
        sample = [self.file(shard).pooled[::step].astype(np.float32) for shard in range(len(self._shards))]
        vectors = np.concatenate(sample)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        mean: NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).mean(axis=0)
        return mean

    def release(self) -> None:
        """Release all mapped pages (see :meth:`EmbeddingsFile.release`)."""
        for file in self._files.values():
            file.release()
        self._tokens_since_release = 0

    def _release_now_and_then(self, tokens: int) -> None:
        self._tokens_since_release += tokens
        if self._tokens_since_release > _TOKENS_BETWEEN_RELEASES:
            self.release()


def _fixed_lists(matrix: NDArray[Any]) -> pa.Array:
    """Wrap a (rows, dim) array as fixed_size_list<dim> without copying it."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def _matrix(array: pa.Array) -> NDArray[Any]:
    """View a fixed_size_list<dim> array as a (rows, dim) NumPy array."""
    width = array.type.list_size
    view: NDArray[Any] = array.values.to_numpy(zero_copy_only=True).reshape(-1, width)
    return view


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
        """Return the catalogue as an Arrow table, rows in order of the embeddings; all columns by default.

        Raises:
            UserError: there is no such column.
        """
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
        from dptr.cache.sql import connect_to

        return connect_to(self.VIEW, self._dataset())

    def _required(self, name: str, kind: type[Part]) -> Part:
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
