"""The letters of a word as masks: drawn, warped, cut out; no colour yet.

Fill, outline, cast shadow, and the word's letters without neighbouring text are the four channels of one image, so that
one warp transforms all of them.
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from dptr.cache.errors import UserError
from dptr.cache.text.units import clusters
from dptr.pipeline.rendering.fonts import Font
from dptr.pipeline.rendering.shaping import may_stand_apart
from dptr.pipeline.rendering.style import RenderStyle, amount, chance

_STRIPS = 8
#: A line along a circle is bent by a mesh of so many cells a side.
_CELLS = 14


class Setting(TypedDict, total=False):
    """Settings of Pillow's text layout, for Raqm only."""

    direction: str
    language: str


def letter_masks(
    word: str, font: Font, rng: np.random.Generator, style: RenderStyle, column: bool = False
) -> Image.Image:
    """Return the masks of fill, outline, cast shadow and the word alone as channels, cut round the word.

    The image's mode is CMYK, Pillow's one of four equal channels. A ``column``, set from top to bottom, is
    turned to the left: what follows then meets a picture wider than high, as always.

    Raises:
        UserError: the word leaves no ink.
    """
    size = int(rng.integers(style.height[0] // 2, style.height[1] // 2 + 1)) * 2
    margin = size // 3
    shaped = not word.isascii()
    setting = Setting()
    if font.language and shaped:
        setting["language"] = font.language
    if column:
        setting["direction"] = "ttb"
    if chance(rng, style.plate):
        drawn = draw_plate(word, font, size, margin, rng)
    else:
        drawn = _draw(word, font.at(size, shaped), setting, margin, rng, style)
    if column:
        drawn = drawn.transpose(Image.Transpose.ROTATE_90)
    if style.stretch:
        factor = np.exp(style.stretch * rng.uniform(-1, 1))
        drawn = drawn.resize((max(8, round(drawn.width * factor)), drawn.height), Image.Resampling.BILINEAR)
    if chance(rng, style.arc):
        drawn = _along_a_circle(drawn, margin, rng)
        # What is bent already is only turned and tilted.
        style = replace(style, curve=0.0)
    return _cut_out(_warp(drawn, margin, rng, style), rng, style, word)


def _draw(
    word: str,
    font: ImageFont.FreeTypeFont,
    setting: Setting,
    margin: int,
    rng: np.random.Generator,
    style: RenderStyle,
) -> Image.Image:
    size, column = round(font.size), "direction" in setting
    stroke = round(amount(rng, style.outline) * size / 10)
    tracking = round(amount(rng, style.tracking) * size / 3)
    if column or not may_stand_apart(word):
        tracking = 0
    left, top, right, bottom = font.getbbox(word, stroke_width=stroke, **setting)
    canvas = (int(right - left) + tracking * len(word) + 2 * margin, int(bottom - top) + 2 * margin)
    fill, outline = Image.new("L", canvas), Image.new("L", canvas)
    for text, x in _pieces(word, font, tracking):
        place = (margin - left + x, margin - top)
        ImageDraw.Draw(fill).text(place, text, 255, font, **setting)
        if stroke:
            ImageDraw.Draw(outline).text(place, text, 255, font, stroke_width=stroke, **setting)
    word_alone = fill
    if chance(rng, style.dots):
        fill = _in_dots(fill, size, rng)
    if chance(rng, style.rules):
        fill = _with_rules(fill, margin, rng)
    if style.clutter and not column and rng.random() < style.clutter:
        fill = _with_other_text(fill, word, font, margin, rng)
    return Image.merge("CMYK", (fill, outline, _cast_shadow(fill, size, rng, style), word_alone))


def _with_other_text(
    fill: Image.Image, word: str, font: ImageFont.FreeTypeFont, margin: int, rng: np.random.Generator
) -> Image.Image:
    """Add other text of the sign where it reaches into the margin: lines above and below, words on either side."""
    fill = fill.copy()
    draw = ImageDraw.Draw(fill)
    width, height = fill.size
    # Only letters of the word itself: the font is checked to have those.
    letters = clusters(word)
    others = ["".join(rng.choice(letters, 2 + len(letters)).tolist()) for _ in range(4)]
    gaps = (margin * rng.uniform(0.15, 0.9, 4)).tolist()
    shown = (rng.random(4) < (0.5, 0.5, 0.3, 0.3)).tolist()
    aside = float(rng.uniform(-0.5, 0.5)) * width / 2
    places = (
        ((width / 2 + aside, margin - gaps[0]), "mb"),
        ((width / 2 - aside, height - margin + gaps[1]), "mt"),
        ((margin - gaps[2], height / 2), "rm"),
        ((width - margin + gaps[3], height / 2), "lm"),
    )
    for other, (place, anchor), drawn in zip(others, places, shown, strict=True):
        if drawn:
            draw.text(place, other, 255, font, anchor=anchor)
    return fill


def _in_dots(fill: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Print letters as a dot matrix or a coarse thermal head does: 9 to 20 dots to the height of a line."""
    dot = size / rng.uniform(11, 24)
    coarse = (max(4, round(fill.width / dot)), max(4, round(fill.height / dot)))
    least = int(rng.integers(70, 150))
    printed = fill.resize(coarse, Image.Resampling.BOX).point(lambda level: 255 * (level > least))
    printed = printed.resize(fill.size, Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        return printed
    x, y = (np.arange(length) * count / length % 1 - 0.5 for length, count in zip(fill.size, coarse, strict=True))
    round_dot = x[None] ** 2 + y[:, None] ** 2 < rng.uniform(0.18, 0.5)
    return Image.fromarray(np.asarray(printed) * round_dot)


def _with_rules(fill: Image.Image, margin: int, rng: np.random.Generator) -> Image.Image:
    """Add the lines of a form: below the text, above it, at its sides."""
    fill = fill.copy()
    draw = ImageDraw.Draw(fill)
    gaps = (margin * rng.uniform(0.2, 0.9, 4)).tolist()
    left, top, right, bottom = gaps[0], gaps[1], fill.width - gaps[2], fill.height - gaps[3]
    sides = (((0, bottom, fill.width, bottom), 0.7), ((0, top, fill.width, top), 0.4),
             ((left, 0, left, fill.height), 0.3), ((right, 0, right, fill.height), 0.3))  # fmt: skip
    width = int(rng.integers(1, 4))
    for line, share in sides:
        if rng.random() < share:
            draw.line(line, 255, width)
    return fill


def _pieces(word: str, font: ImageFont.FreeTypeFont, tracking: int) -> list[tuple[str, float]]:
    """Split a word into what is drawn at once, each with its place to the right of the word's beginning.

    Letters that join, or run from right to left, are not to be tracked.
    """
    if not tracking:
        return [(word, 0.0)]
    return [(letter, font.getlength(word[:index]) + tracking * index) for index, letter in enumerate(word)]


def _cast_shadow(fill: Image.Image, size: int, rng: np.random.Generator, style: RenderStyle) -> Image.Image:
    depth = amount(rng, style.shadow)
    if not depth:
        return Image.new("L", fill.size)
    x, y = (1 + depth * size / 10 * rng.random(2)) * rng.choice([-1, 1], 2)
    blurred = ImageChops.offset(fill, round(x), round(y)).filter(ImageFilter.BoxBlur(rng.random() * size / 16))
    return Image.blend(Image.new("L", fill.size), blurred, min(1.0, 0.3 + depth))


def _warp(masks: Image.Image, margin: int, rng: np.random.Generator, style: RenderStyle) -> Image.Image:
    """Turn, tilt and bend by one mesh of upright strips, each filled from a quadrilateral of the source."""
    width, height = masks.size
    bend = amount(rng, style.curve) * rng.choice([-1, 1]) * 0.5 * height
    strips = _STRIPS if bend else 1
    edges = np.linspace(0, width, strips + 1).astype(int)
    source = _source_of(edges / width, masks.size, margin, bend, rng, style)
    mesh = []
    for strip in range(strips):
        box = (int(edges[strip]), 0, int(edges[strip + 1]), height)
        upper_left, lower_left = source[strip]
        upper_right, lower_right = source[strip + 1]
        mesh.append((box, (*upper_left, *lower_left, *lower_right, *upper_right)))
    return masks.transform(masks.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _along_a_circle(masks: Image.Image, margin: int, rng: np.random.Generator) -> Image.Image:
    """Set the line along a circle, letters turned with it: convex upwards or, less often, downwards."""
    width, height = masks.size
    length, band = width - 2 * margin, height - 2 * margin
    most = min(3.6, length / (0.9 * band))
    sweep = float(rng.uniform(min(0.5, most / 2), most))
    radius = length / sweep
    turned = float(rng.uniform(-0.4, 0.4)) * min(1.0, sweep)
    # Everything within the outer rim: (x, y) from the centre of the circle, y downwards.
    rim = radius + height / 2
    angles = turned + np.linspace(-sweep / 2, sweep / 2, 25) * (width / length)
    corners = np.array([(r * np.sin(a), -r * np.cos(a)) for a in angles for r in (max(0.0, radius - height / 2), rim)])
    low, high = corners.min(0), corners.max(0)
    canvas = (int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1)
    columns, rows = (np.linspace(0, side, _CELLS + 1).astype(int) for side in canvas)
    x, y = columns[None] + low[0], rows[:, None] + low[1]
    angle = np.arctan2(x, -y) - turned
    source = np.stack([width / 2 + angle * radius, height / 2 + radius - np.hypot(x, y)], -1)
    mesh = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            quad = source[row : row + 2, column : column + 2]
            # Behind the centre the angle jumps; no letter is there.
            if np.ptp(angle[row : row + 2, column : column + 2]) < np.pi:
                box = (int(columns[column]), int(rows[row]), int(columns[column + 1]), int(rows[row + 1]))
                points = (quad[0, 0], quad[1, 0], quad[1, 1], quad[0, 1])
                mesh.append((box, tuple(float(value) for point in points for value in point)))
    bent = masks.transform(canvas, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    if rng.random() < 0.3:
        # Downwards: the same circle seen from the other side, letters upright again.
        flipped = masks.transpose(Image.Transpose.ROTATE_180)
        bent = flipped.transform(canvas, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
        bent = bent.transpose(Image.Transpose.ROTATE_180)
    padded = Image.new(bent.mode, (bent.width + 2 * margin, bent.height + 2 * margin))
    padded.paste(bent, (margin, margin))
    return padded


def _source_of(
    across: NDArray[np.float64],
    size: tuple[int, int],
    margin: int,
    bend: float,
    rng: np.random.Generator,
    style: RenderStyle,
) -> list[list[tuple[float, float]]]:
    """Return where the upper and lower end of each upright line come from; ``across`` runs from 0 to 1."""
    width, height = size
    angle = np.deg2rad(style.rotation) * rng.uniform(-1, 1)
    tilt = amount(rng, style.perspective) * rng.uniform(-0.3, 0.3, (4, 2)) * height
    u, v = across[:, None], np.array([[0.0, 1.0]])
    x, y = (u - 0.5) * width, (v - 0.5) * height
    # A long word turned as far as a short one would leave the canvas and be cut off.
    angle *= min(1.0, 3 * height / width)
    turned = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], -1)
    corners = np.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], -1)
    source = turned + corners @ tilt + np.array([width / 2, height / 2])
    source[..., 1] += bend * (0.5 - (2 * u - 1) ** 2)
    _keep_inside(source, size, margin)
    return [[(float(x), float(y)) for x, y in line] for line in source]


def _keep_inside(source: NDArray[np.float64], size: tuple[int, int], margin: int) -> None:
    """Move the edges of the warped canvas outwards until all letters, ``margin`` from its border, are within."""
    width, height = size
    margin -= 2  # the outermost pixels are taken from a little further in
    source[0, :, 0] -= max(0.0, source[0, :, 0].max() - margin)
    source[-1, :, 0] += max(0.0, width - margin - source[-1, :, 0].min())
    source[:, 0, 1] -= max(0.0, source[:, 0, 1].max() - margin)
    source[:, 1, 1] += max(0.0, height - margin - source[:, 1, 1].min())


def _cut_out(masks: Image.Image, rng: np.random.Generator, style: RenderStyle, word: str) -> Image.Image:
    """Cut round the word as an annotator would: seldom tight, never alike on the four sides."""
    box = masks.getchannel(3).getbbox()
    if box is None:
        raise UserError(f"the word {word!r} has no visible glyph", "Leave it out")
    margins = rng.uniform(-0.07 * style.cut, 0.2 + 0.1 * style.cut, 4) * (box[3] - box[1]) + 1
    outwards = np.array([-1, -1, 1, 1])
    left, top, right, bottom = (np.array(box) + outwards * margins.astype(int)).tolist()
    return masks.crop((left, top, right, bottom))


#: Small text of plates: states, makers, dealers.
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
