from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.pictures import UnusablePicture
from dptr.pipeline.photos.crops import (
    Box,
    CropSettings,
    central_square,
    draw_crop,
    draw_tokens,
    thumbnail,
)

SHA = hashlib.sha256(b"photo").hexdigest()


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
    (least, most), (narrow, wide) = sorted((area, other_area)), sorted((aspect, other_aspect))
    settings = CropSettings(8, least, most, narrow, wide, smallest_side=16)
    box, _ = draw_crop((width, height), settings, 0, SHA, number)
    assert 0 <= box.x <= box.x + box.width <= width
    assert 0 <= box.y <= box.y + box.height <= height
    assert min(box.width, box.height) >= 16
    # Rounding to pixels and the smallest side may exceed a range, by no more than a pixel a side.
    if min(box.width, box.height) > 16:
        assert (box.width - 1) * (box.height - 1) <= most * width * height
        assert (box.width - 1) / (box.height + 1) <= wide
        assert (box.width + 1) / (box.height - 1) >= narrow


@pytest.mark.parametrize(
    ("size", "box"),
    [((640, 480), Box(80, 0, 480, 480)), ((480, 640), Box(0, 80, 480, 480)), ((50, 50), Box(0, 0, 50, 50))],
)
def test_the_crop_of_a_whole_photo_is_its_central_square(size: tuple[int, int], box: Box) -> None:
    assert draw_crop(size, CropSettings(1, kind="whole"), 0, SHA, 0)[0] == box


def test_a_whole_photo_is_one_crop() -> None:
    with pytest.raises(UserError, match="one crop of each photo, not 8"):
        CropSettings(kind="whole")


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


def test_small_photos_and_impossible_settings_are_rejected() -> None:
    with pytest.raises(UnusablePicture, match="too small: 1x1"):
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
