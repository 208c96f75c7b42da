"""Read images with a trained recogniser: ``dptr.load(run).read(images)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES, UnusablePicture, read_picture, upright_rgb
from dptr.trainer.model.model_file import BUNDLED, load_model
from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Reading, Recognizer, load_recognizer
from dptr.trainer.training.runs import Run
from dptr.trainer.zero_label import FindClip, zero_label_recognizer


class Reader:
    """A recogniser with its preprocessing: pictures in, readings out."""

    def __init__(self, recognizer: Recognizer, device: str = "cpu", batch_size: int = 64) -> None:
        self.recognizer = recognizer
        self._device = device
        self._batch_size = batch_size

    def read(self, images: Sequence[Image.Image | Path | str]) -> list[Reading]:
        """Read pictures of one word or line each, of any size, in the order given.

        Raises:
            UserError: a file cannot be read as a picture.
        """
        readings: list[Reading] = []
        for start in range(0, len(images), self._batch_size):
            readings += self._read_batch([_open(image) for image in images[start : start + self._batch_size]])
        return readings

    def read_files(self, paths: Sequence[Path]) -> Iterator[Reading | UserError]:
        """Yield a reading for each file in the order given, or what keeps it from being read."""
        for start in range(0, len(paths), self._batch_size):
            opened = [_opened(path) for path in paths[start : start + self._batch_size]]
            readings = iter(self._read_batch([picture for picture in opened if isinstance(picture, Image.Image)]))
            yield from (next(readings) if isinstance(found, Image.Image) else found for found in opened)

    def _read_batch(self, pictures: Sequence[Image.Image]) -> list[Reading]:
        return read_pictures(self.recognizer, pictures, self._device)


def load(run: str | Path = BUNDLED, device: str = "cpu", find_clip: FindClip | None = None) -> Reader:
    """Load the recogniser of a fine-tuning run, of a file that ``--to safetensors`` wrote, or the bundled one.

    With ``find_clip`` (a CLIP's name -> its folder), a pre-training run reads, too, through its CLIP's image tower.

    Raises:
        UserError: not such a run, or it has no checkpoint yet.
    """
    if Path(run).is_file():
        return Reader(load_model(Path(run), device), device)
    description = Run.load(Path(run))
    if description.kind == "pretrain" and find_clip is not None:
        return Reader(zero_label_recognizer(description, find_clip, device), device)
    description.require_recogniser()
    return Reader(load_recognizer(description, device), device)


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield files as they are and the pictures in folders, sorted.

    Raises:
        UserError: a path does not exist, or a folder holds no picture.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"no picture in {path}", f"Known kinds: {', '.join(IMAGE_SUFFIXES)}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path} does not exist", "Name picture files or folders")


def _open(image: Image.Image | Path | str) -> Image.Image:
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    try:
        return read_picture(Path(image))
    except UnusablePicture as error:
        raise UserError(
            f"{image} cannot be read as a picture: {error}", "Leave it out, or save it anew as PNG or JPEG"
        ) from error


def _opened(path: Path) -> Image.Image | UserError:
    try:
        return _open(path)
    except UserError as error:
        return error
