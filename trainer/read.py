"""Read images with a trained recogniser: ``dptr.load(run).read(images)``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dptr.cache import hub
from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES, UnusablePicture, read_picture, upright_rgb
from dptr.cache.word_counts import checked, read_word_counts
from dptr.trainer.choices import ReadingPrecision
from dptr.trainer.model.folding import cpu_has_bfloat16
from dptr.trainer.model.model_file import BUNDLED, RECOGNISERS, from_hub, load_model
from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Reading, Recognizer, load_recognizer
from dptr.trainer.training.runs import Run
from dptr.trainer.zero_label import FindClip, zero_label_recognizer

#: A picture of one word or line: a file, a PIL image, or pixels, uint8, (height, width, 3) RGB or (height, width) grey.
Picture = Image.Image | Path | str | NDArray[np.uint8]
#: Words that are likely: a file of them, one a line, how often each occurs, or ``none``.
Words = Path | str | Mapping[str, float]
#: A picture, or why there is none.
Opened = Image.Image | UserError

_BATCH = 64
#: Batches of pictures that wait to be sorted by width, and pixels after which fewer do.
_BATCHES_SORTED = 4
_MOST_PIXELS = 1 << 26


class Reader:
    """A recogniser with its preprocessing: pictures in, readings out; picture: see :data:`Picture`.

    Args:
        recognizer: what reads. device: where. batch_size: pictures that are read at once, unless a call says otherwise.
    """

    def __init__(self, recognizer: Recognizer, device: str = "cpu", batch_size: int = _BATCH) -> None:
        self.recognizer = recognizer
        self._device = device
        self.batch_size = batch_size

    def __repr__(self) -> str:
        parts = (self.recognizer.encoder, self.recognizer.decoder)
        encoder, decoder = (type(part).__name__ for part in parts)
        return f"Reader({encoder}, {decoder}, charset of {len(self.recognizer.charset.characters)}, on {self._device})"

    def read(self, images: Iterable[Picture], batch_size: int | None = None) -> list[Reading]:
        """Read pictures of any size, in the order given.

        Args:
            images: pictures; arrays may also come as one, (pictures, height, width, 3), uint8.
            batch_size: pictures that are read at once; more are faster and take more memory.

        Raises:
            UserError: a picture alone instead of several, a file that is no picture, pixels of another shape or dtype.
        """
        return list(self.read_each(images, batch_size))

    def read_each(self, images: Iterable[Picture], batch_size: int | None = None) -> Iterator[Reading]:
        """Yield readings as :meth:`read` lists them, as they are read: memory does not grow with their number."""
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
            raise UserError("one picture where several are wanted", "Give a list: read([picture])")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"a batch of {batch_size}", "Read one picture at once at least")
        for found in self.read_opened((partial(open_picture, image) for image in images), batch_size):
            if isinstance(found, UserError):
                raise found
            yield found

    def read_opened(
        self, openers: Iterable[Callable[[], Image.Image]], batch_size: int | None = None
    ) -> Iterator[Reading | UserError]:
        """Open pictures and read them; yield a reading for each, in order, or what keeps it from being read.

        Several batches of them wait until they are sorted by width; with a batch of one picture, none waits.
        """
        size = batch_size or self.batch_size
        for opened in _groups(map(_opened, openers), 1 if size == 1 else size * _BATCHES_SORTED):
            pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
            readings = iter(read_pictures(self.recognizer, pictures, self._device, size))
            yield from (next(readings) if isinstance(found, Image.Image) else found for found in opened)


def load(
    run: str | Path = BUNDLED,
    device: str = "cpu",
    find_clip: FindClip | None = None,
    words: Words | None = None,
    precision: ReadingPrecision = "auto",
) -> Reader:
    """Load the recogniser of a fine-tuning run, of a file that ``--to safetensors`` wrote, or a bundled one.

    Args:
        run: what reads; where no such folder is there, ``scripts`` is the bundled one of seven scripts, ``user/model``
            or ``user/model@REVISION`` one of the Hugging Face hub. device: where.
        find_clip: a CLIP's name -> its folder; a pre-training run then reads, too, through its CLIP's image tower.
        words: preferred where a picture leaves doubt, in place of those that the file keeps; CTC decoders only.
        precision: with ``auto``, confidences of a device that has bfloat16 and of one that has not differ in the third
            digit; ``fp32`` gives the same on all.

    Raises:
        UserError: not such a run, it has no checkpoint yet, the hub has none of that name; words that cannot be used.
    """
    recognizer = _recognizer(_found(str(run)), device, find_clip)
    if words is not None:
        recognizer.prefer_words(word_counts(words))
    if precision == "bf16" or (precision == "auto" and _has_bfloat16(torch.device(device))):
        recognizer.read_in_bfloat16()
    return Reader(recognizer, device)


def _found(run: str) -> Path:
    """Return the folder or file that a name means."""
    if Path(run).exists():
        return Path(run)
    if run in RECOGNISERS:
        return RECOGNISERS[run]
    return from_hub(run) if hub.is_id(run) else Path(run)


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bfloat16."""
    if device.type == "cpu":
        return cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def word_counts(words: Words) -> Mapping[str, float] | None:
    """Return how often each word occurs; None for ``none``.

    Raises:
        UserError: the file, or what a program gives, is no list of words.
    """
    if isinstance(words, Mapping):
        return checked(words)
    return None if str(words) == "none" else read_word_counts(Path(words))


def _recognizer(run: Path, device: str, find_clip: FindClip | None) -> Recognizer:
    if run.is_file():
        return load_model(run, device)
    description = Run.load(run)
    if description.kind == "pretrain" and find_clip is not None:
        return zero_label_recognizer(description, find_clip, device)
    description.require_recogniser()
    return load_recognizer(description, device)


@dataclass
class PictureFiles:
    """Picture files by names: files as they are, and those in folders, found as they are read.

    Iterating yields paths in order, each folder's files sorted before those of its subfolders, and a
    :class:`UserError` for a folder that cannot be listed or holds no picture. A name that is not there is yielded too:
    opening it gives the error. Links to folders are followed, each folder once.

    Attributes:
        names: files and folders. passed_over: ending -> files in folders that have no ending of a picture, so far.
    """

    names: Iterable[Path]
    passed_over: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Path | UserError]:
        for name in self.names:
            if not os.path.isdir(name):
                yield name
                continue
            is_empty = True
            for found in self._in_folder(name):
                is_empty = False
                yield found
            if is_empty:
                yield UserError(f"no picture in {name}", f"Known kinds: {', '.join(IMAGE_SUFFIXES)}")

    def _in_folder(self, folder: Path) -> Iterator[Path | UserError]:
        errors: list[OSError] = []
        seen: set[tuple[int, int]] = set()
        for inside, folders, files in os.walk(folder, onerror=errors.append, followlinks=True):
            folders.sort()
            try:
                known = os.stat(inside)
            except OSError as error:  # removed since it was listed
                errors.append(error)
                continue
            if (known.st_dev, known.st_ino) in seen:
                folders.clear()
                continue
            seen.add((known.st_dev, known.st_ino))
            for name in sorted(files):
                ending = Path(name).suffix.lower()
                if ending in IMAGE_SUFFIXES and not name.startswith("._"):  # macOS keeps attributes in ._a.png
                    yield Path(inside, name)
                else:
                    self.passed_over[ending or "no ending"] += 1
        for error in errors:
            yield UserError(f"{error.filename} cannot be listed: {error.strerror}", "Change its permissions")


def open_picture(image: Picture) -> Image.Image:
    """Return a picture upright and in RGB.

    Raises:
        UserError: a file that is no picture, or pixels of another shape than (height, width[, 3]) or dtype than uint8.
    """
    if isinstance(image, np.ndarray):
        return _from_pixels(image)
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    try:
        return read_picture(Path(image))
    except UnusablePicture as error:
        raise UserError(
            f"{image} cannot be read as a picture: {error}", "Leave it out, or save it anew as PNG or JPEG"
        ) from error


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)) or not 2 <= pixels.ndim <= 3 or not pixels.size:
        raise UserError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype}",
            "Give uint8 from 0 to 255, (height, width, 3) in RGB or (height, width)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _groups(opened: Iterable[Opened], count: int) -> Iterator[list[Opened]]:
    """Yield ``count`` neighbours at a time, or fewer where they are large."""
    group: list[Opened] = []
    pixels = 0
    for found in opened:
        group.append(found)
        pixels += found.width * found.height if isinstance(found, Image.Image) else 0
        if len(group) == count or pixels > _MOST_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group


def _opened(opener: Callable[[], Image.Image]) -> Opened:
    try:
        return opener()
    except UserError as error:
        return error
