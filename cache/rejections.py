"""Inputs that cannot be used, or only altered: counted by their reason, with where they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_EXAMPLES = 3
_MOST_LISTED = 100_000


@dataclass(frozen=True, slots=True)
class Rejection:
    """One input: the file or data set it is in, which one of it (empty: the file itself), its label, and the reason."""

    source: str
    key: str
    label: str
    reason: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.source, self.key, repr(self.label[:40]) if self.label else "") if part)


@dataclass
class Tally:
    """Inputs counted by the part of their reason before a colon.

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
        """How many inputs there were."""
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
