"""Augmentation of word images as in RandAugment (Cubuk et al. 2020): three of many distortions, each half of the time.

There are two sets. ``dptr`` draws a distortion's size evenly up to a maximum, so that most are small. ``parseq`` has
the operations and sizes of PARSeq's training (``strhub/data/augment.py`` of baudm/parseq: magnitude 5 of timm's 10,
which OpenOCR takes over for DPTR): a distortion always has its full size, in either direction; it also solarises, and
it has no zoom.

All of it is plain Pillow on small images: well under a millisecond, so that a worker or two feed a model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Operation = Callable[[Image.Image, np.random.Generator, float], Image.Image]

_OPERATIONS_TRIED = 3
_CHANCE = 0.5
_GREY = (128, 128, 128)


def augment(
    image: Image.Image, rng: np.random.Generator, strength: float = 1.0, distortions: str = "dptr"
) -> Image.Image:
    """Return a distorted copy of a word image, mode RGB; only PARSeq's rotation changes the size.

    Three operations are drawn without repetition and each is applied half of the time.

    Args:
        image: RGB.
        rng: the only source of randomness.
        strength: 0 leaves the image as it is; sizes of distortions are proportional to it.
        distortions: a key of :data:`DISTORTIONS`.
    """
    if strength <= 0:
        return image
    operations = DISTORTIONS[distortions]
    for index in rng.choice(len(operations), _OPERATIONS_TRIED, replace=False):
        if rng.random() < _CHANCE:
            image = operations[int(index)](image, rng, strength)
    return image


def rotate(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Turn about the centre, up to 15 degrees either way."""
    angle = np.deg2rad(15) * strength * rng.uniform(-1, 1)
    return _affine(image, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]))


def shear_across(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Slant like italics."""
    return _affine(image, np.array([[1, 0.45 * strength * rng.uniform(-1, 1)], [0, 1]]))


def shear_down(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Let the line of text rise or fall by up to a third of its height."""
    slope = 0.35 * image.height / image.width * strength * rng.uniform(-1, 1)
    return _affine(image, np.array([[1, 0], [slope, 1]]))


def shift(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Shift the text: slightly across, where letters would be lost, more up or down."""
    x, y = strength * rng.uniform(-1, 1, 2) * (0.05 * image.width, 0.15 * image.height)
    return _affine(image, np.eye(2), (x, y))


def zoom(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Cut tighter or wider than the annotator did."""
    return _affine(image, np.diag(1 + strength * rng.uniform(-0.05, 0.15, 2)))


def brightness(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Brighten or darken."""
    return ImageEnhance.Brightness(image).enhance(_factor(rng, strength))


def contrast(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Raise or lower the contrast."""
    return ImageEnhance.Contrast(image).enhance(_factor(rng, strength))


def colour(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Strengthen or fade the colours."""
    return ImageEnhance.Color(image).enhance(_factor(rng, strength))


def auto_contrast(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Stretch each channel to the full range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Spread the tones evenly."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Make light text dark and dark text light."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Reduce each channel to few tones."""
    return ImageOps.posterize(image, 8 - int(rng.integers(1, 2 + round(3 * min(1.0, strength)))))


def blur(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blur by up to a sixteenth of the height."""
    return image.filter(ImageFilter.GaussianBlur(strength * rng.uniform(0, 1) * image.height / 16))


def poisson_noise(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Add the grain of few photons: variance in proportion to brightness."""
    pixels = np.asarray(image, np.float32)
    # At these counts a normal variable with the same variance approximates a Poisson one, and is faster to draw.
    grain = rng.standard_normal(pixels.shape, np.float32) * np.sqrt(pixels * (4 * strength * rng.uniform(0, 1)))
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


OPERATIONS: tuple[Operation, ...] = (
    rotate, shear_across, shear_down, shift, zoom, brightness, contrast, colour, auto_contrast, equalize, invert,
    posterize, blur, poisson_noise,
)  # fmt: skip


def _parseq_rotate(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Turn by 15 degrees; the picture grows so that no character is cut off."""
    angle = 15 * strength * _sign(rng)
    return image.rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=_GREY)


def _parseq_shear_x(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    return _mapped(image, (1, 0.45 * strength * _sign(rng), 0, 0, 1, 0))


def _parseq_shear_y(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    return _mapped(image, (1, 0, 0, 0.1 * strength * _sign(rng), 1, 0))


def _parseq_shift_x(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    return _mapped(image, (1, 0, 0.05 * image.width * strength * _sign(rng), 0, 1, 0))


def _parseq_shift_y(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    return _mapped(image, (1, 0, 0, 0, 1, 0.15 * image.height * strength * _sign(rng)))


def _parseq_enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    def enhance(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
        return kind(image).enhance(max(0.1, 1 + 0.45 * strength * _sign(rng)))

    enhance.__name__ = f"parseq_{kind.__name__.lower()}"
    return enhance


def _parseq_posterize(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Leave 2 bits to each channel."""
    return ImageOps.posterize(image, max(1, 4 - int(2 * strength)))


def solarize(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Invert values of 128 and more."""
    return ImageOps.solarize(image, max(0, 256 - int(128 * strength)))


def solarize_add(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Add 55 to values below 128."""
    added = min(128, int(55 * strength))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def _parseq_blur(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blur by 2 pixels, and by at most a fiftieth of the longer side, but 1."""
    return image.filter(ImageFilter.GaussianBlur(round(min(2 * strength, max(1, 0.02 * max(image.size))))))


def _parseq_noise(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Add to each pixel, in all channels alike, a Poisson variable of mean 21 or less with a random sign."""
    mean = round(min(20 * strength, max(1, 0.2 * max(image.size)))) | 1
    size = (image.height, image.width, 1)
    noise = rng.poisson(mean, size) * rng.choice((-1, 1), size)
    return Image.fromarray(np.clip(np.asarray(image, np.int64) + noise, 0, 255).astype(np.uint8))


#: Sets of distortions by their names in recipes (``finetune.distortions``).
DISTORTIONS: dict[str, tuple[Operation, ...]] = {
    "dptr": OPERATIONS,
    "parseq": (
        auto_contrast, equalize, invert, _parseq_rotate, _parseq_posterize, solarize, solarize_add,
        _parseq_enhanced(ImageEnhance.Color), _parseq_enhanced(ImageEnhance.Contrast),
        _parseq_enhanced(ImageEnhance.Brightness), _parseq_shear_x, _parseq_shear_y, _parseq_shift_x, _parseq_shift_y,
        _parseq_blur, _parseq_noise,
    ),
}  # fmt: skip


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _mapped(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Map output to input about the upper left corner; pixels from outside are grey."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _factor(rng: np.random.Generator, strength: float) -> float:
    return max(0.0, 1 + 0.6 * strength * float(rng.uniform(-1, 1)))


def _affine(image: Image.Image, matrix: np.ndarray, offset: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Map output to input about the centre; pixels from outside get the image's mean colour."""
    centre = np.array([image.width / 2, image.height / 2])
    x, y = centre - matrix @ centre + offset
    (a, b), (c, d) = matrix.tolist()
    mean = tuple(np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist())
    coefficients = (a, b, float(x), c, d, float(y))
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=mean)
