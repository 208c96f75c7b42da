"""Number plates as masks: characters in groups, a frame, and the small text, stickers and screws around them."""

from __future__ import annotations

import re
import string
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dptr.pipeline.rendering.fonts import Font

#: Small text of plates: embeddings, makers, dealers.
_SMALL = (
    "CALIFORNIA", "Texas", "NEW YORK", "FLORIDA", "Illinois", "OHIO", "Georgia", "Virginia", "ARIZONA", "Washington",
    "REPUBLICA ARGENTINA", "BRASIL", "MERCOSUR", "SP-SAO PAULO", "RJ-RIO DE JANEIRO", "Sunshine State", "Garden State",
    "dmv.ca.gov", "MyFlorida.com", "The Lone Star State", "TOYOTA", "Auto Haus", "Motors", "LAND OF LINCOLN",
)  # fmt: skip
#: Layout -> its share, height of the plate in heights of a character, share with text above and below, and share with a
#: band at the left, as in Europe.
_LAYOUTS = {
    "american": (0.5, (1.7, 2.5), 0.9, 0.8, 0.0),
    "european": (0.3, (1.2, 1.5), 0.05, 0.1, 0.75),
    "southern": (0.2, (1.3, 1.9), 0.9, 0.3, 0.05),
}


def draw_plate(text: str, font: Font, size: int, margin: int, rng: np.random.Generator) -> Image.Image:
    """Draw a plate's masks: ink, plate, nothing, and what the crop is cut round, as channels; ``margin`` is around it.

    Args:
        text: characters without spaces; groups of letters and of digits are set apart.
        font: of all text; ASCII is drawn in it. size: height of the characters in pixels.
    """
    names = list(_LAYOUTS)
    layout = names[int(rng.choice(len(names), p=[_LAYOUTS[name][0] for name in names]))]
    _, heights, above, below, band = _LAYOUTS[layout]
    characters = _characters(text, font, size, rng)
    side = int(size * rng.uniform(0.15, 0.5))
    band_width = int(0.35 * size) if rng.random() < band else 0
    width, height = characters.width + 2 * side + band_width, int(size * rng.uniform(*heights))
    canvas = (width + 2 * margin, height + 2 * margin)
    ink, plate = Image.new("L", canvas), Image.new("L", canvas)
    left, top, right, bottom = margin, margin, margin + width, margin + height
    radius = int(rng.uniform(0, 0.15) * size)
    ImageDraw.Draw(plate).rounded_rectangle((left, top, right, bottom), radius, 255)
    draw = ImageDraw.Draw(ink)
    if rng.random() < 0.6:
        draw.rounded_rectangle((left + 1, top + 1, right - 1, bottom - 1), radius, outline=255, width=1 + size // 24)
    middle = top + (height - size) / 2 + size * rng.uniform(-0.1, 0.1)
    ink.paste(characters, (left + band_width + side, round(middle)))
    small = font.at(max(8, int(size * rng.uniform(0.2, 0.38))), shaped=False)
    for place, anchor, share in (((top + 2 + size // 16), "mt", above), ((bottom - 2 - size // 16), "mb", below)):
        if rng.random() < share:
            said = str(rng.choice(_SMALL))
            draw.text(((left + right) / 2 + size * rng.uniform(-0.5, 0.5), place), said, 255, small, anchor=anchor)
    if band_width:
        draw.rectangle((left, top, left + band_width, bottom), 255)
        letters = "".join(rng.choice(list(string.ascii_uppercase), int(rng.integers(1, 3))).tolist())
        draw.text((left + band_width / 2, bottom - 2), letters, 0, small, anchor="mb")
    for x in (left + side / 2 + band_width, right - side / 2):
        for y in (top + 0.12 * height, bottom - 0.12 * height):
            if rng.random() < 0.25:
                reach = size * rng.uniform(0.03, 0.09)
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), 255)
    if layout == "american" and rng.random() < 0.5:
        corner = (left + 3, top + 3) if rng.random() < 0.5 else (right - size // 2, top + 3)
        draw.rectangle((*corner, corner[0] + size // 2 - 4, corner[1] + size // 4), int(rng.integers(120, 256)))
    # Detectors cut round the plate or round the characters.
    around = plate if rng.random() < 0.75 else ink.point(lambda level: 255 * (level > 0)).copy()
    return Image.merge("CMYK", (ink, plate, Image.new("L", canvas), around))


def _characters(text: str, font: Font, size: int, rng: np.random.Generator) -> Image.Image:
    """Set characters of equal height, as narrow as they are stamped, with gaps and a mark between their groups."""
    narrow, gap = rng.uniform(0.6, 1.05), size * rng.uniform(0.06, 0.2)
    between = size * rng.uniform(0.1, 0.5)
    mark = str(rng.choice(["", "", "-", "\u00b7", "o", "*"]))
    groups = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]+", text) if rng.random() < 0.85 else [text]
    if len(groups) == 1 and len(text) > 4 and rng.random() < 0.7:
        groups = [text[: len(text) // 2], text[len(text) // 2 :]]
    placed: list[tuple[Image.Image, int, int]] = []
    x = 0.0
    drawn = font.at(2 * size, shaped=False)
    for number, group in enumerate(groups):
        if number:
            x += between / 2
            if mark and font.covers(mark):
                glyph = _stamped(drawn.getmask(mark), size * 0.22, 0.8)
                placed.append((glyph, round(x), (size - glyph.height) // 2))
                x += glyph.width
            x += between / 2
        for character in group:
            glyph = _stamped(drawn.getmask(character), size, narrow)
            placed.append((glyph, round(x), size - glyph.height))
            x += glyph.width + gap
    image = Image.new("L", (max(1, round(x - gap)), size))
    for glyph, left, top in placed:
        image.paste(glyph, (left, top))
    return image


def _stamped(mask: Any, height: float, narrow: float) -> Image.Image:
    """Scale a glyph's own pixels to a height, and its width by ``narrow`` besides; bars keep their shape."""
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    box = glyph.getbbox()
    glyph = glyph.crop(box) if box else glyph
    flat = glyph.width > 1.6 * glyph.height
    scale = height / (glyph.width if flat else max(1, glyph.height))
    size = (max(2, round(glyph.width * scale * (1 if flat else narrow))), max(2, round(glyph.height * scale)))
    return glyph.resize(size, Image.Resampling.BILINEAR)
