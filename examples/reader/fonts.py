"""Sort the fonts of this machine into plain and ornamental ones, and reject illegible ones.

    python examples/reader/fonts.py fonts/

Letters and digits of every font are compared with the average of all fonts. A font is illegible if most of its
glyphs are closer to another letter's average, and ornamental if a fifth are. Plain monospaced fonts, as on receipts,
are also copied to ``mono/``, and those similar to the lettering of number plates to ``plates/``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.errors import run_script
from dptr.pipeline.rendering.fonts import Font, find_fonts

CHARACTERS = string.ascii_letters + string.digits
SIDE = 16
LEGIBLE, PLAIN = 0.5, 0.78
#: Glyphs that many honest fonts draw alike.
ALIKE = tuple(map(frozenset, ("il", "l1", "i1", "o0", "it")))
#: Families that pass but are drawn on a grid of pixels or made for effect.
ODD = ("Px ", "BRK")
#: Families whose capitals are like those of number plates, and styles that no plate has.
PLATES = re.compile(
    "DIN|Bebas|Roadgeek|Sans Narrow|DejaVu Sans$|DejaVu Sans Condensed|Gillius|osifont|Routed|National Park|Clear Sans"
    "|OCR|Roboto$|Roboto Condensed|Universalis|Yanone|Tiresias|B612|IBM 3270|Nimbus Sans|Heros|Arimo|Carlito|Play$"
    "|Liberation Sans|Nimbus Mono|League Mono|Oxygen|Overpass|Share|Beteckna|Jura|Cabin|Dosis|Hack|Inconsolata|Lato"
)
NOT_STAMPED = re.compile("Italic|Oblique|Thin|Light|Hairline", re.IGNORECASE)


def main() -> None:
    """Parse, part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for what is copied")
    part(parser.parse_args().out)


def part(out: Path) -> None:
    """Copy the fonts to ``plain/``, ``ornamental/``, ``mono/`` and ``plates/``."""
    fonts = [font for font in find_fonts().fonts if not font.index and font.covers(CHARACTERS)]
    for number, (font, share) in enumerate(zip(fonts, legibility(fonts), strict=True)):
        if share < LEGIBLE or font.names[0].startswith(ODD[0]):
            continue
        is_plain = share >= PLAIN and ODD[1] not in font.names[0]
        groups = {"plain": is_plain, "ornamental": not is_plain, "mono": is_plain and _is_monospaced(font)}
        groups["plates"] = is_plain and bool(PLATES.search(font.names[0])) and not NOT_STAMPED.search(font.names[1])
        for group in (group for group, belongs in groups.items() if belongs):
            folder = out / group
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(font.path, folder / f"{number:04d}-{font.path.name}")


def legibility(fonts: list[Font]) -> NDArray[np.float64]:
    """Return the share of each font's characters nearest to their own average glyph, case-insensitive: (fonts,)."""
    glyphs = np.stack([[_glyph(font, character) for character in CHARACTERS] for font in fonts])
    average = np.median(glyphs, axis=0)
    for _ in range(2):
        average /= np.linalg.norm(average, axis=-1, keepdims=True)
        nearest = np.einsum("fcd,kd->fck", glyphs, average).argmax(-1)
        right = [[_alike(CHARACTERS[i], CHARACTERS[k]) for i, k in enumerate(row)] for row in nearest]
        share: NDArray[np.float64] = np.mean(right, axis=1)
        average = glyphs[share > PLAIN].mean(axis=0)
    return share


def _glyph(font: Font, character: str) -> NDArray[np.float64]:
    """Return a glyph stretched to a square, its mean taken off, of length one: (SIDE * SIDE,)."""
    mask = font.at(32, shaped=False).getmask(character)
    if 0 in mask.size:
        return np.zeros(SIDE * SIDE)
    square = Image.frombytes("L", mask.size, bytes(mask)).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(square, np.float64).ravel()
    pixels -= pixels.mean()
    return pixels / (np.linalg.norm(pixels) + 1e-6)


def _is_monospaced(font: Font) -> bool:
    drawn = font.at(32, shaped=False)
    return len({round(drawn.getlength(character)) for character in "iMW0."}) == 1


def _alike(one: str, other: str) -> bool:
    one, other = one.lower(), other.lower()
    return one == other or frozenset((one, other)) in ALIKE


if __name__ == "__main__":
    run_script(main)
