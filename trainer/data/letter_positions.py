"""Which letter stands at which column of a word image, estimated from the spelling.

A word crop is cut round its letters, so a letter's share of the width is known up to the font. That is rough, and
still a target for every column of an image from the first step on, where a contrastive loss alone has to find out from
whole words that images can be read at all.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from dptr.cache import reading_order
from dptr.cache.units import clusters

#: Share of a crop's width that is left free on each side.
_MARGIN = 0.03


def alphabet_of(characters: Iterable[str]) -> str:
    """Return the letters to classify: the characters of a charset, case aside, in the order of their code points."""
    return "".join(sorted({character for character in "".join(characters).lower() if not character.isspace()}))


def letters_by_column(label: str, columns: int, alphabet: str) -> NDArray[np.int64]:
    """Return which letter stands at the middle of each column of a crop that shows ``label``.

    Returns:
        Shape (columns,): 1 and up count through ``alphabet``, 0 is any other character.
    """
    label = _from_left_to_right(label)
    edges = np.cumsum([0.0, *(_width(character) for character in label)])
    edges = edges / edges[-1] * (1 - 2 * _MARGIN) + _MARGIN
    middles = (np.arange(columns) + 0.5) / columns
    positions = np.clip(np.searchsorted(edges, middles) - 1, 0, len(label) - 1)
    classes = np.array([alphabet.find(character.lower()) + 1 for character in label])
    letters: NDArray[np.int64] = classes[positions]
    return letters


def _from_left_to_right(label: str) -> str:
    """Return a word of a script that is written from right to left as its columns show it; any other as it is."""
    return "".join(reading_order.seen(clusters(label))[0]) if reading_order.runs_right_to_left(label) else label


@lru_cache(maxsize=65536)
def _width(character: str) -> float:
    """Width in the font that Pillow brings along: proportional, and the same on every machine.

    A mark above or below a letter takes next to none: the letter is what stands at those columns.
    """
    return (
        0.01 if unicodedata.category(character) == "Mn" else max(1.0, ImageFont.load_default(64).getlength(character))
    )
