from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dptr.cache.errors import UserError
from dptr.pipeline.photos.crops import (
    Box,
    CropSettings,
    UnusablePhoto,
    central_square,
    decode,
    draw_crop,
    draw_tokens,
    thumbnail,
)

SHA = hashlib.sha256(b"photo").hexdigest()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def mean_colour(data: bytes) -> list[int]:
    image = decode(data)
    assert image.mode == "RGB"
    return [round(value) for value in np.asarray(image).reshape(-1, 3).mean(0)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_formats(kind: str) -> None:
    data = encoded(Image.new("RGB", (20, 10), (250, 20, 20)), kind)
    assert np.allclose(mean_colour(data), [250, 20, 20], atol=4)


def test_modes_become_rgb_with_their_brightness() -> None:
    deep = Image.fromarray(np.full((4, 4), 200 * 256, np.uint16))
    assert mean_colour(encoded(deep, "PNG")) == [200, 200, 200]
    assert mean_colour(encoded(Image.new("L", (4, 4), 90), "PNG")) == [90, 90, 90]
    assert mean_colour(encoded(Image.new("P", (4, 4), 0), "PNG")) == [0, 0, 0]
    assert mean_colour(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")) == [255, 255, 255]
    assert mean_colour(encoded(Image.new("1", (4, 4), 1), "PNG")) == [255, 255, 255]
    cyan = mean_colour(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    assert np.allclose(cyan, [0, 255, 255], atol=4)
    real = Image.fromarray(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4))
    assert 120 <= mean_colour(encoded(real, "TIFF"))[0] <= 135


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert mean_colour(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert decode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


def test_what_cannot_be_decoded_says_why() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, "JPEG")
    for data, why in ((b"", "empty file"), (b"just text", "not a picture"), (whole[: len(whole) // 2], "truncated")):
        with pytest.raises(UnusablePhoto, match=why):
            decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        with pytest.raises(UnusablePhoto, match="too many pixels"):
            decode(bomb)


@given(
    st.integers(32, 3000),
    st.integers(32, 3000),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
    st.floats(0.2, 5.0),
    st.floats(0.2, 5.0),
    st.integers(0, 50),
)
def test_crops_stay_inside_and_within_the_ranges(
    width: int, height: int, area: float, other_area: float, aspect: float, other_aspect: float, number: int
) -> None:
    areas, aspects = sorted((area, other_area)), sorted((aspect, other_aspect))
    settings = CropSettings(8, *areas, *aspects, smallest_side=16)
    box, _ = draw_crop((width, height), settings, 0, SHA, number)
    assert 0 <= box.x <= box.x + box.width <= width
    assert 0 <= box.y <= box.y + box.height <= height
    assert min(box.width, box.height) >= 16
    # Rounding to pixels and the smallest side may exceed a range, by no more than a pixel a side.
    if min(box.width, box.height) > 16:
        assert (box.width - 1) * (box.height - 1) <= areas[1] * width * height
        assert (box.width - 1) / (box.height + 1) <= aspects[1]
        assert (box.width + 1) / (box.height - 1) >= aspects[0]


def test_a_crop_depends_on_seed_photo_and_number_only() -> None:
    settings = CropSettings()
    first = draw_crop((640, 480), settings, 0, SHA, 0)[0]
    # Written down: a bank must go on with the same crops under any later version.
    assert first == Box(x=96, y=137, width=484, height=297)
    others = [
        draw_crop((640, 480), settings, 1, SHA, 0)[0],
        draw_crop((640, 480), settings, 0, SHA, 1)[0],
        draw_crop((640, 480), settings, 0, hashlib.sha256(b"other").hexdigest(), 0)[0],
    ]
    assert len({first, *others}) == 4


def test_areas_fill_their_range() -> None:
    settings = CropSettings(min_area=0.1, max_area=0.3, min_aspect=0.8, max_aspect=1.25)
    boxes = [draw_crop((1000, 1000), settings, 0, SHA, number)[0] for number in range(400)]
    shares = np.array([box.width * box.height / 1e6 for box in boxes])
    assert 0.1 <= shares.min() < 0.11
    assert 0.29 < shares.max() <= 0.301
    assert abs(shares.mean() - 0.2) < 0.01


def test_small_photos_and_impossible_settings_are_refused() -> None:
    with pytest.raises(UnusablePhoto, match="too small: 1x1"):
        draw_crop((1, 1), CropSettings(), 0, SHA, 0)
    for bad in ({"min_area": 0.6}, {"max_area": 1.5}, {"min_aspect": 3.0}, {"crops_per_image": 0}):
        with pytest.raises(UserError):
            CropSettings(**bad)


def test_tokens_are_sorted_and_distinct() -> None:
    generator = draw_crop((100, 100), CropSettings(), 0, SHA, 0)[1]
    tokens = draw_tokens(generator, 197, 78)
    assert len(set(tokens.tolist())) == 78
    assert np.all(np.diff(tokens) > 0)
    assert draw_tokens(generator, 50, 50).tolist() == list(range(50))


def test_thumbnails_are_small_and_the_middle_is_square() -> None:
    image = Image.new("RGB", (400, 100))
    assert Image.open(io.BytesIO(thumbnail(image))).size == (64, 16)
    assert central_square(image).size == (100, 100)
