"""Chinese and Japanese in columns: characters stand upright one below the other, and some signs are turned.

Rendering draws such crops higher than wide; training turns them to the left, so that their characters follow each other
from left to right, as reading does with every picture that is higher than wide.
"""

from __future__ import annotations

import unicodedata

#: Height over width from which a picture is turned; below it are narrow letters and digits.
PORTRAIT = 1.2


def may_stand_in_a_column(word: str) -> bool:
    """Return whether a word is of characters, two or more, that are also written from top to bottom."""
    return len(word) > 1 and all(unicodedata.east_asian_width(character) in "WF" for character in word)


def turns_in_columns(character: str) -> bool:
    """Return whether a sign of such a word lies on its side in a column, as brackets and the long vowel do."""
    return character in "ー～" or unicodedata.category(character) in ("Ps", "Pe", "Pd")
