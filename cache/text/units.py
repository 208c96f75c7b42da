"""Units of labels: code points or grapheme clusters.

A cluster is a letter with its combining signs (Devanagari, Thai, Arabic with marks), or an emoji of several code
points.
Source: Unicode Standard Annex 29, extended grapheme clusters, as implemented by the package regex.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

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
    """Return whether a code point is a combining mark."""
    return unicodedata.category(character).startswith("M")


def number_of_units(text: str, units: Units) -> int:
    """Return the number of units of ``text``."""
    return len(split(text, units))


#: Unicode scripts of shared characters such as digits and punctuation.
NONE = "no letters"
_SHARED = {"Zyyy", "Zinh", "Zzzz"}
#: Languages that are written in several scripts at once.
_TOGETHER = {
    frozenset({"Hani", "Hira"}): "Japanese",
    frozenset({"Hani", "Kana"}): "Japanese",
    frozenset({"Hira", "Kana"}): "Japanese",
    frozenset({"Hani", "Hira", "Kana"}): "Japanese",
    frozenset({"Hani", "Hang"}): "Korean",
}


def script_of_label(label: str) -> str:
    """Return the script of a label's letters: ``Arabic``, ``Han + Latin``, ``Japanese`` (Han and kana), …"""
    codes = frozenset(map(_script, label)) - _SHARED
    if not codes:
        return NONE
    from fontTools.unicodedata import script_name

    return _TOGETHER.get(codes) or " + ".join(sorted(map(script_name, codes)))


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    from fontTools import unicodedata

    code: str = unicodedata.script(character)
    return code
