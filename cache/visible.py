"""Text from files with control characters escaped, so that a terminal prints it and runs none of it."""

from __future__ import annotations

import unicodedata

#: Control characters, halves of surrogate pairs, and what breaks lines.
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""Return ``text`` with control characters and line breaks written as escapes, such as ``\x1b`` and ``\n``."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _INVISIBLE else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
