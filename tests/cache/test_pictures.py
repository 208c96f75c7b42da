from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.errors import UserError
from dptr.cache.pictures import UnusablePicture, decode, photo_thumbnail, read_picture
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.read import open_picture


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
        with pytest.raises(UnusablePicture, match=why):
            decode(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(3 * side)) * side) if side < 1000 else zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    for side in (12_000, 60_000):
        with pytest.raises(UnusablePicture, match="too many pixels"):
            decode(png(side))


BOMB = zlib.compress(bytes(100 << 20), 9)


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"zTXt", b"Comment\0\0" + BOMB),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        chunk(b"iCCP", b"p\0\0" + BOMB),
    ],
    ids=["text", "international text", "colour profile"],
)
def test_a_bomb_in_the_text_or_colour_profile_of_a_png_is_rejected(bomb: bytes) -> None:
    assert decode(png(8)).size == (8, 8)
    with pytest.raises(UnusablePicture, match="too large"):
        decode(png(8, bomb))


def black_text(mode: str) -> Image.Image:
    """A dark stroke on the right half of light paper, in the modes that pictures come in."""
    grey = np.full((16, 40), 230, np.uint8)
    grey[:, 20:] = 20
    if mode == "16-bit grey":
        return Image.fromarray(grey.astype(np.uint16) * 256)
    if mode == "float":
        return Image.fromarray((grey / 230).astype(np.float32))
    if mode == "transparent":
        alpha = Image.fromarray(255 - grey)
        return Image.merge("LA", (Image.new("L", alpha.size, 0), alpha)).convert("RGBA")
    return Image.fromarray(grey).convert("RGB")


def deep_png(bits: int, colours: int) -> bytes:
    """A dark stroke on light paper as 16-bit PNG whose values take ``bits`` bits; colours: PNG's colour type."""
    grey = np.full((16, 40, {0: 1, 2: 3, 4: 2, 6: 4}[colours]), (1 << bits) - 1, np.uint16)
    grey[:, 20:, : 1 if colours in (0, 4) else 3] >>= 4
    if colours in (4, 6):
        grey[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", 40, 16, 16, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("colours", [0, 2, 4, 6], ids=["grey", "colour", "grey and alpha", "colour and alpha"])
def test_values_of_fewer_bits_than_their_file_has_are_seen(bits: int, colours: int, tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(deep_png(bits, colours))
    for image in (read_picture(tmp_path / "deep.png"), open_picture(Image.open(tmp_path / "deep.png"))):
        pixels = np.asarray(image, dtype=float)
        assert pixels[:, :18].mean() > 180
        assert pixels[:, 22:].mean() < 50


@pytest.mark.parametrize("ink", [(255, 255, 255), (250, 250, 120), (235, 235, 235)])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_light_ink_on_transparency_is_seen(ink: tuple[int, int, int], form: str) -> None:
    picture = Image.new("RGBA", (40, 16), (*ink, 0))
    picture.paste((*ink, 255), (20, 0, 40, 16))
    pixels = np.asarray(decode(encoded(picture, form, lossless=True)).convert("L"), dtype=float)
    assert abs(pixels[:, 22:].mean() - pixels[:, :18].mean()) > 150


def test_what_has_dark_parts_keeps_its_white_background() -> None:
    card = Image.new("RGBA", (40, 16), (255, 255, 255, 255))
    card.paste((0, 0, 0, 255), (10, 4, 30, 12))
    card.putpixel((0, 0), (0, 0, 0, 0))
    assert decode(encoded(card, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def on_its_side() -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees to the right when shown
    return encoded(black_text("plain").rotate(90, expand=True), "JPEG", exif=exif)


HARD = {
    "sixteen.png": lambda: encoded(black_text("16-bit grey"), "PNG"),
    "transparent.png": lambda: encoded(black_text("transparent"), "PNG"),
    "float.tif": lambda: encoded(black_text("float"), "TIFF"),
    "turned.jpg": on_its_side,
}


def ways_to_read(path: Path) -> dict[str, Image.Image]:
    (path.parent / "labels.tsv").write_text(f"{path.name}\tword\n")
    crops = WordImages.open([path.parent], Charset.named("36"), Normalization())
    return {
        "labelled crop": crops.image(0),
        "read": open_picture(path),
        "opened by the caller": open_picture(Image.open(path)),
        "background": photo_thumbnail(path, 40),
        "bank": decode(path.read_bytes()),
    }


@pytest.mark.parametrize("name", list(HARD))
def test_every_way_to_read_a_picture_sees_the_same_dark_text_on_light_paper(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(HARD[name]())
    for way, image in ways_to_read(tmp_path / name).items():
        pixels = np.asarray(image, dtype=float)
        assert (image.mode, pixels.shape) == ("RGB", (16, 40, 3)), way
        assert pixels[:, :18].mean() > 180, way
        assert pixels[:, 22:].mean() < 50, way


@pytest.mark.parametrize("name", ["pipe.png", "zero.png", "folder.png"])
def test_what_is_no_regular_file_is_rejected_and_does_not_hang(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe.png":
        os.mkfifo(path)
    elif name == "zero.png":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UnusablePicture, match="not a regular file"):
        read_picture(path)
    with pytest.raises(UserError, match="not a regular file"):
        photo_thumbnail(path, 40)
    (tmp_path / "a.png").write_bytes(png(8))
    (tmp_path / "labels.tsv").write_text(f"a.png\tgood\n{name}\tbad\n")
    crops = WordImages.open([tmp_path], Charset.named("36"), Normalization())
    with pytest.raises(UnreadableImage, match=f"{name} .*not a regular file"):
        crops.image(1)


def test_the_reason_of_a_rejection_is_the_same_at_every_try() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(UnusablePicture) as caught:
            decode(b"no picture")
        reasons.add(str(caught.value))
    assert reasons == {"not a picture"}


def test_a_large_jpeg_comes_out_smaller_for_a_background_and_no_smaller_than_asked() -> None:
    large = encoded(Image.new("L", (1600, 1200), 90), "JPEG")
    assert decode(large).size == (1600, 1200)
    assert decode(large, 320).size == (800, 600)
    assert mean_colour(large) == [90, 90, 90]
    assert decode(large, 320).getpixel((0, 0)) == (90, 90, 90)
