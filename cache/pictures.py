"""Photos as small as backgrounds and wrong answers need them: few enough pixels that a folder's can stay in memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from dptr.cache.errors import UserError

_KEPT = 512


@lru_cache(maxsize=_KEPT)
def photo_thumbnail(path: Path, side: int) -> Image.Image:
    """Return a photo, RGB, shrunk to at most ``side`` pixels each way. It is shared between callers: do not change it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            photo = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"photo {path} cannot be read ({error})", "Remove it from the photos") from error
    photo.thumbnail((side, side))
    return photo
