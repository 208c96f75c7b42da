"""Whether what a font draws for a letter with a mark, such as é, й or ậ, is that letter and that mark.

Fonts of before Unicode draw Cyrillic or Tamil letters in the places of accented Latin ones, unfinished ones the plain
letter or the mark alone: labels that their pictures do not show. Nothing in a font's tables tells, so it is drawn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

#: Least share of the plain letter's ink that lies within a pixel of the marked one's: i loses its dot, A gets lower.
#: Looked at in 2,500 faces: of those that draw the letter, coarse pixel fonts that squeeze it below its mark miss it.
_LEAST_SHARED = 0.87
#: How far the plain letter may be moved to the side to meet the marked one, in ems.
_FURTHEST = 0.25


def plainer_forms(character: str) -> list[str]:
    """Return the letters that ``character`` has more marks than, the plain one first: a, â and ạ of ậ; none of a.

    Nor of a Hangul syllable, which is made of letters, and of Arabic letters: yeh with hamza above is drawn without its
    dots, as it should be.
    """
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if unicodedata.bidirectional(letter) != "L" or any(unicodedata.category(mark) != "Mn" for mark in marks):
        return []
    return list(_single(letter, marks))


def shows_its_letter(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Return whether ``font`` draws ``character`` as its plain letter and something besides.

    A character without a mark shows its letter. Of what the font lacks it draws its box, which is none of them.
    """
    plainer = plainer_forms(character)
    if not plainer:
        return True
    drawn = _drawn(font, character)
    forms = [_drawn(font, form) for form in plainer]
    if any(form == drawn for form in forms):
        return False
    # Thin strokes of the same letter may lie a pixel apart.
    return _shared(_ink(forms[0]), _ink(drawn.filter(ImageFilter.MaxFilter(3)))) >= _LEAST_SHARED


def _single(letter: str, marks: list[str]) -> Iterator[str]:
    """Yield what single characters a letter makes with some, but not all, of its marks."""
    for count in range(len(marks)):
        for some in combinations(marks, count):
            form = unicodedata.normalize("NFC", letter + "".join(some))
            if len(form) == 1:
                yield form


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draw a character on a canvas of three ems by three, from the same point of the base line."""
    side = 3 * round(font.size)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side // 3, 2 * side // 3), character, 255, font, anchor="ls")
    return canvas


def _ink(canvas: Image.Image) -> NDArray[np.int64]:
    """Return the ink, 0 to 255, of each pixel."""
    return np.asarray(canvas).astype(np.int64)


def _shared(plain: NDArray[np.int64], marked: NDArray[np.int64]) -> float:
    """Return the largest share of ``plain``'s ink that is ``marked``'s too, over moves to the side; 0 of no ink."""
    furthest = int(len(plain) / 3 * _FURTHEST)
    shared = (np.minimum(np.roll(plain, move, 1), marked).sum() for move in range(-furthest, furthest + 1))
    return float(max(shared) / max(1, plain.sum()))
