"""Augmentation of word images in the manner of PARSeq: a few of many small distortions, each by chance.

All of it is plain Pillow on small images: well under a millisecond, so that a worker or two feed a model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Operation = Callable[[Image.Image, np.random.Generator, float], Image.Image]

_OPERATIONS_TRIED = 3
_CHANCE = 0.5


def augment(image: Image.Image, rng: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """Return a distorted copy of a word image, of the same size and mode RGB.

    Three operations are drawn without repetition and each is applied half of the time.

    Args:
        image: RGB.
        rng: the only source of chance.
        strength: 0 leaves the image as it is, 1 is as strong as PARSeq's.
    """
    if strength <= 0:
        return image
    for index in rng.choice(len(OPERATIONS), _OPERATIONS_TRIED, replace=False):
        if rng.random() < _CHANCE:
            image = OPERATIONS[int(index)](image, rng, strength)
    return image


def rotate(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Turn about the centre, up to 15 degrees either way."""
    angle = np.deg2rad(15) * strength * rng.uniform(-1, 1)
    return _affine(image, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]))


def shear_across(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Slant as italics do."""
    return _affine(image, np.array([[1, 0.45 * strength * rng.uniform(-1, 1)], [0, 1]]))


def shear_down(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Let the line of text rise or fall by up to a third of its height."""
    slope = 0.35 * image.height / image.width * strength * rng.uniform(-1, 1)
    return _affine(image, np.array([[1, 0], [slope, 1]]))


def shift(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Move the text: a little across, where letters would be lost, more up or down."""
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
    """Leave few tones to each channel."""
    return ImageOps.posterize(image, 8 - int(rng.integers(1, 2 + round(3 * min(1.0, strength)))))


def blur(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Blur by up to a sixteenth of the height."""
    return image.filter(ImageFilter.GaussianBlur(strength * rng.uniform(0, 1) * image.height / 16))


def poisson_noise(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Add the grain of few photons: variance in proportion to brightness."""
    pixels = np.asarray(image, np.float32)
    # At these counts a Poisson variable is a normal one with its variance, and much quicker to draw.
    grain = rng.standard_normal(pixels.shape, np.float32) * np.sqrt(pixels * (4 * strength * rng.uniform(0, 1)))
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


OPERATIONS: tuple[Operation, ...] = (
    rotate, shear_across, shear_down, shift, zoom, brightness, contrast, colour, auto_contrast, equalize, invert,
    posterize, blur, poisson_noise,
)  # fmt: skip


def _factor(rng: np.random.Generator, strength: float) -> float:
    return max(0.0, 1 + 0.6 * strength * float(rng.uniform(-1, 1)))


def _affine(image: Image.Image, matrix: np.ndarray, offset: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """Map about the centre, output to input; what comes from outside is filled with the image's mean colour."""
    centre = np.array([image.width / 2, image.height / 2])
    x, y = centre - matrix @ centre + offset
    (a, b), (c, d) = matrix.tolist()
    mean = tuple(np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0].tolist())
    coefficients = (a, b, float(x), c, d, float(y))
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=mean)
