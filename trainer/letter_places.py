"""Which letter stands where in a word image, as far as the spelling tells.

A word crop is cut round its letters, so a letter's share of the width is known but for the font. That is rough, and it
is a target for every column of an image from the first step on, where a contrastive loss alone has to find out from
whole words that images can be read at all.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

#: Classes of letters, case aside; class 0 is any other character.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789'"
CLASSES = len(ALPHABET) + 1
#: Share of a crop's width that is left free on each side.
_MARGIN = 0.03


def letters_by_column(label: str, columns: int) -> NDArray[np.int64]:
    """Return the class of the letter at the middle of each column of a crop that shows ``label``, shape (columns,)."""
    edges = np.cumsum([0.0, *(_width(character) for character in label)])
    edges = edges / edges[-1] * (1 - 2 * _MARGIN) + _MARGIN
    middles = (np.arange(columns) + 0.5) / columns
    places = np.clip(np.searchsorted(edges, middles) - 1, 0, len(label) - 1)
    classes = np.array([ALPHABET.find(character.lower()) + 1 for character in label])
    letters: NDArray[np.int64] = classes[places]
    return letters


@lru_cache(maxsize=4096)
def _width(character: str) -> float:
    """Width in the font that Pillow brings along: proportional, and the same on every machine."""
    return max(1.0, ImageFont.load_default(64).getlength(character))
