"""Rendering in the style of given crops: each rendered crop imitates one of them, chosen at random.

Measured of a crop are its height, its width for each character, the colours of ink and ground (with them polarity and
contrast), how uneven the ground is, blur, noise, JPEG quality and slope. All are taken from the same crop,
because they are correlated: small crops are blurred, dark ones noisy.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dptr.cache.crops.dataset import UNREADABLE, WordImages, decode_crop
from dptr.cache.crops.form import NotLabelled
from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES, UnusablePicture

Colour = tuple[float, float, float]
Item = TypeVar("Item")

#: Crops that are measured.
_MEASURED = 500
#: Sum of the luminance table that JPEG has at quality 50.
_TABLE_AT_50 = 3685
#: Blur, in pixels, that a rendered crop has after its letters were scaled.
_OWN_BLUR = 0.5
#: Maximum factor by which a word's width changes towards the imitated crop's.
_MOST_STRETCH = 1.8


@dataclass(frozen=True)
class Look:
    """Appearance of one crop.

    Attributes:
        height: in pixels. character_width: of the crop for each character of its label, in heights; 0: not known.
        ground, ink: red, green and blue, 0 to 255. unevenness: of the ground's luminance, as a standard deviation.
        blur: of edges, as a Gaussian's standard deviation in pixels. noise: standard deviation of luminance.
        quality: of JPEG; 0 for other formats. slope: of the line of text, in degrees.
    """

    height: int
    character_width: float
    ground: Colour
    ink: Colour
    unevenness: float
    blur: float
    noise: float
    quality: int
    slope: float


def looks_of(path: Path) -> tuple[Look, ...]:
    """Measure labelled crops, or a folder of pictures without labels.

    Raises:
        UserError: there is no picture that can be read.
    """
    try:
        crops = WordImages.open_as_written([path])
    except NotLabelled:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        found = looks_of_pictures((file.read_bytes(), "") for file in _some(files))
    else:
        found = looks_of_crops(crops)
    if not found:
        raise UserError(f"no crop in {path} can be read", "Name labelled crops, or a folder of pictures")
    return found


def looks_of_crops(crops: WordImages) -> tuple[Look, ...]:
    """Measure labelled crops, some of them where there are many."""

    def encoded() -> Iterator[tuple[bytes, str]]:
        for index in _some(range(len(crops))):
            try:
                yield crops.encoded(index), crops.samples[index].label
            except UNREADABLE:
                continue

    return looks_of_pictures(encoded())


def looks_of_pictures(encoded: Iterable[tuple[bytes, str]]) -> tuple[Look, ...]:
    """Measure pictures, given as files with their labels; those that cannot be read are left out."""
    looks = []
    for data, label in encoded:
        try:
            looks.append(_look(decode_crop(data), label, _quality(data)))
        except (OSError, ValueError, UnusablePicture):
            continue
    return tuple(looks)


def _some(items: Sequence[Item]) -> list[Item]:
    chosen = np.random.default_rng(0).permutation(len(items))[:_MEASURED]
    return [items[index] for index in sorted(chosen.tolist())]


def _quality(data: bytes) -> int:
    """Return the JPEG quality of a file by its luminance table, 1 to 100; 0 for other formats."""
    with Image.open(io.BytesIO(data)) as opened:
        tables = getattr(opened, "quantization", None)
    if not tables:
        return 0
    scale = sum(tables[0]) / _TABLE_AT_50
    return int(np.clip(50 / scale if scale > 1 else 100 - 50 * scale, 1, 100))


def _look(picture: Image.Image, label: str, quality: int) -> Look:
    pixels = np.asarray(picture, np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    is_ink = _ink(grey)
    ground, ink = (_mean_colour(pixels, mask) for mask in (~is_ink, is_ink))
    contrast = abs(float(grey[is_ink].mean() - grey[~is_ink].mean())) if is_ink.any() else 0.0
    smooth = np.asarray(picture.convert("L").filter(ImageFilter.MedianFilter(3)), np.float32)
    steps = np.abs(np.diff(grey, axis=1))
    steepest = float(np.quantile(steps, 0.97)) if steps.size else 0.0
    return Look(
        height=picture.height,
        character_width=picture.width / picture.height / len(label) if label else 0.0,
        ground=ground,
        ink=ink,
        unevenness=1.48 * float(np.median(np.abs(smooth[~is_ink] - np.median(smooth[~is_ink])))),
        blur=float(np.clip(contrast / (2.5 * max(steepest, 1.0)), 0, picture.height / 12)),
        noise=float(np.clip(1.48 * np.median(np.abs(grey - smooth)[~is_ink]), 0, 24)),
        quality=quality,
        slope=_slope(is_ink),
    )


def _ink(grey: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which pixels are ink: the side of Otsu's threshold that fewer of the border's pixels are on."""
    counts, edges = np.histogram(grey, 64)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    is_bright = grey > edges[int(np.nanargmax(np.where(above > 0, between, -1))) + 1]
    border = np.concatenate([is_bright[0], is_bright[-1], is_bright[:, 0], is_bright[:, -1]])
    ink: NDArray[np.bool_] = ~is_bright if border.mean() > 0.5 else is_bright
    return ink if ink.any() and not ink.all() else np.zeros_like(ink)


def _mean_colour(pixels: NDArray[np.float32], mask: NDArray[np.bool_]) -> Colour:
    red, green, blue = (pixels[mask] if mask.any() else pixels.reshape(-1, 3)).mean(0).tolist()
    return red, green, blue


def _slope(is_ink: NDArray[np.bool_]) -> float:
    """Return how the line of text rises, in degrees; 0 where it is too short to say."""
    height, width = is_ink.shape
    if width < 2 * height or is_ink.sum() < 10:
        return 0.0
    y, x = np.nonzero(is_ink)
    slope = np.cov(x, y)[0, 1] / max(float(x.var()), 1.0)
    return float(np.clip(np.degrees(np.arctan(slope)), -12, 12))


def paint_like(
    look: Look, masks: Image.Image, photo: Image.Image | None, characters: int, rng: np.random.Generator
) -> Image.Image:
    """Paint letters as a crop shows them.

    Args:
        look: of the crop. masks: of :func:`dptr.pipeline.rendering.letters.letter_masks`.
        photo: what is behind the letters, of the masks' size; None: an even ground.
        characters: of the word. rng: the only source of chance.
    """
    ground, ink = np.array(look.ground), np.array(look.ink)
    shift = rng.normal(0, 8) + rng.normal(0, 2, 3)
    corners = np.clip(ground + shift + rng.normal(0, look.unevenness, (2, 2, 1)), 0, 255).astype(np.uint8)
    image = Image.fromarray(corners).resize(masks.size, Image.Resampling.BILINEAR)
    if photo is not None:
        # The background has the crop's unevenness and colour.
        texture = np.asarray(photo.convert("L"), np.float32)[..., None]
        texture = (texture - texture.mean()) * (look.unevenness / max(float(texture.std()), 1.0))
        image = Image.fromarray(np.clip(np.asarray(image, np.float32) + texture, 0, 255).astype(np.uint8))
    image.paste(tuple(np.clip(ink + shift, 0, 255).astype(int).tolist()), mask=masks.getchannel(0))
    height = max(8, round(look.height * rng.uniform(0.9, 1.1)))
    natural = height * image.width / image.height
    width = look.character_width * characters * height * rng.uniform(0.9, 1.1) or natural
    width = float(np.clip(width, natural / _MOST_STRETCH, natural * _MOST_STRETCH))
    image = image.resize((max(8, round(width)), height), Image.Resampling.BICUBIC, reducing_gap=2)
    more_blur = max(look.blur**2 - _OWN_BLUR**2, 0.0) ** 0.5
    image = image.filter(ImageFilter.GaussianBlur(more_blur * rng.uniform(0.8, 1.2)))
    grain = rng.standard_normal((image.height, image.width, 1), np.float32) * look.noise
    image = Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))
    return through_jpeg(image, look.quality) if look.quality else image


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return a picture as it is after JPEG of a quality, RGB."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")
