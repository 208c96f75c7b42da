"""The crops of one path, listed: usable ones as a table, what is rejected or altered counted by its reason.

A list of many crops is kept in dptr's cache folder, and made again when the data, the charset or the normalisation has
changed. Opening it costs the same whatever the number of crops.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dptr.cache.crops.form import Place, PlacedSource, Rejected, Source
from dptr.cache.crops.samples import CropTable, map_table, write_table
from dptr.cache.progress import note
from dptr.cache.rejections import Rejection, Tally
from dptr.cache.remote import cache_folder
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

#: Of kept lists: raise it when labels are read or judged otherwise, and all lists are made again.
FORMAT_VERSION = 1
#: Shorter lists are made in less time than it takes to say so.
_FEWEST_KEPT = 1 << 16
_MADE_FROM, _COUNTED = b"made_from", b"counted"


@dataclass(frozen=True)
class Rules:
    """Which labels can be used, and as what."""

    charset: Charset
    normalization: Normalization

    def label_of(self, raw: str) -> str | Rejected:
        """Return the label that a recogniser is to predict where ``raw`` stands, or why it cannot be used."""
        label = self.charset.fold_case(self.normalization.apply(raw))
        reason = self.normalization.reject(label, self.charset)
        return label if reason is None else Rejected(reason)

    def usable(self, source: str, key: str, raw: str, rejected: Tally, changed: Tally) -> str | None:
        """Return the label of ``raw``, counting what was changed, or None after counting why it cannot be used."""
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
            note(f"the list of {path} is not kept in {file}: {error.strerror or error}")
        else:
            note(f"labels are listed once and kept in {file}")
            return _kept(file, made_from, names) or (crops, rejected, changed)
    return crops, rejected, changed


def _usable(
    sources: Sequence[Source], rules: Rules | None, rejected: Tally, changed: Tally
) -> Iterator[tuple[int, str, str, Place | None]]:
    for number, source in enumerate(sources):
        name = source.name
        for key, raw, place in _labels(source):
            if isinstance(raw, Rejected):
                rejected.add(name, key, "", raw.reason)
            elif rules is None:
                yield number, key, raw, place
            elif (label := rules.usable(name, key, raw, rejected, changed)) is not None:
                yield number, key, label, place


def _labels(source: Source) -> Iterator[tuple[str, str | Rejected, Place | None]]:
    if isinstance(source, PlacedSource):
        return source.placed_labels()
    return ((key, raw, None) for key, raw in source.labels())


def _made_from(sources: Sequence[Source], judged_by: str) -> str:
    """Return a digest of what a list depends on; none where a source does not say which file its labels are in."""
    embeddings = []
    for source in sources:
        name = Path(source.name)
        file = next((one for one in (name, name / "data.mdb") if one.is_file()), None)
        if file is None:
            return ""
        known = file.stat()
        embeddings.append([str(file.absolute()), known.st_size, known.st_mtime_ns, known.st_ino])
    text = json.dumps([FORMAT_VERSION, embeddings, judged_by, unicodedata.unidata_version])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(file: Path, made_from: str, names: list[str]) -> tuple[CropTable, Tally, Tally] | None:
    """Return a list that was kept; None where there is none, or one of something else or damaged."""
    table = map_table(file)
    if table is None or (table.schema.metadata or {}).get(_MADE_FROM) != made_from.encode():
        return None
    rejected, changed = (_restored(counted, names) for counted in json.loads(table.schema.metadata[_COUNTED]))
    return CropTable(table.replace_schema_metadata(), names, file), rejected, changed


def _stored(tally: Tally, names: list[str]) -> list[Any]:
    """Return a tally as JSON holds it; sources by number, as the next command may spell their path otherwise."""
    numbers = {name: number for number, name in enumerate(names)}
    return [tally.counts, [[numbers[one.source], one.key, one.label, one.reason] for one in tally.listed]]


def _restored(stored: list[Any], names: list[str]) -> Tally:
    counts, listed = stored
    return Tally(Counter(counts), [Rejection(names[number], *rest) for number, *rest in listed])
