"""What a label is a sequence of: code points, or grapheme clusters, each of which a person sees as one character.

A cluster is a letter with all that is written on, below and about it (Devanagari, Thai, Arabic with marks), or an emoji
of several parts. Source: Unicode Standard Annex 29, extended grapheme clusters, as the package regex has them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

from dptr.cache.choices import Units

#: Zero-width joiners: invisible, but Persian and the Indic scripts spell with them.
JOINERS = "\u200c\u200d"
_CLUSTER = regex.compile(r"\X")


def split(text: str, units: Units) -> Sequence[str]:
    """Return the units of ``text`` in order; joined, they are the text."""
    return text if units == "codepoint" else clusters(text)


def clusters(text: str) -> list[str]:
    """Return the grapheme clusters of ``text`` in order."""
    return list(text) if text.isascii() and "\r" not in text else _CLUSTER.findall(text)


def is_mark(character: str) -> bool:
    """Return whether a code point stands on, below or about another one, and seldom by itself."""
    return unicodedata.category(character).startswith("M")


def number_of_units(text: str, units: Units) -> int:
    """Return how many units ``text`` has."""
    return len(split(text, units))
