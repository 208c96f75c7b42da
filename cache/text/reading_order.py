"""Right-to-left writing, and vertical words.

Labels are stored in logical order. Feature columns of a crop run from left to right, so CTC labels are in visual order:
Arabic and Hebrew reversed, numbers and Latin words within them not. Grapheme clusters stay intact, and brackets are
mirrored. Source: Unicode Standard Annex 9, by the package python-bidi; the first letter determines the direction.

Chinese, Japanese and Korean are also written from top to bottom: characters upright, some signs rotated. Rendering
draws such crops higher than wide; training and reading rotate them to the left.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import regex
from bidi import get_display
from bidi.mirror import MIRRORED

_RIGHT_TO_LEFT = regex.compile(r"[\p{Bidi_Class=R}\p{Bidi_Class=AL}]")
#: Not reversed within right-to-left text: numbers and words, including separators inside them.
_LEFT_TO_RIGHT = r"[\p{Bidi_Class=L}\p{Bidi_Class=EN}\p{Bidi_Class=AN}]+"
_RUNS = (
    regex.compile(_LEFT_TO_RIGHT),
    regex.compile(rf"{_LEFT_TO_RIGHT}(?:[^\p{{Bidi_Class=R}}\p{{Bidi_Class=AL}}]+{_LEFT_TO_RIGHT})*"),
)

#: Reordered clusters, some of them mirrored, and their original positions.
Moved = tuple[list[str], list[int]]


def runs_right_to_left(text: str) -> bool:
    """Return whether ``text`` has a right-to-left letter."""
    return not text.isascii() and _RIGHT_TO_LEFT.search(text) is not None


def seen(written: Sequence[str]) -> Moved:
    """Return the grapheme clusters of a label in visual order."""
    return _moved(written, None)


def written(clusters: Sequence[str]) -> Moved:
    """Return grapheme clusters in visual order converted to logical order.

    The conversion is ambiguous: a Latin word beside an Arabic one may be first or last. It is assumed to be within
    right-to-left text, and the first logical order with this visual order is returned.
    """
    ways = _ways(clusters)
    first = next(ways)
    for way in (first, *ways):
        if seen(way[0])[0] == list(clusters):
            return way
    return first


def _ways(clusters: Sequence[str]) -> Iterator[Moved]:
    """Yield candidate logical orders, the most likely first."""
    yield _moved(clusters, "R")
    bases = "".join(cluster[0] for cluster in clusters)
    for run in _RUNS:
        yield _reversed_but(clusters, [match.span() for match in run.finditer(bases)])
    yield _moved(clusters, "L")


def _reversed_but(clusters: Sequence[str], spans: Sequence[tuple[int, int]]) -> Moved:
    """Reverse clusters, but not within each span."""
    order: list[int] = []
    stop = len(clusters)
    for start, end in reversed(spans):
        order += [*range(stop - 1, end - 1, -1), *range(start, end)]
        stop = start
    order += range(stop - 1, -1, -1)
    kept = {place for span in spans for place in range(*span)}
    return [clusters[place] if place in kept else _turned(clusters[place]) for place in order], order


def _turned(cluster: str) -> str:
    """Return a cluster as displayed within right-to-left text."""
    turned: str = MIRRORED.get(cluster[0], cluster[0])
    return turned + cluster[1:]


def _moved(clusters: Sequence[str], base: Literal["L", "R"] | None) -> Moved:
    """Reorder clusters by Annex 9 for the base direction ``base``; None: that of the first letter."""
    if not clusters:
        return [], []
    # The package returns only text. A distinct mark follows each base character to identify it; in right-to-left
    # text the mark precedes it.
    marks = _marks()
    shown = get_display("".join(c[0] + mark for c, mark in zip(clusters, marks, strict=False)), base_dir=base)
    places = {mark: place for place, mark in enumerate(marks[: len(clusters)])}
    moved, order = [], []
    for first, second in zip(shown[::2], shown[1::2], strict=True):
        place = places[first if first in places else second]
        order.append(place)
        moved.append(_turned(clusters[place]) if first in places else clusters[place])
    return moved, order


@lru_cache(maxsize=1)
def _marks() -> list[str]:
    """Return marks without direction, more than a label has clusters; no text starts with one of them.

    The highest come first: variation selectors, which no label contains.
    """
    return [chr(code) for code in range(0xE01EF, 0x2FF, -1) if unicodedata.bidirectional(chr(code)) == "NSM"]


#: Height over width from which a picture is rotated; below it are narrow letters and digits.
PORTRAIT = 1.2


def may_stand_in_a_column(word: str) -> bool:
    """Return whether a word has two or more characters, all of which are also written vertically."""
    return len(word) > 1 and all(unicodedata.east_asian_width(character) in "WF" for character in word)


def turns_in_columns(character: str) -> bool:
    """Return whether a sign is rotated in vertical text, like brackets and the long vowel mark."""
    return character in "ー～" or unicodedata.category(character) in ("Ps", "Pe", "Pd")
