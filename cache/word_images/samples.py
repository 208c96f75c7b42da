"""Labelled crops as columns: a crop is some bytes of a mapped file, and an object only while somebody looks at it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dptr.cache.row_set import EveryRow
from dptr.cache.word_images.crop_columns import Columns, text_of
from dptr.cache.word_images.form import Place
from dptr.cache.word_images.kept_file import BLOCK_BITS

_AT_ONCE = 1 << 16
Picked = TypeVar("Picked", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Sample:
    """One word image that can be used: where it is, what it says, and which of the data sets named it belongs to."""

    source: str
    key: str
    label: str
    data_set: int = 0


class Rows(Protocol):
    """Row numbers by position: an array, or one of :mod:`dptr.cache.row_set`."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]: ...


def positions_of(rows: Rows | Sequence[int]) -> NDArray[np.int64]:
    """Return row numbers as an array, shape (rows,)."""
    return np.array(rows, np.int64) if isinstance(rows, Sequence) else rows[np.arange(len(rows))]


@dataclass(frozen=True)
class Piece:
    """Samples that follow each other in one data set, whose rows ``rows``, shape (samples,), they are.

    ``keys`` and ``labels`` are of the same shape, binary: UTF-8, in which single surrogates may stand.
    """

    data_set: int
    rows: NDArray[np.int64]
    keys: pa.Array
    labels: pa.Array


class Samples(Sequence[Sample]):
    """The samples at ``rows`` (None: at all) of data sets that follow each other; reads as a list of them would.

    It goes to other processes as the paths of mapped files, and what ``rows`` takes.
    """

    def __init__(self, data_sets: Sequence[Columns] = (), rows: Rows | None = None) -> None:
        self.data_sets = tuple(data_sets)
        self._first = np.cumsum([0, *map(len, self.data_sets)])
        self._rows: Rows = EveryRow(int(self._first[-1])) if rows is None else rows
        # A sample is asked for its picture, its label and its key in turn.
        self._last: tuple[int | None, tuple[Sample, Place | None]] = (None, (Sample("", "", ""), None))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.look(index)[0]

    def look(self, index: int) -> tuple[Sample, Place | None]:
        """Return sample ``index`` and where in its file its image is; None where its key alone tells."""
        if self._last[0] != index:
            number, row = self._at(index)
            columns = self.data_sets[number]
            sample = Sample(columns.source_of(row), columns.text("key", row), columns.text("label", row), number)
            self._last = index, (sample, columns.place_of(row))
        return self._last[1]

    def __iter__(self) -> Iterator[Sample]:
        for piece in self.pieces():
            columns = self.data_sets[piece.data_set]
            for row, key, label in zip(
                piece.rows.tolist(), piece.keys.to_pylist(), piece.labels.to_pylist(), strict=True
            ):
                yield Sample(columns.source_of(row), text_of(key), text_of(label), piece.data_set)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

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
        return Samples([columns for samples in every for columns in samples.data_sets], np.concatenate(rows))

    def pieces(self) -> Iterator[Piece]:
        """Yield all samples in order, in pieces that cost little memory; mapped pages are dropped behind each."""
        for positions in self._positions():
            rows = self._rows[positions]
            numbers = np.searchsorted(self._first, rows, side="right") - 1
            within = rows - self._first[numbers]
            blocks = within >> BLOCK_BITS
            ends = np.flatnonzero((np.diff(numbers) != 0) | (np.diff(blocks) != 0)) + 1
            for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(rows)], strict=True):
                columns = self.data_sets[number := int(numbers[start])]
                keys, labels = (columns.take(name, within[start:end]) for name in ("key", "label"))
                yield Piece(number, within[start:end], keys, labels)
                columns.release()

    def pick(self, of_rows: NDArray[Picked]) -> NDArray[Picked]:
        """Return what an array holds for the rows that are samples: (rows of all data sets,) to (samples,)."""
        parts = [of_rows[self._rows[positions]] for positions in self._positions()]
        return np.concatenate([of_rows[:0], *parts])

    def data_sets_of(self, positions: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return which data set each of the samples at ``positions`` belongs to, of the same shape."""
        return (np.searchsorted(self._first, self._rows[positions], side="right") - 1).astype(np.int16)

    def every_data_set(self) -> NDArray[np.int16]:
        """Return which data set each sample belongs to, shape (samples,)."""
        return np.concatenate([np.zeros(0, np.int16), *map(self.data_sets_of, self._positions())])

    def digest(self, more: Sequence[str] = ()) -> str:
        """Return the SHA-256 of key, tab and label of each sample, and of ``more``, a line each."""
        digest, between = hashlib.sha256(), b""
        for piece in self.pieces():
            lines = pc.binary_join_element_wise(piece.keys, piece.labels, b"\t")
            digest.update(between + b"\n".join(lines.to_pylist()))
            between = b"\n"
        for line in more:
            digest.update(between + line.encode())
            between = b"\n"
        return digest.hexdigest()

    def _positions(self) -> Iterator[NDArray[np.int64]]:
        return (np.arange(first, min(first + _AT_ONCE, len(self))) for first in range(0, len(self), _AT_ONCE))

    def _at(self, index: int) -> tuple[int, int]:
        """Return data set and row of sample ``index``."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = int(self._rows[np.array([index % len(self)])][0])
        number = bisect_right(self._first, row) - 1
        return number, row - int(self._first[number])
