from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dptr.cache.crops.augmentation import (
    DISTORTIONS,
    augment,
    invert,
    poisson_noise,
    rotate,
    shear_across,
    shear_down,
    shift,
)


@pytest.fixture
def image():
    """A dark bar on light ground with a gradient, so that every operation changes something."""
    pixels = np.tile(np.linspace(150, 230, 128)[None, :, None], (32, 1, 3))
    pixels[12:20, 30:100] = (40, 60, 90)
    return Image.fromarray(pixels.astype(np.uint8))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int64)


@pytest.mark.parametrize(
    ("distortions", "operation"),
    [(name, operation) for name, operations in DISTORTIONS.items() for operation in operations],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_each_operation_changes_the_image_and_keeps_its_shape(distortions, operation, image):
    before = image.copy()
    changed = operation(image, rng(3), 1.0)
    assert changed.mode == "RGB"
    if operation.__name__ == "_parseq_rotate":  # the picture grows
        assert image == before
        return
    assert changed.size == image.size
    assert (pixels_of(changed) != pixels_of(image)).any()
    assert image == before


def test_parseqs_set_has_solarise_and_no_zoom():
    """The sixteen of its training: timm's increasing set without sharpness, and blur and Poisson noise."""
    names = [operation.__name__.removeprefix("_parseq_") for operation in DISTORTIONS["parseq"]]
    assert len(set(names)) == 16
    assert {"solarize", "solarize_add"} <= set(names)
    assert "zoom" not in names


def test_parseqs_distortions_have_their_full_size():
    """Turned by 15 degrees either way: a picture of 128 x 32 becomes 128 cos 15 + 32 sin 15 wide."""
    image = Image.fromarray(rng(0).integers(0, 256, (32, 128, 3), dtype=np.uint8))
    rotate_fully = next(one for one in DISTORTIONS["parseq"] if one.__name__ == "_parseq_rotate")
    sizes = {rotate_fully(image, rng(index), 1.0).size for index in range(20)}
    assert {(abs(width - 132) <= 2, abs(height - 64) <= 2) for width, height in sizes} == {(True, True)}
    pixels = np.full((32, 128, 3), 100, np.uint8)
    bright = next(one for one in DISTORTIONS["parseq"] if one.__name__ == "parseq_brightness")
    values = {int(pixels_of(bright(Image.fromarray(pixels), rng(index), 1.0))[0, 0, 0]) for index in range(20)}
    assert values == {55, 145}


def test_same_generator_same_image(image):
    assert augment(image, rng(1, 7), 1.0) == augment(image, rng(1, 7), 1.0)
    assert len({augment(image, rng(1, index), 1.0).tobytes() for index in range(50)}) > 30


def test_no_strength_changes_nothing(image):
    assert all(augment(image, rng(index), 0.0) == image for index in range(20))


@pytest.mark.parametrize("operation", [rotate, shear_across, shear_down, shift, poisson_noise])
def test_strength_scales_the_effect(operation, image):
    def effect(strength: float) -> float:
        changes = [pixels_of(operation(image, rng(index), strength)) - pixels_of(image) for index in range(20)]
        return float(np.abs(changes).mean())

    assert effect(0.2) < effect(1.0)


def test_invert_is_exact(image):
    assert (pixels_of(invert(image, rng(0), 1.0)) == 255 - pixels_of(image)).all()


def test_the_text_stays_in_the_image():
    """Dark ink on white: after any augmentation most of the ink is still within, or the label would be wrong."""
    white = np.full((32, 128, 3), 255, np.uint8)
    white[12:20, 12:116] = 0
    ink = Image.fromarray(white)
    for index in range(100):
        for operation in (rotate, shear_across, shear_down, shift):
            moved = pixels_of(operation(ink, rng(index), 1.0))
            assert (moved < 100).all(-1).sum() > 0.7 * 8 * 104
