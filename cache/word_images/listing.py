"""The crops of one path, listed: usable ones as columns, what was left out or altered counted by its reason.

A list of more than a block is kept beside the data, and made again when the data, the charset, the normalisation or
the code that lists has changed. Opening it costs the same whatever the number of crops.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dptr.cache.charset import Charset
from dptr.cache.normalization import Normalization
from dptr.cache.word_images import lmdb_form
from dptr.cache.word_images.crop_columns import Columns, ColumnsInMaking
from dptr.cache.word_images.form import Place, PlacedSource, Refused, Source
from dptr.cache.word_images.kept_file import KeptFile, blocks_in_making, places_beside

_EXAMPLES = 3
_MOST_REFUSALS = 100_000


@dataclass(frozen=True)
class Refusal:
    """One word image that cannot be used: where it is, what its label says, and why."""

    source: str
    key: str
    label: str
    reason: str


@dataclass
class Tally:
    """What became of labels.

    Attributes:
        refused: how many were left out, by reason. changed: how many were kept but altered, by what was done.
        examples: some for each reason. refusals: each that was left out, but for what would be more than 100,000.
    """

    refused: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Refusal]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, refusal: Refusal) -> None:
        """Count a label that is left out."""
        self._count(self.refused, refusal.reason.split(":", 1)[0], refusal)
        if len(self.refusals) < _MOST_REFUSALS:
            self.refusals.append(refusal)

    def change(self, what: str, source: str, key: str, raw: str) -> None:
        """Count a label that is altered."""
        self._count(self.changed, what, Refusal(source, key, raw, what))

    def add(self, other: Tally) -> None:
        """Count what another tally counted."""
        self.refused += other.refused
        self.changed += other.changed
        for reason, examples in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *examples][:_EXAMPLES]
        self.refusals += other.refusals[: _MOST_REFUSALS - len(self.refusals)]

    def _count(self, counts: Counter[str], reason: str, example: Refusal) -> None:
        counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def stored(self, sources: Sequence[str]) -> dict[str, Any]:
        """Return it as JSON holds it; sources by their number."""
        numbers = {source: number for number, source in enumerate(sources)}

        def rows(refusals: list[Refusal]) -> list[list[Any]]:
            return [[numbers[one.source], one.key, one.label, one.reason] for one in refusals]

        examples = {reason: rows(found) for reason, found in self.examples.items()}
        return {
            "refused": self.refused,
            "changed": self.changed,
            "examples": examples,
            "refusals": rows(self.refusals),
        }

    @classmethod
    def of(cls, stored: dict[str, Any], sources: Sequence[str]) -> Tally:
        """Return the tally that was stored."""

        def refusals(rows: list[list[Any]]) -> list[Refusal]:
            return [Refusal(sources[number], *told) for number, *told in rows]

        examples = {reason: refusals(rows) for reason, rows in stored["examples"].items()}
        return cls(Counter(stored["refused"]), Counter(stored["changed"]), examples, refusals(stored["refusals"]))


@dataclass(frozen=True)
class Rules:
    """Which labels can be used, and as what."""

    charset: Charset
    normalization: Normalization

    def usable(self, source: str, key: str, raw: str, tally: Tally) -> str | None:
        """Return the label of ``raw``, counting what was changed, or None after counting why it cannot be used."""
        normalized = self.normalization.apply(raw)
        label = usable_label(raw, self.charset, self.normalization)
        if isinstance(label, Refused):
            tally.refuse(Refusal(source, key, raw, label.reason))
            return None
        if label != normalized:
            tally.change("case folded, as the charset has one case only", source, key, raw)
        if normalized != raw:
            only_spaces = normalized == "".join(raw.split())
            tally.change("spaces removed" if only_spaces else "normalised", source, key, raw)
        return label


def usable_label(raw: str, charset: Charset, normalization: Normalization) -> str | Refused:
    """Return what a recogniser is to read where ``raw`` stands, or why it cannot be used."""
    label = charset.fold_case(normalization.apply(raw))
    refusal = normalization.refuse(label, charset)
    return label if refusal is None else Refused(refusal)


def list_crops(path: Path, sources: Sequence[Source], rules: Rules | None) -> tuple[Columns, Tally]:
    """List the crops at ``path``, where ``sources`` were found; without ``rules`` labels stay as they are stored.

    Raises:
        UserError: a data set is damaged.
    """
    judged_by = "" if rules is None else json.dumps([asdict(rules.charset), asdict(rules.normalization)])
    made_from = _made_from(path, sources, judged_by)
    places = places_beside(path, judged_by) if made_from else []
    names = [source.name for source in sources]
    kept = KeptFile.find(places, made_from)
    if kept is None:
        tally = Tally()
        with blocks_in_making(places, made_from) as making:
            columns = ColumnsInMaking(making, any(isinstance(source, PlacedSource) for source in sources))
            for source in sources:
                _list(source, rules, columns, tally)
            columns.flush()
            numbers = {name: number for number, name in enumerate(names)}
            listed = [numbers[name] for name in columns.sources]
            making.summary |= {"sources": listed, "starts": columns.starts, "tally": tally.stored(names)}
        return Columns(making.made, columns.sources, columns.starts), tally
    told = kept.summary
    return Columns(kept, [names[number] for number in told["sources"]], told["starts"]), Tally.of(told["tally"], names)


def _list(source: Source, rules: Rules | None, columns: ColumnsInMaking, tally: Tally) -> None:
    name = source.name
    for key, raw, place in _labels(source):
        if isinstance(raw, Refused):
            tally.refuse(Refusal(name, key, "", raw.reason))
        elif rules is None:
            columns.add(name, key, raw, place)
        elif (label := rules.usable(name, key, raw, tally)) is not None:
            columns.add(name, key, label, place)


def _labels(source: Source) -> Iterator[tuple[str, str | Refused, Place | None]]:
    if isinstance(source, PlacedSource):
        return source.placed_labels()
    return ((key, raw, None) for key, raw in source.labels())


def _made_from(path: Path, sources: Sequence[Source], judged_by: str) -> str:
    """Return a digest of what a list depends on; none where a source does not say which file its labels are in."""
    states = []
    for source in sources:
        name = Path(source.name)
        file = next((one for one in (name, name / lmdb_form.DATA_FILE) if one.is_file()), None)
        if file is None:
            return ""
        known = file.stat()
        states.append([os.path.relpath(file, path), known.st_size, known.st_mtime_ns, known.st_ino])
    text = json.dumps([states, judged_by, unicodedata.unidata_version, _code_of(sources)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _code_of(sources: Sequence[Source]) -> list[str]:
    """Return digests of the code that makes a list: whoever changes how labels are read or judged gets a new one."""
    here = Path(__file__).parent
    forms = {Path(sys.modules[type(source).__module__].__file__ or "") for source in sources}
    files = {*here.glob("*.py"), *here.parent.glob("*.py"), *forms}
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files) if file.is_file()]
