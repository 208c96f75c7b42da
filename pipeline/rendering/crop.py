"""Rendering of one word: letters, colours, light, degradation; the caller's generator is the only randomness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from dptr.cache.errors import UserError
from dptr.cache.pictures import photo_thumbnail
from dptr.pipeline.rendering.fonts import Font
from dptr.pipeline.rendering.letters import letter_masks
from dptr.pipeline.rendering.like import paint_like, through_jpeg
from dptr.pipeline.rendering.style import NATURAL, RenderStyle, amount, chance

Colour = tuple[int, int, int]

# Backgrounds are blurred anyway, and small photos fit into memory.
_PHOTO_SIDE = 320
_COLOURS_TRIED = 12
#: Share of crops with a photo as background when they imitate given crops.
_WITH_PHOTO = 0.7


def render_one(
    word: str,
    font: Font,
    rng: np.random.Generator,
    style: RenderStyle = NATURAL,
    photos: Sequence[Path] = (),
) -> Image.Image:
    """Render ``word`` as a word crop: RGB, as high as ``style`` says and as wide as the word needs (or a column).

    Args:
        word: what is written; ``font`` has to cover it.
        font: from :func:`dptr.pipeline.rendering.fonts.find_fonts`.
        rng: the only source of randomness.
        style: how strong each effect may be.
        photos: image files that backgrounds may be cut from.

    Raises:
        UserError: a photo cannot be read, ``word`` leaves no ink, or the font is damaged.
    """
    column = bool(style.vertical) and rng.random() < style.vertical and font.covers(word, column=True)
    try:
        masks = letter_masks(word, font, rng, style, column)
    except OSError as error:
        raise UserError(f"{font.path} cannot draw {word!r} ({error})", "Leave this font out (--fonts)") from error
    if style.looks:
        look = style.looks[int(rng.integers(len(style.looks)))]
        has_photo = bool(photos) and rng.random() < _WITH_PHOTO
        photo = _cut_from_photo(photos[int(rng.integers(len(photos)))], masks.size, rng) if has_photo else None
        return paint_like(look, masks, photo, len(word), rng)
    image = _paint(masks, _background(masks.size, rng, style, photos), rng, style)
    image = _damage(_light(image, rng, style), rng, style)
    return image.transpose(Image.Transpose.ROTATE_270) if column else image


def _background(
    size: tuple[int, int], rng: np.random.Generator, style: RenderStyle, photos: Sequence[Path]
) -> Image.Image:
    if chance(rng, style.paper):
        return Image.new("RGB", size, _tinted(int(255 - abs(rng.normal(0, 35))), 12, rng))
    if photos and rng.random() < style.photos:
        return _cut_from_photo(photos[int(rng.integers(len(photos)))], size, rng)
    corners = _colours(rng, 4).reshape(2, 2, 3)
    gradient = corners[0, 0] + (corners - corners[0, 0]) * amount(rng, 0.7)
    return Image.fromarray(gradient.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _cut_from_photo(path: Path, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    photo = photo_thumbnail(path, _PHOTO_SIDE)
    most = min(photo.width / size[0], photo.height / size[1])
    scale = most * rng.uniform(0.3, 1)
    width, height = size[0] * scale, size[1] * scale
    x, y = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    cut = photo.resize(size, Image.Resampling.BILINEAR, (x, y, x + width, y + height))
    # Busy backgrounds are smoothed, so that text is legible.
    return Image.blend(cut, Image.new("RGB", size, _mean(cut)), float(rng.uniform(0.2, 0.7)))


def _paint(masks: Image.Image, background: Image.Image, rng: np.random.Generator, style: RenderStyle) -> Image.Image:
    fill, outline, shadow, _ = masks.split()
    if style.faint:
        fill = _faded(fill, amount(rng, style.faint), rng)
    behind = _mean(background)
    ink = _contrasting(behind, rng, style.contrast)
    if chance(rng, style.paper) and _luminance(behind) > 140:
        ink = _tinted(int(rng.integers(0, max(1, int(_luminance(behind) - style.contrast)))), 40, rng)
    if shadow.getbbox():
        dark = ImageChops.multiply(background, Image.new("RGB", background.size, (90, 90, 90)))
        background = Image.composite(dark, background, shadow)
    if outline.getbbox():
        background.paste(_contrasting(ink, rng, style.contrast), mask=outline)
    fading = amount(rng, style.gradient) if style.gradient else 0.0
    if fading:
        background.paste(
            _gradient(ink, _contrasting(_mean(background), rng, style.contrast), fading, fill.size, rng), mask=fill
        )
    elif chance(rng, style.relief):
        _emboss(background, fill, ink, rng)
    else:
        background.paste(ink, mask=fill)
    return background


def _emboss(image: Image.Image, fill: Image.Image, ink: Colour, rng: np.random.Generator) -> None:
    """Raise or sink the letters: one edge bright, the other dark, painted in ``ink`` or in what is around them."""
    if rng.random() < 0.75:
        image.paste(ink, mask=fill)
    depth = int(rng.choice([-1, 1])) * max(1, round(fill.height / 40))
    across = int(rng.integers(-1, 2)) * abs(depth)
    strength = rng.uniform(0.4, 0.9)
    for colour, sign in (((255, 255, 255), 1), ((0, 0, 0), -1)):
        edge = ImageChops.subtract(fill, ImageChops.offset(fill, sign * across, sign * depth))
        image.paste(colour, mask=edge.point(lambda level: level * strength))


def _faded(fill: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Take ink off in clouds, and off some rows and columns, as worn ribbons and print heads leave it out."""
    if not strength:
        return fill
    cells = (2 + fill.height // 24, 2 + fill.width // 24)
    cloud = Image.fromarray(rng.integers(0, 256, cells, np.uint8)).resize(fill.size, Image.Resampling.BICUBIC)
    left = 1 - strength * np.asarray(cloud, np.float32) / 255
    if rng.random() < 0.4:
        left *= np.where(rng.random(fill.height) < 0.12, 1 - strength, 1).astype(np.float32)[:, None]
    if rng.random() < 0.3:
        left *= np.where(rng.random(fill.width) < 0.06, 1 - strength, 1).astype(np.float32)
    return Image.fromarray((np.asarray(fill) * left).astype(np.uint8))


def _tinted(level: int, spread: int, rng: np.random.Generator) -> Colour:
    """Return a grey of that level, with a tint of at most ``spread``."""
    tint = rng.uniform(-1, 1, 3) * spread * rng.random() ** 3
    red, green, blue = np.clip(level + tint, 0, 255).astype(int).tolist()
    return red, green, blue


def _gradient(
    first: Colour, second: Colour, share: float, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """Fade from one colour towards another by ``share``, in any direction."""
    corners = rng.random((2, 2, 1)) * share
    colours = np.array(first) + (np.array(second) - np.array(first)) * corners
    return Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _contrasting(colour: Colour, rng: np.random.Generator, least: float) -> Colour:
    """Draw a colour whose luminance differs from ``colour``'s by ``least``; black or white where luck fails."""
    for red, green, blue in _colours(rng, _COLOURS_TRIED).astype(int).tolist():
        if abs(_luminance((red, green, blue)) - _luminance(colour)) >= least:
            return red, green, blue
    return (0, 0, 0) if _luminance(colour) > 127 else (255, 255, 255)


def _colours(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw colours as signs have them, greyish more often than not: shape (count, 3), 0 to 255."""
    grey = rng.uniform(0, 255, (count, 1))
    return grey + (rng.uniform(0, 255, (count, 3)) - grey) * rng.random((count, 1)) ** 2


def _mean(image: Image.Image) -> Colour:
    red, green, blue = np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist()
    return red, green, blue


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _light(image: Image.Image, rng: np.random.Generator, style: RenderStyle) -> Image.Image:
    """Darken unevenly, as lamps and shadows do."""
    strength = amount(rng, style.light)
    if not strength:
        return image
    corners = 255 * (1 - 0.7 * strength * rng.random((2, 3)))
    light = Image.fromarray(corners.astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))


def _damage(image: Image.Image, rng: np.random.Generator, style: RenderStyle) -> Image.Image:
    """Degrade as cameras and files do, in this order: distance, focus or motion, sensor, compression."""
    shrink = 1 - 0.6 * amount(rng, style.shrink)
    if shrink < 1:
        image = image.resize(
            (max(8, round(image.width * shrink)), max(8, round(image.height * shrink))), Image.Resampling.BILINEAR
        )
    blur = amount(rng, style.blur) * image.height / 14
    if blur:
        along, across = rng.uniform(0.4, 1, 2)
        image = image.filter(ImageFilter.BoxBlur((blur * float(along), blur * float(across))))
    motion = amount(rng, style.motion) * image.height / 8 if style.motion else 0.0
    if motion >= 0.5:
        image = image.filter(ImageFilter.BoxBlur((motion, 0)))
    exposure = amount(rng, style.exposure) if style.exposure else 0.0
    if exposure:
        image = _expose(image, exposure, rng)
    if chance(rng, style.grey):
        image = image.convert("L").convert("RGB")
    noise = amount(rng, style.noise) * 24
    if noise:
        pixels = np.asarray(image, np.float32)
        grain = rng.standard_normal((*pixels.shape[:2], 1), np.float32)
        image = Image.fromarray(np.clip(pixels + noise * grain, 0, 255).astype(np.uint8))
    jpeg = amount(rng, style.jpeg)
    return through_jpeg(image, round(90 - 75 * jpeg)) if jpeg else image


def _expose(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Take the picture with too little light, with too much, so that bright parts run into each other, or in haze."""
    kind = int(rng.integers(3))
    if kind == 0:
        return image.point(lambda level: level * (1 - 0.8 * strength))
    if kind == 1:
        middle = sum(_mean(image)) / 3
        return image.point(lambda level: middle + 60 * strength + (level - middle) * (1 + 2 * strength))
    haze = Image.new("RGB", image.size, tuple(int(level) for level in _colours(rng, 1)[0]))
    return Image.blend(image, haze, 0.7 * strength)
