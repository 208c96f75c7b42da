"""Pictures of words to predictions: preprocessing of pictures of any shape, and test-time views.

A picture much higher than wide shows a word turned by 90 degrees, one from top to bottom, or a narrow letter. So it is
read as it is, padded to a square, and turned either way, and the most confident reading counts. A turned reading of one
character does not: a letter on its side looks like another. Of held-out crops that are higher than wide (33 of ICDAR
2015, 11 of IIIT5K, 120 of SROIE) 19, 9 and 88 are read exactly, instead of 8, 9 and 88 upright alone, and 19, 9 and 79
when turned letters count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from dptr.cache.crops.dataset import preprocess
from dptr.cache.errors import is_out_of_memory
from dptr.cache.progress import note
from dptr.cache.text.reading_order import PORTRAIT
from dptr.trainer.model.recognizer import Prediction, Recognizer

#: A picture, turned or not, and the width in pixels in which it is read.
View = tuple[Image.Image, int]

#: Confidence below which a picture is read in the neighbouring widths, too.
_UNSURE = 0.5
#: Views that one picture may have at once, which no batch parts.
_TOGETHER = 4
#: Those of them that come first and are not turned.
_UPRIGHT_VIEWS = 2


def read_pictures(
    recognizer: Recognizer,
    pictures: Sequence[Image.Image],
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    single_view: bool = False,
) -> list[Prediction]:
    """Read RGB pictures of one word each, of any size, in the order given.

    With ``single_view`` each picture is read once, upright and in one width, as published tables have it. Without, tall
    pictures are also read turned by 90 degrees, and unsure ones also in the neighbouring widths.

    Those of one width are read at once, or ``batch_size`` of them; where memory is too short for that, in halves,
    as often as it takes.
    """
    if not pictures:
        return []
    try:
        return _read_all(recognizer, pictures, device, batch_size, single_view)
    except (MemoryError, RuntimeError) as error:
        if len(pictures) == 1 or not is_out_of_memory(error):
            raise
    half = len(pictures) // 2
    note(f"too little memory for {len(pictures)} images per batch: halving the batch")
    return [
        *read_pictures(recognizer, pictures[:half], device, batch_size, single_view),
        *read_pictures(recognizer, pictures[half:], device, batch_size, single_view),
    ]


def _read_all(
    recognizer: Recognizer,
    pictures: Sequence[Image.Image],
    device: str | torch.device,
    batch_size: int | None,
    single_view: bool,
) -> list[Prediction]:
    widths = recognizer.encoder.widths
    seen = [[picture] if single_view else _views(picture) for picture in pictures]
    views = [(view, width_for(view, recognizer.image_size[0], widths)) for turned in seen for view in turned]
    predictions = iter(zip(views, _read_views(recognizer, views, device, batch_size), strict=True))
    best = [_most_confident([next(predictions) for _ in turned]) for turned in seen]
    if single_view:
        return [prediction for _, prediction in best]
    return _read_again(recognizer, best, device, batch_size)


def _most_confident(read: Sequence[tuple[View, Prediction]]) -> tuple[View, Prediction]:
    """Return the most confident of the predictions of one picture's views; turned ones need two characters or more."""
    turned = [found for found in read[_UPRIGHT_VIEWS:] if len(found[1].character_confidences) > 1]
    return max([*read[:_UPRIGHT_VIEWS], *turned], key=lambda found: found[1].confidence)


def _read_again(
    recognizer: Recognizer, read: Sequence[tuple[View, Prediction]], device: str | torch.device, batch_size: int | None
) -> list[Prediction]:
    """Read what is unsure in the neighbouring widths, too: what the three together are most confident of counts."""
    widths = recognizer.encoder.widths
    unsure = [(index, view) for index, (view, prediction) in enumerate(read) if prediction.confidence < _UNSURE]
    again = [(index, (image, width)) for index, (image, used) in unsure for width in _neighbours(used, widths)]
    found = [[prediction] for _, prediction in read]
    more = _read_views(recognizer, [view for _, view in again], device, batch_size)
    for (index, _), prediction in zip(again, more, strict=True):
        found[index].append(prediction)
    return [_agreed(predictions) for predictions in found]


def _agreed(predictions: Sequence[Prediction]) -> Prediction:
    """Return the most confident reading of the text whose confidences add up to most."""
    sums: dict[str, float] = defaultdict(float)
    for prediction in predictions:
        sums[prediction.text] += prediction.confidence
    text = max(sums, key=lambda text: sums[text])
    return max(
        (prediction for prediction in predictions if prediction.text == text),
        key=lambda prediction: prediction.confidence,
    )


def _read_views(
    recognizer: Recognizer, views: Sequence[View], device: str | torch.device, batch_size: int | None
) -> list[Prediction]:
    """Read views sorted by width, those of one width in batches."""
    predictions: dict[int, Prediction] = {}
    for width in sorted({width for _, width in views}):
        of_width = [index for index, (_, wanted) in enumerate(views) if wanted == width]
        for chosen in _batches(of_width, batch_size):
            pixels = [preprocess(views[index][0], recognizer.image_size[0], width) for index in chosen]
            found = recognizer.read(torch.from_numpy(np.stack(pixels)).to(device))
            predictions |= zip(chosen, found, strict=True)
    return [predictions[index] for index in range(len(views))]


def _batches(indices: list[int], batch_size: int | None) -> Iterator[list[int]]:
    """Yield full batches, and what is left in powers of two: the CPU's library keeps memory for each size it meets.

    The few views of one picture stay together; without ``batch_size`` all do.
    """
    while indices:
        size = len(indices)
        if batch_size is not None and size > _TOGETHER:
            size = batch_size if batch_size <= size else 1 << (size.bit_length() - 1)
        yield indices[:size]
        indices = indices[size:]


def _neighbours(width: int, widths: Sequence[int]) -> list[int]:
    position = widths.index(width)
    return [*widths[max(position - 1, 0) : position], *widths[position + 1 : position + 2]]


def width_for(picture: Image.Image, height: int, widths: Sequence[int]) -> int:
    """Return the one of ``widths`` in pixels that suits a picture's shape: the wider it is, the less it is stretched.

    A word as wide as high is stretched threefold, since its letters need columns; one five times as wide hardly at all.
    """
    wanted = height * (2.25 + 0.75 * picture.width / picture.height)
    return min(widths, key=lambda width: abs(width - wanted))


def _views(picture: Image.Image) -> list[Image.Image]:
    if picture.height <= PORTRAIT * picture.width:
        return [picture]
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    return [picture, _squared(picture), *(picture.transpose(turn) for turn in turns)]


def _squared(picture: Image.Image) -> Image.Image:
    """Pad a narrow picture to a square with the median colour of its left and right edges."""
    edges = np.asarray(picture)[:, [0, -1]].reshape(-1, 3)
    red, green, blue = np.median(edges, axis=0).astype(int).tolist()
    square = Image.new("RGB", (picture.height, picture.height), (red, green, blue))
    square.paste(picture, ((picture.height - picture.width) // 2, 0))
    return square
