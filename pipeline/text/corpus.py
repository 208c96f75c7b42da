"""A corpus: raw text in any number of files -> distinct labels with counts, in a deterministic order.

The whole corpus is read and counted before the first label is returned, because counts are final at the end only.
That takes minutes for a hundred million words, and embedding them hours, so a killed run reads again and embeds the
labels that its store lacks.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dptr.cache.choices import Case, Unit, Units
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.printing import table
from dptr.cache.processes import usable_processors
from dptr.cache.progress import Progress, note, progress
from dptr.cache.rejections import Quarantine
from dptr.cache.text.charset import Charset, LetterCase, clusters_within, fold_case, has_marks
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import JOINERS, split
from dptr.pipeline.text.corpus_files import (
    MOST_ITEM_BYTES,
    TEXT_COLUMNS,
    TOO_LONG,
    Reject,
    Rows,
    read_rows,
    require_readable,
)

AUTO = "auto"
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


def case_variants(label: str, case: Case) -> list[str]:
    """Return the case variants of ``label``, each once: for one in three, upper case first.

    A variant may lack a character of the charset or be longer than its label (ß has no single capital): judge each.
    """
    if case != "upper-lower-title":
        return [label]
    title = " ".join(word.capitalize() for word in label.split(" "))
    return list(dict.fromkeys([label.upper(), label.lower(), title]))


@dataclass(frozen=True)
class WantedCharset:
    """The requested charset.

    Attributes:
        given: the named charset; None if it is learnt from the corpus.
        units: of the labels. learnt: whether the charset is learnt from the corpus.
    """

    given: Charset | None
    units: Units
    learnt: bool

    @classmethod
    def of(cls, charset: str | Charset, units: Units | None, normalization: Normalization) -> WantedCharset:
        """Resolve a name and ``--units``; None for the charset's own units.

        A Charset is taken as it is, a name with what its characters become in labels.

        Raises:
            UserError: there is no such charset, or a file's clusters would have to be taken apart.
        """
        if charset == AUTO:
            return cls(None, units or "codepoint", learnt=True)
        given = charset if isinstance(charset, Charset) else normalization.charset(Charset.named(charset))
        if isinstance(charset, str) and units is None and not Path(charset).is_file() and has_marks(given.characters):
            units = "grapheme"
        if given.units == "grapheme" and units == "codepoint":
            raise UserError(f"{charset} holds grapheme clusters, not code points", "Leave --units out")
        return cls(given, units or given.units, learnt=given.units != (units or given.units))

    def learn(self, corpus: Corpus, max_label_length: int, min_count: int, case: Case) -> Charset:
        """Return the printable units that occur often enough, in the order of their code points.

        Raises:
            UserError: none does.
        """
        counts = corpus.unit_counts(max_label_length, self.units)
        frequent = (unit for unit, count in counts.items() if count >= min_count and _is_printable(unit))
        variants = (variant for unit in frequent for variant in case_variants(unit, case))
        found = {form for variant in variants for form in split(variant, self.units)}
        if self.given is not None:
            return Charset(clusters_within("".join(self.given.characters), found), self.units)
        if not found:
            raise UserError(f"no character occurs {min_count} times in the corpus", "Lower --min-count")
        characters = tuple(sorted(found))
        return Charset("".join(characters) if self.units == "codepoint" else characters, self.units)


@dataclass(frozen=True)
class CorpusSettings:
    """Settings from text to labels.

    Attributes:
        unit: an item is a word (between white space) or a line (a text line, or the whole value of a row).
        column: the column of CSV, TSV, JSONL and Parquet files that holds the text; None for one of TEXT_COLUMNS.
        normalization: how an item becomes a label.
        charset: a name or a file, as of :meth:`Charset.named`, or ``auto`` for the units that the corpus has; a
            Charset for the one that a store was begun with.
        min_count: a learnt charset takes the units that occur at least so often.
        case: ``keep``; ``lower`` folds; ``upper-lower-title`` folds too, and the caller writes :func:`case_variants`.
        units: what a label is a sequence of; None for what the charset is made of, and where a name's letters carry
            marks (``hi``, ``th``, ``ar``), for grapheme clusters.
    """

    unit: Unit = "word"
    column: str | None = None
    normalization: Normalization = field(default_factory=Normalization)
    charset: str | Charset = "94"
    min_count: int = 1
    case: Case = "keep"
    units: Units | None = None

    def __post_init__(self) -> None:
        require_at_least(1, min_count=self.min_count)

    @cached_property
    def wanted(self) -> WantedCharset:
        """The requested charset."""
        return WantedCharset.of(self.charset, self.units, self.normalization)


@dataclass(frozen=True)
class LabelBatch:
    """Some labels in order.

    Attributes:
        labels: distinct labels. counts: occurrences in the corpus, shape (len(labels),), int64.
        sources: for each label the file where it occurs first.
    """

    labels: list[str]
    counts: NDArray[np.int64]
    sources: list[str]


class Corpus:
    """A corpus that has been read: its distinct labels in a DuckDB file, in a new folder where temporary files go.

    The folder is in ``TMPDIR`` and is removed when the corpus is closed.

    Attributes:
        charset: the charset that every label fits, learnt or given.
        read: items read. folded: those whose case was changed. distinct: distinct labels. kept: those that can be used.
    """

    charset: Charset

    def __init__(self, paths: Sequence[str], settings: CorpusSettings) -> None:
        self._paths = list(paths)
        self._settings = settings
        self.read = self.folded = self.distinct = self.kept = 0
        self._folder = TemporaryDirectory(prefix="dptr-")
        folder = Path(self._folder.name)
        limits: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": _MEMORY,
            "threads": min(_MOST_THREADS, usable_processors()),
            "temp_directory": str(folder / "spilled"),
        }
        with _full_disk_as_user_error():
            self._connection = duckdb.connect(str(folder / "labels.duckdb"), config=limits)
        self._execute("create table seen (label varchar, count bigint, place bigint)")
        self._waiting: list[pa.Table] = []

    @property
    def remaining(self) -> int:
        """Number of labels of :meth:`batches`: accepted ones without those that :meth:`without` removed."""
        return self._number("select count(*) from labels")

    def without(self, catalogues: Sequence[Path]) -> int:
        """Remove the labels in a store's catalogues (Parquet files); return how many remain."""
        if catalogues:
            known = "select label from read_parquet($files)"
            if self._settings.case == "upper-lower-title":
                known += " union select lower(label) from read_parquet($files)"
            files = {"files": [str(path) for path in catalogues]}
            self._execute(f"delete from labels where label in ({known})", files)
        return self.remaining

    def batches(self, rows: int) -> Iterator[LabelBatch]:
        """Yield the remaining labels in order, ``rows`` at a time; the same ones on every call."""
        for window in self._windows(rows):
            sources = [self._paths[place >> _LINE_BITS] for place in window["place"].to_pylist()]
            yield LabelBatch(window["label"].to_pylist(), window["count"].to_numpy(), sources)

    def unit_counts(self, max_label_length: int, units: Units) -> Mapping[str, int]:
        """Return how often each unit occurs in the labels that are not too long."""
        counts: Counter[str] = Counter()
        for window in self._windows(_ROWS_AT_ONCE):
            for label, count in zip(window["label"].to_pylist(), window["count"].to_pylist(), strict=True):
                found = split(label, units)
                if len(found) <= max_label_length:
                    for unit in found:
                        counts[unit] += count
        return counts

    def summary(self, quarantine: Quarantine, more: Sequence[tuple[str, str]] = ()) -> str:
        """Return a table of counts: read, kept, rejected, with examples; ``more`` are further counts."""
        rows = [
            (f"{self.read:,}", f"{self._settings.unit}s read"),
            *([(f"{self.folded:,}", "had their case folded")] if self.folded else []),
            (f"{self.distinct:,}", "distinct labels"),
            (f"{self.kept:,}", f"kept, in a charset of {len(self.charset.characters)}"),
        ]
        for reason, count in quarantine.counts.most_common():
            rows.append((f"{count:,}", f"rejected: {reason}{_such_as(quarantine, reason)}"))
        return table([], [*rows, *more], numbers=(0,), fit=False)

    def close(self) -> None:
        """Close the database and delete its folder."""
        self._connection.close()
        self._folder.cleanup()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def count_file(self, number: int, case: LetterCase | None, quarantine: Quarantine, state: Progress) -> None:
        """Count the labels of file ``number``; with ``case`` they are folded to it."""
        path, settings = self._paths[number], self._settings
        quarantine.reads(path)
        reject = partial(quarantine.reject, path)
        rejected_before, rows_read = quarantine.total, 0
        for rows in read_rows(path, settings.unit, settings.column, reject):
            found = count_labels(rows, settings.unit, settings.normalization, case, reject, settings.wanted.units)
            places = (number << _LINE_BITS) | found.lines
            self._waiting.append(pa.table({"label": found.labels, "count": found.counts, "place": places}))
            if sum(map(len, self._waiting)) >= _ROWS_BUFFERED:
                self._insert()
            rows_read += len(rows.lines)
            self.read += found.read
            self.folded += found.folded
            state.advance(found.read, path)
        if rows_read == 0 and quarantine.total == rejected_before:
            reject(None, "", "empty file")

    def count_up(self) -> None:
        """Aggregate what was counted, in order."""
        self._insert()
        self._execute(
            "create table labels as select label, sum(count)::bigint as count, min(place) as place "
            "from seen group by label order by place, label"
        )
        self._execute("drop table seen")
        self.distinct = self.remaining

    def judge(self, charset: Charset, quarantine: Quarantine) -> None:
        """Remove the labels that do not fit a charset; each is recorded in ``quarantine`` once."""
        self.charset = charset
        self._execute("create table unusable (label varchar)")
        for window in self._windows(_ROWS_AT_ONCE):
            unusable: list[str] = []
            for label, place in zip(window["label"].to_pylist(), window["place"].to_pylist(), strict=True):
                if reason := self._settings.normalization.reject(label, charset):
                    unusable.append(label)
                    source, line = self._paths[place >> _LINE_BITS], place & ((1 << _LINE_BITS) - 1)
                    quarantine.reject(source, line, label, reason)
            self._append("unusable", pa.table({"label": pa.array(unusable, pa.string())}))
        self._execute("delete from labels where label in (select label from unusable)")
        self.kept = self.remaining

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


def read_corpus(paths: Sequence[str], settings: CorpusSettings, quarantine: Quarantine) -> Corpus:
    """Read all files (``-``: standard input) and count their distinct labels.

    What cannot be used goes to ``quarantine``: broken items at each place where they occur, labels once each.

    Raises:
        UserError: an input that does not exist, or a corpus without one usable label.
    """
    require_readable(paths)
    wanted = settings.wanted  # raises for an unknown name before any work
    # A single-case charset folds case, as the field's evaluation does; rejecting capitals would lose most names.
    case: LetterCase | None = "lower" if settings.case != "keep" else wanted.given.one_case if wanted.given else None
    if wanted.given and settings.normalization.keep_spaces and wanted.given.missing(" "):
        note("the charset has no space, so lines with one are rejected; add it with +space, as in --charset 94+space")
    corpus = Corpus(paths, settings)
    try:
        with progress("reading the corpus", None, f"{settings.unit}s") as state:
            for number in range(len(paths)):
                corpus.count_file(number, case, quarantine, state)
        corpus.count_up()
        if corpus.distinct:
            longest = settings.normalization.max_label_length
            if wanted.learnt or wanted.given is None:
                charset = wanted.learn(corpus, longest, settings.min_count, settings.case)
            else:
                charset = wanted.given
            corpus.judge(charset, quarantine)
        if not corpus.kept:
            raise nothing_usable(paths, quarantine)
    except BaseException:
        corpus.close()
        raise
    return corpus


def nothing_usable(paths: Sequence[str], quarantine: Quarantine) -> UserError:
    """Return the error of a corpus without one usable label: its files, and the reasons with examples."""
    reasons = ", ".join(
        f"{reason} ({count}){_such_as(quarantine, reason)}" for reason, count in quarantine.counts.most_common()
    )
    advice = "Give text in UTF-8, and a charset with its characters (auto takes them all, 94+space has the space)"
    if all(reason.startswith("no column") for reason in quarantine.counts) and quarantine.counts:
        advice = f"Name the column with --column (by default one of {', '.join(TEXT_COLUMNS)})"
    return UserError(
        f"no usable label in {', '.join(paths[:3])}{' and more' if len(paths) > 3 else ''}: {reasons or 'only blanks'}",
        advice,
    )


def _such_as(quarantine: Quarantine, reason: str) -> str:
    examples = ", ".join(repr(example) for example in quarantine.examples[reason] if example)
    return f" (such as {examples})" if examples else ""


def _is_printable(unit: str) -> bool:
    return all(character.isprintable() or character in JOINERS for character in unit)


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
