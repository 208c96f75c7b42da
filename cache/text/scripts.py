"""The script a label is written in, by Unicode's property of its characters."""

from __future__ import annotations

from functools import lru_cache

from fontTools import unicodedata

#: What letters of several scripts have in common, digits and punctuation among it.
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
    return _TOGETHER.get(codes) or " + ".join(sorted(unicodedata.script_name(code) for code in codes))


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    code: str = unicodedata.script(character)
    return code
