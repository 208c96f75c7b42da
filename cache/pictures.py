"""Decoding of pictures to upright RGB, for photos and word images alike.

Headers that state more pixels than memory holds and files without an end (pipes) are rejected. Reasons are constant
texts, so that rejected pictures can be counted.
"""

from __future__ import annotations

import io
import stat
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from dptr.cache.errors import UserError

#: Pillow's formats that are read, with the endings of their files; it may have been built without the last two.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx"),
}
_BUILT_IN = {"AVIF": "avif", "JPEG2000": "jpg_2000"}
_FORMATS = tuple(name for name in _SUFFIXES if name not in _BUILT_IN or features.check(_BUILT_IN[name]))

#: Endings of picture files that can be read here, in lower case.
IMAGE_SUFFIXES = tuple(suffix for name in _FORMATS for suffix in _SUFFIXES[name])
#: Suffixes of picture formats that cannot be read: such files are rejected, not ignored.
UNREADABLE_SUFFIXES = tuple(
    suffix
    for suffix in (
        *(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes),
        *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    )
    if suffix not in IMAGE_SUFFIXES
)

#: Maximum size of a picture's file, in bytes.
LARGEST_FILE = 1 << 29

#: Maximum number of pixels: a header can state more than memory holds.
MOST_PIXELS = 100_000_000

_THUMBNAILS_KEPT = 512
#: 16-bit grey whose brightest pixel is below this has fewer significant bits.
_LEAST_16_BIT = 1 << 14
#: Ink on transparency is light if its darkest part is above this grey.
_LIGHT_INK = 170


class UnusablePicture(UserError):
    """A picture that cannot be used; the message is the reason, without the picture's name."""


def decode(encoded: bytes, side: int | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB; of several frames, the first.

    Transparent parts become white, or black where ink is light. 16-bit values keep their upper byte; where they take
    fewer bits (10 or 12, as sensors give), and in other deep grey, values are stretched from their own range.

    Args:
        encoded: a file's bytes, of a format in :data:`IMAGE_SUFFIXES`.
        side: a JPEG may come out smaller, each side still at least so many pixels long, which is faster.

    Raises:
        UnusablePicture: not a picture, cut short, or too many pixels.
    """
    if not encoded:
        raise UnusablePicture("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnusablePicture(f"too many pixels: {image.width}x{image.height}")
            if side is not None:
                image.draft(None, (side, side))
            return upright_rgb(image)
    except (UnusablePicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnusablePicture(f"too many pixels: {error}") from None
    except UnidentifiedImageError:
        raise UnusablePicture("not a picture") from None
    # Pillow raises many exception types on damaged bytes, and one bad picture must not end a long run.
    except Exception as error:
        raise UnusablePicture(f"cannot be decoded: {type(error).__name__}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Rotate an opened picture by its EXIF orientation and convert it to 8-bit RGB; see :func:`decode`."""
    # Pillow keeps the upper byte of 16-bit colours, which is almost empty for values of fewer bits.
    is_deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        if values.max(initial=0) < _LEAST_16_BIT:
            return _stretched(values.astype(np.float64))
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(np.asarray(image, dtype=np.float64))
    if image.has_transparency_data:
        image = _brightened(image.convert("RGBA"), is_deep)
        opaque = Image.new("RGBA", image.size, "black" if _is_light_ink(image) else "white")
        opaque.alpha_composite(image)
        return opaque.convert("RGB")
    return _brightened(image.convert("RGB"), is_deep)


def unreadable_format(name: str) -> str | None:
    """Return the reason if a file of this name is in an unsupported picture format, else None."""
    suffix = Path(name).suffix.lower()
    return f"picture format cannot be read: {suffix}" if suffix in UNREADABLE_SUFFIXES else None


def read_encoded(path: Path) -> bytes:
    """Return the bytes of a picture's file, still encoded.

    Raises:
        UnusablePicture: not a regular file (a pipe, a device, a folder), or too large for a picture.
        OSError: it is missing or not readable.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusablePicture("not a regular file")
    if status.st_size > LARGEST_FILE:
        raise UnusablePicture(f"file too large: {status.st_size} bytes")
    return path.read_bytes()


def read_picture(path: Path, side: int | None = None) -> Image.Image:
    """Read and decode a picture's file; see :func:`decode`.

    Raises:
        UnusablePicture: it cannot be read or decoded.
    """
    try:
        encoded = read_encoded(path)
    except OSError as error:
        raise UnusablePicture(f"cannot be read: {error.strerror or error}") from error
    return decode(encoded, side)


@lru_cache(maxsize=_THUMBNAILS_KEPT)
def photo_thumbnail(path: Path, side: int) -> Image.Image:
    """Return a photo, RGB, at most ``side`` pixels each way. The result is cached: do not change it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        photo = read_picture(path, side)
    except UnusablePicture as error:
        raise UserError(f"photo {path} cannot be read: {error}", "Remove it from the photos") from error
    photo.thumbnail((side, side))
    return photo


def _brightened(image: Image.Image, is_deep: bool) -> Image.Image:
    """Scale the colours of a 16-bit picture whose values take fewer bits, so that its brightest is white."""
    pixels = np.asarray(image)
    brightest = int(pixels[..., :3].max(initial=0)) if is_deep else 0
    if not 0 < brightest < _LEAST_16_BIT >> 8:
        return image
    scaled = pixels.copy()
    scaled[..., :3] = pixels[..., :3].astype(np.float64) * 255 / brightest
    return Image.fromarray(scaled)


def _is_light_ink(image: Image.Image) -> bool:
    """Return whether an RGBA picture has only light ink on a transparent background, invisible on white."""
    alpha, grey = np.asarray(image.getchannel("A")), np.asarray(image.convert("L"))
    ink = grey[alpha >= 128]
    return bool(ink.size and alpha.min() < 128 and np.quantile(ink, 0.05) > _LIGHT_INK)


def _stretched(values: NDArray[np.float64]) -> Image.Image:
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise UnusablePicture("no pixel is a finite number")
    low, high = finite.min(), finite.max()
    grey = np.nan_to_num((values - low) / max(high - low, 1e-12) * 255, posinf=255, neginf=0).clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
