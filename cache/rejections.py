"""Rejected inputs: counted by reason in memory, or written to a Parquet file for ``dptr sql``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dptr.cache.errors import DamagedStore, TooManyRejected
from dptr.cache.progress import note
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path, begun_anew

_EXAMPLES = 3
_MOST_LISTED = 100_000


@dataclass(frozen=True, slots=True)
class Rejection:
    """One input: its file or data set, its key (empty: the file itself), its label, and the reason."""

    source: str
    key: str
    label: str
    reason: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.source, self.key, repr(self.label[:40]) if self.label else "") if part)


@dataclass
class Tally:
    """Inputs counted by the part of the reason before a colon.

    Attributes:
        counts: how many, by reason. listed: each of the first 100,000, and at least three of each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[Rejection] = field(default_factory=list)

    def add(self, source: str, key: str, label: str, reason: str) -> None:
        """Count one input."""
        kind = _kind(reason)
        self.counts[kind] += 1
        if len(self.listed) < _MOST_LISTED or self.counts[kind] <= _EXAMPLES:
            self.listed.append(Rejection(source, key, label, reason))

    def extend(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.counts += other.counts
        self.listed += other.listed

    @property
    def total(self) -> int:
        """Number of inputs."""
        return self.counts.total()

    @property
    def examples(self) -> dict[str, list[str]]:
        """Reason -> where up to three inputs are."""
        found: dict[str, list[str]] = {kind: [] for kind in self.counts}
        for one in self.listed:
            if len(examples := found[_kind(one.reason)]) < _EXAMPLES:
                examples.append(str(one))
        return found


def _kind(reason: str) -> str:
    return reason.split(":", 1)[0]


SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # file the input came from
        ("line", pa.int64()),  # line or row in it, from 1; null where there is none
        ("item", pa.string()),  # the input itself, cut to 200 characters
        ("reason", pa.string()),
    ]
)
_ROWS_BUFFERED = 8192
_ITEM_CHARACTERS = 200


def example(path: Path) -> str:
    """Return source and reason of a file's first rejected input; None if there is none."""
    with pq.ParquetFile(path) as rejected:
        first = next(rejected.iter_batches(1, columns=["source", "reason"]), None)
    return "" if first is None else ": {source}, {reason}".format(**first.to_pylist()[0])


class Quarantine:
    """Collects rejections and writes them to ``path`` when closed; memory does not grow with their number.

    Rejections of an earlier run stay, except those of sources that this run reads again (:meth:`reads`). The file's
    checksum, and in a store the manifest, show whether the file is unchanged (``Manifest.rewriting``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._rows: list[dict[str, object]] = []
        self._sources: set[str] = set()
        self._context = atomic_path(path)
        self._written = self._context.__enter__()
        self._writer = pq.ParquetWriter(self._written, SCHEMA.with_metadata(checksummed.METADATA), compression="zstd")

    @property
    def total(self) -> int:
        """Number of rejected inputs."""
        return self.counts.total()

    def reads(self, source: str) -> None:
        """Declare that this run reads ``source``, which drops an earlier run's rejections of it."""
        self._sources.add(source)

    def reject(self, source: str, line: int | None, item: str, reason: str) -> None:
        """Record one rejected input. Rejections are counted by the part of ``reason`` before a colon."""
        self._sources.add(source)
        kind = _kind(reason)
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(item[:40])
        item = item[:_ITEM_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
        self._rows.append({"source": source, "line": line, "item": item, "reason": reason})
        if len(self._rows) >= _ROWS_BUFFERED:
            self._write()

    def check(self, max_bad: int | None) -> None:
        """Raise :class:`TooManyRejected` when more than ``max_bad`` inputs were rejected (None: no limit)."""
        if max_bad is not None and self.total > max_bad:
            reasons = ", ".join(f"{kind} ({count})" for kind, count in self.counts.most_common(3))
            raise TooManyRejected(
                f"{self.total} inputs were rejected, {max_bad} are allowed: {reasons}",
                f"See {self.path}, or raise --max-bad",
            )

    def _write(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows.clear()

    def _keep_earlier(self) -> None:
        if not self.path.is_file():
            return
        read = pa.array(sorted(self._sources), pa.string())
        try:
            checksummed.require_whole(self.path)
            with pq.ParquetFile(self.path) as earlier:
                for batch in earlier.iter_batches(_ROWS_BUFFERED):
                    rows = pa.Table.from_batches([batch])
                    kept = rows.filter(pc.invert(pc.is_in(rows["source"], read)))
                    if len(kept):
                        self._writer.write_table(kept)
        except (DamagedStore, pa.ArrowException, OSError, KeyError):
            note(begun_anew(self.path))

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._rows:
            self._write()
        self._keep_earlier()
        self._writer.close()
        checksummed.checksum(self._written)
        # Kept even if the work was interrupted.
        self._context.__exit__(None, None, None)
