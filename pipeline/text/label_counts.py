"""Rows of raw text -> distinct labels with their counts.

Most items of most corpora are repeated and printable ASCII, which normalisation does not change. So Arrow finds the
distinct items of a block, and only non-ASCII ones go through Python. DuckDB then aggregates and sorts on disk, within a
fixed amount of memory.

Labels are ordered by first occurrence: file by file, line by line, those new in one line by code point. The order
depends only on the corpus, not on blocks or threads, and appending text does not change it. Words that occur first,
mostly the frequent ones, are embedded first.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dptr.cache.choices import Units
from dptr.cache.errors import UserError
from dptr.cache.processors import usable_processors
from dptr.cache.text.charset import LetterCase, fold_case
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import split
from dptr.pipeline.choices import Unit
from dptr.pipeline.text.corpus_files import MOST_ITEM_BYTES, TOO_LONG, Reject, Rows

_PLAIN_WORD = "^[!-~]+$"
_PLAIN_LINE = "^[!-~]+( [!-~]+)*$"
#: Overlong labels are truncated to what the list of rejected inputs shows.
_SHOWN_CHARACTERS = 200


_MEMORY = "256MB"
#: Each thread needs its share of the memory; more threads than this and an aggregation no longer fits.
_MOST_THREADS = 4
_ROWS_BUFFERED = 200_000
_ROWS_AT_ONCE = 100_000

#: A place is a file's number and a line in it as one integer, so that the first place is the smallest.
_LINE_BITS = 40


@dataclass(frozen=True)
class CountedLabels:
    """Labels of a block, nearly distinct (two spellings of one label may stand apart).

    Attributes:
        labels: string array, shape (labels,). counts: occurrences, int64. lines: line of the first one, int64.
        read: items read, rejected ones included. folded: items whose case was changed.
    """

    labels: pa.Array
    counts: NDArray[np.int64]
    lines: NDArray[np.int64]
    read: int
    folded: int


def count_labels(
    rows: Rows,
    unit: Unit,
    normalization: Normalization,
    case: LetterCase | None,
    reject: Reject,
    units: Units = "codepoint",
) -> CountedLabels:
    """Split rows into items and items into normalised labels; undecodable, overlong items and NUL bytes are rejected.

    With ``case`` all labels are folded to it.

    The caller checks charset and length, once for the whole corpus.
    """
    items, lines = _items(rows, unit)
    read = len(items)
    items, lines = _short(items, lines, reject)
    distinct, counts, lines = _distinct(items, lines)
    plain = pc.match_substring_regex(distinct, _PLAIN_LINE if normalization.keep_spaces else _PLAIN_WORD)
    is_plain = plain.to_numpy(zero_copy_only=False)
    shown = max(_SHOWN_CHARACTERS, normalization.most_code_points(units) + 1)

    labels = pc.utf8_slice_codeunits(distinct.filter(plain).cast(pa.string()), 0, shown)
    rest: list[tuple[str, int, int]] = []
    odd = distinct.filter(pc.invert(plain)).to_pylist()
    for item, count, line in zip(odd, counts[~is_plain].tolist(), lines[~is_plain].tolist(), strict=True):
        rest += [(normalization.apply(text), count, line) for text in _texts(item, line, unit, reject)]
    folded = _folded(labels, case)
    other = [fold_case(label, case) for label, _, _ in rest]
    changed = pc.not_equal(labels, folded).to_numpy(zero_copy_only=False)
    changed = np.append(changed, [new != label for new, (label, _, _) in zip(other, rest, strict=True)]).astype(bool)
    counts = np.append(counts[is_plain], np.array([count for _, count, _ in rest], np.int64))
    return CountedLabels(
        pa.concat_arrays([folded, pa.array([label[:shown] for label in other], pa.string())]),
        counts,
        np.append(lines[is_plain], np.array([line for _, _, line in rest], np.int64)),
        read,
        int(counts[changed].sum()),
    )


def _folded(labels: pa.Array, case: LetterCase | None) -> pa.Array:
    """Fold labels that are ASCII alone."""
    return {"lower": pc.ascii_lower, "upper": pc.ascii_upper, None: lambda unchanged: unchanged}[case](labels)


def _items(rows: Rows, unit: Unit) -> tuple[pa.Array, NDArray[np.int64]]:
    """Split at ASCII white space, or trim it; empty items are none. Returns binary items and their lines."""
    # The kernels require the string type but work on bytes, so invalid UTF-8 is harmless.
    texts = rows.texts.view(pa.string())
    lines = rows.lines
    if unit == "word":
        words = pc.ascii_split_whitespace(texts)
        lines = lines[pc.list_parent_indices(words).to_numpy()]
        texts = words.flatten()
    else:
        texts = pc.ascii_trim_whitespace(texts)
    filled = pc.greater(pc.binary_length(texts), 0)
    return texts.filter(filled).view(pa.binary()), lines[filled.to_numpy(zero_copy_only=False)]


def _short(items: pa.Array, lines: NDArray[np.int64], reject: Reject) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the items, and their lines, that are not too long; reject the others."""
    is_short = pc.binary_length(items).to_numpy(zero_copy_only=False) <= MOST_ITEM_BYTES
    if is_short.all():
        return items, lines
    for position in np.flatnonzero(~is_short).tolist():
        start = items[position].as_py()[:_SHOWN_CHARACTERS].decode("utf-8", "backslashreplace")
        reject(int(lines[position]), start, TOO_LONG)
    return items.filter(pa.array(is_short)), lines[is_short]


def _distinct(items: pa.Array, lines: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct items, how often each occurs, and the line where it occurs first."""
    encoded = items.dictionary_encode()
    codes = encoded.indices.to_numpy()
    first = np.empty(len(encoded.dictionary), np.int64)
    # Assigned in reverse, so that the first occurrence remains.
    first[codes[::-1]] = lines[::-1]
    return encoded.dictionary, np.bincount(codes, minlength=len(first)).astype(np.int64), first


def _texts(item: bytes, line: int, unit: Unit, reject: Reject) -> list[str]:
    """Decode an item, dropping a byte-order mark in front, and split it at white space that is not ASCII."""
    try:
        text = item.decode("utf-8-sig")
    except UnicodeDecodeError:
        reject(line, item[:1000].decode("utf-8", "backslashreplace"), "invalid UTF-8")
        return []
    if "\0" in text:
        reject(line, text[:1000], "NUL byte")
        return []
    words = text.split()
    return words if unit == "word" or not words else [text]


class DistinctLabels:
    """Counts labels in a DuckDB file of its own, in a new folder where temporary files go (``TMPDIR``)."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="dptr-")
        folder = Path(self._folder.name)
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY,
            "threads": min(_MOST_THREADS, usable_processors()),
            "temp_directory": str(folder / "spilled"),
        }
        with _full_disk_as_user_error():
            self._connection = duckdb.connect(str(folder / "labels.duckdb"), config=settings)
        self._execute("create table seen (label varchar, count bigint, place bigint)")
        self._waiting: list[pa.Table] = []

    def add(self, labels: pa.Array, counts: NDArray[np.int64], source: int, lines: NDArray[np.int64]) -> None:
        """Count ``labels`` (string array) of file number ``source``; counts and lines have shape (labels,)."""
        places = (source << _LINE_BITS) | lines
        self._waiting.append(pa.table({"label": labels, "count": counts, "place": places}))
        if sum(len(table) for table in self._waiting) >= _ROWS_BUFFERED:
            self._insert()

    def count_up(self) -> int:
        """Aggregate what was added, in order; return the number of distinct labels."""
        self._insert()
        self._execute(
            "create table labels as select label, sum(count)::bigint as count, min(place) as place "
            "from seen group by label order by place, label"
        )
        self._execute("drop table seen")
        return len(self)

    def __len__(self) -> int:
        return self._number("select count(*) from labels")

    def unit_counts(self, max_label_length: int, units: Units) -> Mapping[str, int]:
        """Return how often each unit occurs in the labels that are not too long."""
        counts: Counter[str] = Counter()
        for table in self._windows(_ROWS_AT_ONCE):
            for label, count in zip(table["label"].to_pylist(), table["count"].to_pylist(), strict=True):
                found = split(label, units)
                if len(found) <= max_label_length:
                    for unit in found:
                        counts[unit] += count
        return counts

    def reject(self, why_unusable: Callable[[str], str | None]) -> Iterator[tuple[str, int, int, str]]:
        """Remove rejected labels; yield (label, file number, line, reason)."""
        self._execute("create table unusable (label varchar)")
        for table in self._windows(_ROWS_AT_ONCE):
            unusable: list[str] = []
            for label, place in zip(table["label"].to_pylist(), table["place"].to_pylist(), strict=True):
                if reason := why_unusable(label):
                    unusable.append(label)
                    yield label, place >> _LINE_BITS, place & ((1 << _LINE_BITS) - 1), reason
            self._append("unusable", pa.table({"label": pa.array(unusable, pa.string())}))
        self._execute("delete from labels where label in (select label from unusable)")

    def remove(self, catalogues: Sequence[Path], lower: bool) -> None:
        """Take out the labels in the column ``label`` of Parquet files, with ``lower`` also their lower-case forms."""
        known = "select label from read_parquet($files)"
        if lower:
            known += " union select lower(label) from read_parquet($files)"
        files = {"files": [str(path) for path in catalogues]}
        self._execute(f"delete from labels where label in ({known})", files)

    def batches(self, rows: int) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield labels, counts and file numbers, int64 of shape (at most rows,), in order."""
        for table in self._windows(rows):
            yield table["label"].to_pylist(), table["count"].to_numpy(), table["place"].to_numpy() >> _LINE_BITS

    def close(self) -> None:
        """Close the database and delete its folder."""
        self._connection.close()
        self._folder.cleanup()

    def _windows(self, rows: int) -> Iterator[pa.Table]:
        """Yield the labels in order; each window is a query, so nothing is held between them."""
        for first in range(0, self._number("select coalesce(max(rowid) + 1, 0) from labels"), rows):
            query = f"select * from labels where rowid between {first} and {first + rows - 1} order by rowid"
            with _full_disk_as_user_error():
                window = self._connection.sql(query).to_arrow_table()
            if len(window):
                yield window

    def _execute(self, query: str, parameters: object = None) -> duckdb.DuckDBPyConnection:
        with _full_disk_as_user_error():
            return self._connection.execute(query, parameters)

    def _insert(self) -> None:
        if self._waiting:
            self._append("seen", pa.concat_tables(self._waiting))
            self._waiting.clear()

    def _append(self, name: str, rows: pa.Table) -> None:
        self._connection.register("rows", rows)
        self._execute(f"insert into {name} select * from rows")
        self._connection.unregister("rows")

    def _number(self, query: str) -> int:
        return int(self._execute(query).fetchall()[0][0])


@contextmanager
def _full_disk_as_user_error() -> Iterator[None]:
    """Turn errors of the disk for temporary files into one line with the fix."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"counting the corpus needs space in {tempfile.gettempdir()}: {reason}",
            "Free some space, or use a folder on another disk: TMPDIR=FOLDER dptr embed-text …",
        ) from error
