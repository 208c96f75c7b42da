"""Labelled crops as an Arrow table: a crop is some bytes of it, and an object only while it is used."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import xxhash
from numpy.typing import NDArray

from dptr.cache.crops.form import Place
from dptr.cache.row_set import EveryRow
from dptr.cache.stores.files import atomic_path, xxh3_of

#: Text is binary: names of files and labels may hold single surrogates, which are no UTF-8. Size -1: no place.
SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # number of the source
        ("key", pa.binary()),
        ("label", pa.binary()),
        ("offset", pa.int64()),  # of the picture in the source's file, in bytes
        ("size", pa.int64()),
    ]
)
_BATCH = 1 << 16
_NO_PLACE = Place(0, -1)
_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled crop: source, key and label, the number of its data set, and where in its file the picture is."""

    source: str
    key: str
    label: str
    data_set: int = 0
    place: Place | None = None


class Rows(Protocol):
    """Row numbers by position: an array, or one of :mod:`dptr.cache.row_set`."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]: ...


def positions_of(rows: Rows | Sequence[int]) -> NDArray[np.int64]:
    """Return row numbers as an array, shape (rows,)."""
    return np.array(rows, np.int64) if isinstance(rows, Sequence) else rows[np.arange(len(rows))]


@dataclass
class CropTable:
    """The crops of one data set.

    Attributes:
        table: of :data:`SCHEMA`. sources: their names, by number.
        file: where the table is mapped from, and goes to other processes by; None for one in memory.
    """

    table: pa.Table
    sources: list[str]
    file: Path | None = None

    @classmethod
    def of(cls, crops: Iterable[tuple[int, str, str, Place | None]], sources: list[str]) -> CropTable:
        """Make a table of each crop's number of its source, key, label and place."""
        batches: list[pa.RecordBatch] = []
        crops = iter(crops)
        while some := list(islice(crops, _BATCH)):
            numbers, keys, labels, places = zip(*some, strict=True)
            offsets, sizes = zip(*(place or _NO_PLACE for place in places), strict=True)
            columns = [numbers, [*map(bytes_of, keys)], [*map(bytes_of, labels)], offsets, sizes]
            batches.append(pa.RecordBatch.from_arrays([*map(pa.array, columns, SCHEMA.types)], schema=SCHEMA))
        return cls(pa.Table.from_batches(batches, SCHEMA), sources)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is None:
            return CropTable, (self.table, self.sources)
        return _mapped, (self.file, self.sources)


def write_table(file: Path, table: pa.Table) -> None:
    """Write a table as an Arrow IPC file with the XXH3 of its bytes behind it."""
    with atomic_path(file) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        digest = bytes.fromhex(xxh3_of(temporary))
        with temporary.open("ab") as stream:
            stream.write(digest)


def map_table(file: Path, check: bool = True) -> pa.Table | None:
    """Map a table that :func:`write_table` wrote; None where it is not there or, on ``check``, damaged."""
    try:
        with pa.memory_map(str(file)) as mapped:
            content = mapped.read_buffer()
        table, digest = content[:-_HASH_BYTES], content[-_HASH_BYTES:]
        if check and xxhash.xxh3_128(table).digest() != digest.to_pybytes():
            return None
        return ipc.open_file(table).read_all()
    except (OSError, pa.ArrowException):
        return None


def _mapped(file: Path, sources: list[str]) -> CropTable:
    table = map_table(file, check=False)
    if table is None:
        raise OSError(f"{file} was removed while it was in use")
    return CropTable(table, sources, file)


class Samples(Sequence[Sample]):
    """The samples at ``rows`` (None: all) of data sets that follow each other; reads as a list of them would.

    It goes to other processes as the paths of mapped files, and what ``rows`` takes.
    """

    def __init__(self, data_sets: Sequence[CropTable] = (), rows: Rows | None = None) -> None:
        self.data_sets = tuple(data_sets)
        self._table = pa.concat_tables([SCHEMA.empty_table(), *(one.table for one in self.data_sets)])
        self._columns = self._table.columns
        self._first = np.cumsum([0, *(one.table.num_rows for one in self.data_sets)])
        self._rows: Rows = EveryRow(self._table.num_rows) if rows is None else rows
        # A sample is used for its picture, its label and its key in turn.
        self._last: tuple[int, Sample] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.data_sets, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if self._last is None or self._last[0] != index:
            if not -len(self) <= index < len(self):
                raise IndexError(index)
            row = int(self._rows[np.array([index % len(self)])][0])
            self._last = index, self._sample(row, *(column[row].as_py() for column in self._columns))
        return self._last[1]

    def __iter__(self) -> Iterator[Sample]:
        for rows, crops in self.pieces():
            for row, *values in zip(rows.tolist(), *(column.to_pylist() for column in crops.columns), strict=True):
                yield self._sample(row, *values)

    def _sample(self, row: int, source: int, key: bytes, label: bytes, offset: int, size: int) -> Sample:
        data_set = bisect_right(self._first, row) - 1
        place = Place(offset, size) if size >= 0 else None
        return Sample(self.data_sets[data_set].sources[source], text_of(key), text_of(label), data_set, place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Samples({len(self):,} of {len(self.data_sets)} data sets)"

    def only(self, rows: Rows | Sequence[int]) -> Samples:
        """Return the samples at positions ``rows`` of these."""
        if isinstance(self._rows, EveryRow) and not isinstance(rows, Sequence):
            return Samples(self.data_sets, rows)
        return Samples(self.data_sets, self._rows[positions_of(rows)])

    def joined_with(self, others: Sequence[Samples]) -> Samples:
        """Return these samples and those of ``others`` behind them, each with its own data sets."""
        every = [self, *others]
        first = np.cumsum([0, *(int(samples._first[-1]) for samples in every)])
        rows = [at + positions_of(samples._rows) for at, samples in zip(first.tolist(), every, strict=False)]
        return Samples([one for samples in every for one in samples.data_sets], np.concatenate(rows))

    def pieces(self) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield all samples in order, some at a time: their rows, shape (samples,), and a table of :data:`SCHEMA`."""
        for first in range(0, len(self), _BATCH):
            rows = self._rows[np.arange(first, min(first + _BATCH, len(self)))]
            # `take` of a whole table would copy all of it.
            low, high = int(rows.min()), int(rows.max())
            between = self._table.slice(low, high - low + 1)
            yield rows, between if len(between) == len(rows) and (np.diff(rows) > 0).all() else between.take(rows - low)

    def names(self) -> Iterator[bytes]:
        """Yield key, tab and label of each sample."""
        for _, crops in self.pieces():
            yield from pc.binary_join_element_wise(crops["key"], crops["label"], b"\t").to_pylist()

    def data_sets_of(self, positions: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return which data set each of the samples at ``positions`` belongs to, of the same shape."""
        return (np.searchsorted(self._first, self._rows[positions], side="right") - 1).astype(np.int16)

    def every_data_set(self) -> NDArray[np.int16]:
        """Return which data set each sample belongs to, shape (samples,)."""
        return self.data_sets_of(np.arange(len(self)))

    def digest(self, more: Sequence[str] = ()) -> str:
        """Return the SHA-256 of the names of all samples, and of ``more``, a line each."""
        digest, between = hashlib.sha256(), b""
        for line in chain(self.names(), map(str.encode, more)):
            digest.update(between + line)
            between = b"\n"
        return digest.hexdigest()


def bytes_of(text: str) -> bytes:
    """Return a text as tables hold it."""
    return text.encode("utf-8", "surrogatepass")


def text_of(stored: bytes) -> str:
    """Return the text that tables hold as these bytes."""
    return stored.decode("utf-8", "surrogatepass")
