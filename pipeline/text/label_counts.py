"""Rows of raw text -> distinct labels with their counts.

Most items of most corpora are printable ASCII, which normalisation leaves as it is, and most items come again and
again. So Arrow finds the distinct items of a block first, and only those that are not plain go through Python. DuckDB
then aggregates and sorts on disk, within a fixed memory.

Labels are ordered by first occurrence: file by file, line by line, those new in one line by code point. The order
depends on the corpus alone, not on blocks or threads; text that is appended to a corpus leaves it as it was; and the
words that occur first, mostly the frequent ones, are embedded first.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from dptr.cache.text.charset import Charset, LetterCase, fold_case
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import clusters
from dptr.pipeline.choices import Unit
from dptr.pipeline.text.corpus_files import MOST_ITEM_BYTES, TOO_LONG, Reject, Rows

_PLAIN_WORD = "^[!-~]+$"
_PLAIN_LINE = "^[!-~]+( [!-~]+)*$"
#: A label that is too long to be used is kept only as far as the quarantine shows it.
_SHOWN_CHARACTERS = 200


_MEMORY = "256MB"
#: Each thread needs its share of the memory; more threads than this and an aggregation no longer fits.
_MOST_THREADS = 4
_ROWS_BUFFERED = 200_000
_ROWS_REJECTED_AT_ONCE = 10_000
_ROWS_SPLIT_AT_ONCE = 100_000

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

    Whether a label fits the charset and the length is for the caller to judge, once for the whole corpus.
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
    # The kernels want the string type but work on single bytes, so invalid UTF-8 does them no harm.
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
    # Assigned from the back, so that the first occurrence is the one that stays.
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
        """Aggregate what was added; return the number of distinct labels."""
        self._insert()
        self._execute(
            "create table labels as select label, sum(count)::bigint as count, min(place) as place "
            "from seen group by label"
        )
        self._execute("drop table seen")
        return len(self)

    def __len__(self) -> int:
        return self._rows_in("labels")

    def unit_counts(self, max_label_length: int, units: Units) -> Mapping[str, int]:
        """Return how often each unit occurs in the labels that are not too long."""
        if units == "grapheme":
            return self._cluster_counts(max_label_length)
        query = (
            "select character, sum(count)::bigint from ("
            "select unnest(string_split(label, '')) as character, count from labels where length(label) <= ?"
            ") group by character"
        )
        return dict(self._execute(query, [max_label_length]).fetchall())

    def _cluster_counts(self, max_label_length: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for table in self._windows("labels", _ROWS_SPLIT_AT_ONCE):
            for label, count in zip(table["label"].to_pylist(), table["count"].to_pylist(), strict=True):
                found = clusters(label)
                if len(found) <= max_label_length:
                    for cluster in found:
                        counts[cluster] += count
        return counts

    def reject(self, charset: Charset, normalization: Normalization) -> Iterator[tuple[str, int, int]]:
        """Take out the labels that are empty, too long, or have other units; yield (label, file number, line)."""
        unusable, values = "label in (select label from unusable)", list[object]()
        if charset.units == "codepoint":
            allowed = "[" + "".join(f"\\x{{{ord(character):x}}}" for character in charset.characters) + "]+"
            unusable = "length(label) > ? or not regexp_full_match(label, ?)"
            values = [normalization.max_label_length, allowed]
        else:
            self._list_unusable(charset, normalization)
        self._execute(
            f"create table rejected as select label, place from labels where {unusable} order by place, label", values
        )
        self._execute(f"delete from labels where {unusable}", values)
        for table in self._windows("rejected", _ROWS_REJECTED_AT_ONCE):
            for label, place in zip(table["label"].to_pylist(), table["place"].to_pylist(), strict=True):
                yield label, *_split_place(place)
        self._execute("drop table rejected")

    def _list_unusable(self, charset: Charset, normalization: Normalization) -> None:
        """Judge labels one by one: what a cluster is, a pattern cannot say."""
        self._execute("create table unusable (label varchar)")
        for table in self._windows("labels", _ROWS_SPLIT_AT_ONCE):
            labels = [label for label in table["label"].to_pylist() if normalization.reject(label, charset) is not None]
            self._connection.register("found", pa.table({"label": pa.array(labels, pa.string())}))
            self._execute("insert into unusable select label from found")
            self._connection.unregister("found")

    def remove(self, catalogues: Sequence[Path], lower: bool) -> None:
        """Take out the labels in the column ``label`` of Parquet files, with ``lower`` also their lower-case forms."""
        known = "select label from read_parquet($files)"
        if lower:
            known += " union select lower(label) from read_parquet($files)"
        files = {"files": [str(path) for path in catalogues]}
        self._execute(f"delete from labels where label in ({known})", files)
        self._execute("drop table if exists ordered")

    def batches(self, rows: int) -> Iterator[tuple[list[str], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield labels, counts and file numbers, int64 of shape (rows,), in order; the last are fewer."""
        self._execute(
            "create table if not exists ordered as select label, count, place from labels order by place, label"
        )
        for table in self._windows("ordered", rows):
            yield table["label"].to_pylist(), table["count"].to_numpy(), table["place"].to_numpy() >> _LINE_BITS

    def close(self) -> None:
        """Close the database and delete its folder."""
        self._connection.close()
        self._folder.cleanup()

    def _windows(self, table: str, rows: int) -> Iterator[pa.Table]:
        """Yield a table in the order of its creation; each window is a query, so nothing is held between them."""
        for first in range(0, self._rows_in(table), rows):
            query = f"select * from {table} where rowid between {first} and {first + rows - 1} order by rowid"
            with _full_disk_as_user_error():
                window = self._connection.sql(query).to_arrow_table()
            yield window

    def _execute(self, query: str, parameters: object = None) -> duckdb.DuckDBPyConnection:
        with _full_disk_as_user_error():
            return self._connection.execute(query, parameters)

    def _insert(self) -> None:
        if not self._waiting:
            return
        self._connection.register("waiting", pa.concat_tables(self._waiting))
        self._execute("insert into seen select label, count, place from waiting")
        self._connection.unregister("waiting")
        self._waiting.clear()

    def _rows_in(self, table: str) -> int:
        return int(self._execute(f"select count(*) from {table}").fetchall()[0][0])


@contextmanager
def _full_disk_as_user_error() -> Iterator[None]:
    """Say in one line that the disk for temporary files is full or cannot be written, and how to name another."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"counting the corpus needs space in {tempfile.gettempdir()}: {reason}",
            "Free some space, or use a folder on another disk: TMPDIR=FOLDER dptr embed-text …",
        ) from error


def _split_place(place: int) -> tuple[int, int]:
    return place >> _LINE_BITS, place & ((1 << _LINE_BITS) - 1)
