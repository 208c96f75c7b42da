"""A corpus: raw text in any number of files -> distinct labels with counts, in a deterministic order.

The whole corpus is read and counted before the first label is returned, because counts are final at the end only.
That takes minutes for a hundred million words, and embedding them hours, so a killed run reads again and embeds the
labels that its store lacks. The order is that of :mod:`dptr.pipeline.text.label_counts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dptr.cache.choices import Units
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.progress import Progress, note, progress
from dptr.cache.rejections import Quarantine
from dptr.cache.table import table
from dptr.cache.text.charset import Charset, LetterCase
from dptr.cache.text.named_charsets import clusters_within, has_marks
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import JOINERS, split
from dptr.pipeline.choices import Case, Unit
from dptr.pipeline.text.corpus_files import TEXT_COLUMNS, read_rows, require_readable
from dptr.pipeline.text.label_counts import DistinctLabels, count_labels

AUTO = "auto"


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

    def learn(self, labels: DistinctLabels, max_label_length: int, min_count: int, case: Case) -> Charset:
        """Return the printable units that occur often enough, in the order of their code points.

        Raises:
            UserError: none does.
        """
        counts = labels.unit_counts(max_label_length, self.units)
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
    """A corpus that has been read; owns temporary files until it is closed.

    Attributes:
        charset: the charset that every label fits, learnt or given.
        read: items read. folded: those whose case was changed. distinct: distinct labels. kept: those that can be used.
    """

    def __init__(
        self, paths: Sequence[str], settings: CorpusSettings, charset: Charset, labels: DistinctLabels
    ) -> None:
        self._paths = list(paths)
        self._settings = settings
        self._labels = labels
        self.charset = charset
        self.read = 0
        self.folded = 0
        self.distinct = 0
        self.kept = 0

    @property
    def remaining(self) -> int:
        """Number of labels of :meth:`batches`: accepted ones without those that :meth:`without` removed."""
        return len(self._labels)

    def without(self, catalogues: Sequence[Path]) -> int:
        """Remove the labels in a store's catalogues (Parquet files); return how many remain."""
        if catalogues:
            self._labels.remove(catalogues, lower=self._settings.case == "upper-lower-title")
        return self.remaining

    def batches(self, rows: int) -> Iterator[LabelBatch]:
        """Yield the remaining labels in order, ``rows`` at a time; the same ones on every call."""
        for labels, counts, sources in self._labels.batches(rows):
            yield LabelBatch(labels, counts, [self._paths[source] for source in sources.tolist()])

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
        """Delete the temporary files."""
        self._labels.close()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


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
    labels, charset = DistinctLabels(), None if wanted.learnt else wanted.given
    folded = 0
    try:
        with progress("reading the corpus", None, f"{settings.unit}s") as state:
            for number, path in enumerate(paths):
                quarantine.reads(path)
                folded += _count_file(number, path, settings, case, quarantine, labels, state)
        distinct = labels.count_up()
        if distinct:
            longest = settings.normalization.max_label_length
            charset = charset or wanted.learn(labels, longest, settings.min_count, settings.case)
            judge = partial(settings.normalization.reject, charset=charset)
            for label, source, line, reason in labels.reject(judge):
                quarantine.reject(paths[source], line, label, reason)
        if charset is None or len(labels) == 0:
            raise nothing_usable(paths, quarantine)
    except BaseException:
        labels.close()
        raise
    corpus = Corpus(paths, settings, charset, labels)
    corpus.read, corpus.folded, corpus.distinct, corpus.kept = state.done, folded, distinct, len(labels)
    return corpus


def _count_file(
    number: int,
    path: str,
    settings: CorpusSettings,
    case: LetterCase | None,
    quarantine: Quarantine,
    labels: DistinctLabels,
    state: Progress,
) -> int:
    """Count the labels of a file; return of how many items the case was changed."""
    reject = partial(quarantine.reject, path)
    rejected_before, rows_read, folded = quarantine.total, 0, 0
    units = settings.wanted.units
    for rows in read_rows(path, settings.unit, settings.column, reject):
        found = count_labels(rows, settings.unit, settings.normalization, case, reject, units)
        labels.add(found.labels, found.counts, number, found.lines)
        rows_read += len(rows.lines)
        folded += found.folded
        state.advance(found.read, path)
    if rows_read == 0 and quarantine.total == rejected_before:
        reject(None, "", "empty file")
    return folded


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
