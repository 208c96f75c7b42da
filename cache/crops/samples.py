"""Labelled crops as an Arrow table, which is made once for a data set and cached.

A crop is an object only while it is used. The table of a large data set is cached in dptr's cache folder and made again
when the data, the charset or the normalisation changes; the time to open it does not depend on the number of crops.
Rejected and altered labels are counted by their reason.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import xxhash
from numpy.typing import NDArray

from dptr.cache.crops.form import Rejected, Source, state_of
from dptr.cache.progress import note
from dptr.cache.rejections import Rejection, Tally
from dptr.cache.remote import cache_folder
from dptr.cache.row_set import EveryRow
from dptr.cache.stores.files import atomic_path, xxh3_of
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

#: Text is binary: file names and labels may hold single surrogates, which UTF-8 cannot encode.
SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # number of the source
        ("key", pa.binary()),
        ("label", pa.binary()),
    ]
)
_BATCH = 1 << 16
_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled crop: source, key and label, and the number of its data set."""

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


@dataclass
class CropTable:
    """The crops of one data set.

    Attributes:
        table: of :data:`SCHEMA`. sources: their names, by number.
        file: the mapped file, by which the table is pickled; None for a table in memory.
    """

    table: pa.Table
    sources: list[str]
    file: Path | None = None

    @classmethod
    def of(cls, crops: Iterable[tuple[int, str, str]], sources: list[str]) -> CropTable:
        """Make a table of each crop's number of its source, key and label."""
        batches: list[pa.RecordBatch] = []
        crops = iter(crops)
        while some := list(islice(crops, _BATCH)):
            numbers, keys, labels = zip(*some, strict=True)
            columns = [numbers, [*map(bytes_of, keys)], [*map(bytes_of, labels)]]
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
    """The samples at ``rows`` (None: all) of concatenated data sets; a sequence.

    It is pickled as the paths of mapped files and ``rows``.
    """

    def __init__(self, data_sets: Sequence[CropTable] = (), rows: Rows | None = None) -> None:
        self.data_sets = tuple(data_sets)
        self._table = pa.concat_tables([SCHEMA.empty_table(), *(one.table for one in self.data_sets)])
        self._columns = self._table.columns
        self._first = np.cumsum([0, *(one.table.num_rows for one in self.data_sets)])
        self._rows: Rows = EveryRow(self._table.num_rows) if rows is None else rows
        # A sample's picture, label and key are used in turn.
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

    def _sample(self, row: int, source: int, key: bytes, label: bytes) -> Sample:
        data_set = bisect_right(self._first, row) - 1
        return Sample(self.data_sets[data_set].sources[source], text_of(key), text_of(label), data_set)

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
        """Return these samples followed by those of ``others``, each with its own data sets."""
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

    def digest(self) -> str:
        """Return the SHA-256 of the names of all samples, a line each."""
        digest, between = hashlib.sha256(), b""
        for line in self.names():
            digest.update(between + line)
            between = b"\n"
        return digest.hexdigest()


def bytes_of(text: str) -> bytes:
    """Return a text as tables hold it."""
    return text.encode("utf-8", "surrogatepass")


def text_of(stored: bytes) -> str:
    """Return the text that tables hold as these bytes."""
    return stored.decode("utf-8", "surrogatepass")


#: Version of cached lists: increase it when labels are read or checked differently.
FORMAT_VERSION = 1
#: Shorter lists are not worth caching.
_FEWEST_KEPT = 1 << 16
_MADE_FROM, _COUNTED = b"made_from", b"counted"


@dataclass(frozen=True)
class Rules:
    """Rules from raw labels to usable labels."""

    charset: Charset
    normalization: Normalization

    def label_of(self, raw: str) -> str | Rejected:
        """Return the label that a recogniser is to predict for ``raw``, or why it is rejected."""
        label = self.charset.fold_case(self.normalization.apply(raw))
        reason = self.normalization.reject(label, self.charset)
        return label if reason is None else Rejected(reason)

    def usable(self, source: str, key: str, raw: str, rejected: Tally, changed: Tally) -> str | None:
        """Return the label of ``raw``, counting changes, or None after counting the rejection."""
        label = self.label_of(raw)
        if isinstance(label, Rejected):
            rejected.add(source, key, raw, label.reason)
            return None
        if label != raw:
            normalized = self.normalization.apply(raw)
            if label != normalized:
                changed.add(source, key, raw, "case folded, as the charset has one case only")
            if normalized != raw:
                only_spaces = normalized == "".join(raw.split())
                changed.add(source, key, raw, "spaces removed" if only_spaces else "normalised")
        return label


def list_crops(path: Path, sources: Sequence[Source], rules: Rules | None) -> tuple[CropTable, Tally, Tally]:
    """List the crops at ``path``, where ``sources`` were found; without ``rules`` labels stay as they are stored.

    Returns:
        The usable crops, what was rejected, and what was altered.

    Raises:
        UserError: a data set is damaged.
    """
    judged_by = "" if rules is None else json.dumps([asdict(rules.charset), asdict(rules.normalization)])
    made_from = _made_from(sources, judged_by)
    name = hashlib.sha256(f"{path.absolute()}\n{judged_by}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    file = cache_folder() / "labelled_crops" / f"{name}.arrow"
    names = [source.name for source in sources]
    if made_from and (kept := _kept(file, made_from, names)):
        return kept
    rejected, changed = Tally(), Tally()
    crops = CropTable.of(_usable(sources, rules, rejected, changed), names)
    if made_from and crops.table.num_rows >= _FEWEST_KEPT:
        counted = json.dumps([_stored(tally, names) for tally in (rejected, changed)])
        table = crops.table.replace_schema_metadata({_MADE_FROM: made_from, _COUNTED: counted})
        try:
            write_table(file, table)
        except OSError as error:
            note(f"the label table of {path} is not saved in {file}: {error.strerror or error}")
        else:
            note(f"label table saved in {file}")
            return _kept(file, made_from, names) or (crops, rejected, changed)
    return crops, rejected, changed


def _usable(
    sources: Sequence[Source], rules: Rules | None, rejected: Tally, changed: Tally
) -> Iterator[tuple[int, str, str]]:
    for number, source in enumerate(sources):
        name = source.name
        for key, raw in source.labels():
            if isinstance(raw, Rejected):
                rejected.add(name, key, "", raw.reason)
            elif rules is None:
                yield number, key, raw
            elif (label := rules.usable(name, key, raw, rejected, changed)) is not None:
                yield number, key, label


def _made_from(sources: Sequence[Source], judged_by: str) -> str:
    """Return a digest of what a list depends on; None if a source does not name the file of its labels."""
    states = []
    for source in sources:
        name = Path(source.name)
        file = next((one for one in (name, name / "data.mdb") if one.is_file()), None)
        if file is None:
            return ""
        states.append(state_of(file.absolute()))
    text = json.dumps([FORMAT_VERSION, states, judged_by, unicodedata.unidata_version])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(file: Path, made_from: str, names: list[str]) -> tuple[CropTable, Tally, Tally] | None:
    """Return a cached list; None if it is missing, damaged or of other data."""
    table = map_table(file)
    if table is None or (table.schema.metadata or {}).get(_MADE_FROM) != made_from.encode():
        return None
    rejected, changed = (_restored(counted, names) for counted in json.loads(table.schema.metadata[_COUNTED]))
    return CropTable(table.replace_schema_metadata(), names, file), rejected, changed


def _stored(tally: Tally, names: list[str]) -> list[Any]:
    """Return a tally for JSON; sources by number, because the next command may spell their path differently."""
    numbers = {name: number for number, name in enumerate(names)}
    return [tally.counts, [[numbers[one.source], one.key, one.label, one.reason] for one in tally.listed]]


def _restored(stored: list[Any], names: list[str]) -> Tally:
    counts, listed = stored
    return Tally(Counter(counts), [Rejection(names[number], *rest) for number, *rest in listed])
