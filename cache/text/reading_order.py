"""Writing that runs from right to left, and words that run from top to bottom.

Labels are stored as they are written and typed. Feature columns of a crop run from left to right, so what is aligned
with them has to stand as it is seen: Arabic and Hebrew reversed, numbers and Latin words within them not. Grapheme
clusters move as wholes, and brackets turn round, as they do on signs. Source: Unicode Standard Annex 9, by the package
python-bidi; as there, the first letter fixes the direction of a label.

Chinese, Japanese and Korean are also written from top to bottom: characters stand upright, some signs are turned.
Rendering draws such crops higher than wide; training and reading turn them to the left.
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
#: What stays as it is within right-to-left text: numbers and words, with or without what stands between their parts.
_LEFT_TO_RIGHT = r"[\p{Bidi_Class=L}\p{Bidi_Class=EN}\p{Bidi_Class=AN}]+"
_RUNS = (
    regex.compile(_LEFT_TO_RIGHT),
    regex.compile(rf"{_LEFT_TO_RIGHT}(?:[^\p{{Bidi_Class=R}}\p{{Bidi_Class=AL}}]+{_LEFT_TO_RIGHT})*"),
)

#: Clusters in another order, some of them turned round, and where each stood before.
Moved = tuple[list[str], list[int]]


def runs_right_to_left(text: str) -> bool:
    """Return whether there is a letter in ``text`` that is written from right to left."""
    return not text.isascii() and _RIGHT_TO_LEFT.search(text) is not None


def seen(written: Sequence[str]) -> Moved:
    """Return the grapheme clusters of a label as they are seen from left to right."""
    return _moved(written, None)


def written(clusters: Sequence[str]) -> Moved:
    """Return the grapheme clusters that are seen from left to right in the order in which they are written.

    What is seen does not say everything: a Latin word beside an Arabic one may be written first or last. It is taken
    to be within right-to-left text. Of several ways to write it, the first that is seen so is returned.
    """
    ways = _ways(clusters)
    first = next(ways)
    for way in (first, *ways):
        if seen(way[0])[0] == list(clusters):
            return way
    return first


def _ways(clusters: Sequence[str]) -> Iterator[Moved]:
    """Yield how clusters could be written that are seen so, the likeliest first."""
    yield _moved(clusters, "R")
    bases = "".join(cluster[0] for cluster in clusters)
    for run in _RUNS:
        yield _reversed_but(clusters, [match.span() for match in run.finditer(bases)])
    yield _moved(clusters, "L")


def _reversed_but(clusters: Sequence[str], spans: Sequence[tuple[int, int]]) -> Moved:
    """Reverse clusters, those of each span among themselves not."""
    order: list[int] = []
    stop = len(clusters)
    for start, end in reversed(spans):
        order += [*range(stop - 1, end - 1, -1), *range(start, end)]
        stop = start
    order += range(stop - 1, -1, -1)
    kept = {place for span in spans for place in range(*span)}
    return [clusters[place] if place in kept else _turned(clusters[place]) for place in order], order


def _turned(cluster: str) -> str:
    """Return a cluster as it looks within right-to-left text."""
    turned: str = MIRRORED.get(cluster[0], cluster[0])
    return turned + cluster[1:]


def _moved(clusters: Sequence[str], base: Literal["L", "R"] | None) -> Moved:
    """Reorder clusters as Annex 9 has it, in text that runs as ``base`` says; None: as its first letter does."""
    if not clusters:
        return [], []
    # The package gives back text alone. A mark of its own goes with each base: it says which one it was, and stands
    # before it where the text runs from right to left.
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
    """Return marks without a direction of their own, more than a label has clusters; no text begins with one of them.

    The highest come first, selectors of variants, which stand in no label.
    """
    return [chr(code) for code in range(0xE01EF, 0x2FF, -1) if unicodedata.bidirectional(chr(code)) == "NSM"]


#: Height over width from which a picture is turned; below it are narrow letters and digits.
PORTRAIT = 1.2


def may_stand_in_a_column(word: str) -> bool:
    """Return whether a word is of characters, two or more, that are also written from top to bottom."""
    return len(word) > 1 and all(unicodedata.east_asian_width(character) in "WF" for character in word)


def turns_in_columns(character: str) -> bool:
    """Return whether a sign of such a word lies on its side in a column, as brackets and the long vowel do."""
    return character in "ー～" or unicodedata.category(character) in ("Ps", "Pe", "Pd")
