"""Read pictures with a trained recogniser: ``dptr.load(name).read(pictures)``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dptr.cache import hub
from dptr.cache.command_line import checked, errors_in_python
from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.options import WORKSPACE
from dptr.cache.pictures import IMAGE_SUFFIXES, UnusablePicture, read_picture, upright_rgb
from dptr.cache.remote import at_hand
from dptr.cache.text.lexicon import Words, word_counts
from dptr.cache.workspace import Workspace
from dptr.pipeline.clip.clip_files import find_clip
from dptr.pipeline.options import resolve_device
from dptr.trainer.choices import Protocol, ReadingPrecision
from dptr.trainer.evaluate import PROTOCOLS, Evaluation, evaluate
from dptr.trainer.model.encoders.clip import PREFIX, ClipEncoder, describe, require_weights
from dptr.trainer.model.folding import cpu_has_bfloat16
from dptr.trainer.model.model_file import from_hub
from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Prediction, Recognizer, Trained, load_recognizer
from dptr.trainer.named_models import kept_in, model_at, model_path
from dptr.trainer.training.runs import Run, require_recogniser

#: A picture of one word or line: a file, a PIL image, an array, uint8, (height, width, 3) RGB or (height, width) grey,
#: or a tensor, (3, height, width) or (1, height, width), uint8 from 0 to 255 or floating from 0 to 1.
Picture = Image.Image | Path | str | NDArray[np.uint8] | Tensor
#: Several of them; a text alone is one picture's path, though it is a sequence of texts, too.
Pictures = (
    Sequence[Image.Image | Path | NDArray[np.uint8] | Tensor]
    | list[Picture]
    | tuple[Picture, ...]
    | list[str]
    | tuple[str, ...]
)
#: A picture, or why there is none.
Opened = Image.Image | UserError

_PICTURES = "Give a path, a PIL image, an array (height, width, 3) of uint8, or a tensor (3, height, width)"
_BATCH = 64
#: Batches of pictures that wait to be sorted by width, and pixels after which fewer do.
_BATCHES_SORTED = 4
_MOST_PIXELS = 1 << 26


class Predictions(list[Prediction]):
    """Predictions in the order of their images."""

    def to_arrow(self) -> pa.Table:
        """Return a table with ``text``, ``confidence`` and ``character_confidences``, one row per image."""
        schema = [
            ("text", pa.string()),
            ("confidence", pa.float64()),
            ("character_confidences", pa.list_(pa.float64())),
        ]
        return pa.Table.from_pylist([vars(prediction) for prediction in self], pa.schema(schema))

    def to_pandas(self) -> Any:
        """Return the same as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            return self.to_arrow().to_pandas()
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed", "Run: pip install pandas, or use to_arrow()") from error


class Reader:
    """A recogniser with its preprocessing, from images to predictions; accepted images: :data:`Picture`.

    Args:
        recognizer: the model. device: a torch device.
        batch_size: images per batch, unless a call sets another.
        path: the run or model file that the model was loaded from, for :meth:`push_to_hub`.
    """

    def __init__(
        self, recognizer: Recognizer, device: str = "cpu", batch_size: int = _BATCH, path: Path | None = None
    ) -> None:
        self.recognizer = recognizer
        self._device = device
        self.batch_size = batch_size
        self._path = path

    def __repr__(self) -> str:
        parts = (self.recognizer.encoder, self.recognizer.decoder)
        encoder, decoder = (type(part).__name__ for part in parts)
        return f"Reader({encoder}, {decoder}, charset of {len(self.recognizer.charset.characters)}, on {self._device})"

    @staticmethod
    @checked
    def from_pretrained(
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        device: str = "auto",
        lexicon: Words | None = None,
        precision: ReadingPrecision = "auto",
    ) -> Reader:
        """Load a recogniser of the Hugging Face hub, or of a folder that :meth:`save_pretrained` wrote.

        Args:
            name: ``user/model``, or a folder; whatever :func:`load` takes.
            revision: branch, tag or commit. token, cache_dir, force_download, local_files_only: as in huggingface_hub.
            device, lexicon, precision: as of :func:`load`.

        Raises:
            UserError: there is no such model, or it is not of dptr.
        """
        if Path(name).exists() or not hub.is_id(str(name)):
            return load_reader(model_path(Workspace.at(WORKSPACE), str(name)), device, lexicon, precision)
        found = from_hub(
            f"{name}@{revision}" if revision else str(name),
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return load_reader(found, device, lexicon, precision)

    @checked
    def save_pretrained(
        self, folder: str | Path, *, repo_id: str = "user/model", license: str | None = None, half: bool = False
    ) -> Path:
        """Write weights, card and recipe into a folder, as a repository of the hub holds them; return the folder.

        Args:
            folder: made where it is missing; its files of the same names are replaced.
            repo_id: as the card names the model. license: its identifier on the hub. half: floats in 16 bits.

        Raises:
            UserError: this reader was not loaded from a run or a model file.
        """
        from dptr.trainer import push

        model, kept = self._saved()
        Path(folder).mkdir(parents=True, exist_ok=True)
        push.write_files(model, repo_id, kept, Path(folder), license, half)
        return Path(folder)

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        half: bool = False,
    ) -> str:
        """Upload weights, card and recipe to the Hugging Face hub; return the commit's URL.

        Args:
            repo_id: ``user/model``; made where it is missing. private: a new repository is seen by nobody else.
            token, commit_message: as in huggingface_hub. license: its identifier. half: floats in 16 bits.

        Raises:
            UserError: this reader was not loaded from a run or a model file, or the hub does not take it.
        """
        from dptr.trainer import push

        model, kept = self._saved()
        pushed = push.push(model, repo_id, kept, private, license, half, token, commit_message)
        return str(pushed.commit_url)

    def _saved(self) -> tuple[Trained, Path]:
        """Return what this reader was loaded from, and the folder that keeps its predictions."""
        if self._path is None:
            raise UserError("this reader was made from a recogniser, not from a run or a model file", "Use dptr.load")
        return model_at(self._path), kept_in(Workspace.at(WORKSPACE), self._path)

    @checked
    def to(self, device: str) -> Self:
        """Move the recogniser to ``cpu``, ``cuda``, another device of torch, or ``auto``; return this reader.

        Raises:
            UserError: this machine has no such device.
        """
        self._device = resolve_device(device)
        self.recognizer.to(self._device)
        return self

    @overload
    def read(self, images: str | Path | Image.Image, batch_size: int | None = None) -> Prediction: ...
    @overload
    def read(self, images: Pictures, batch_size: int | None = None) -> Predictions: ...
    @overload
    def read(self, images: NDArray[np.uint8] | Tensor, batch_size: int | None = None) -> Prediction | Predictions: ...
    @overload
    def read(self, images: Iterable[Picture], batch_size: int | None = None) -> Prediction | Predictions: ...
    def read(self, images: Picture | Iterable[Picture], batch_size: int | None = None) -> Prediction | Predictions:
        """Read one image, or several of any size, in order.

        Args:
            images: a picture, or pictures; arrays also as one, (pictures, height, width, 3), and tensors,
                (pictures, 3, height, width).
            batch_size: pictures that are read at once; more are faster and take more memory.

        Returns:
            A reading for a picture, predictions for several.

        Raises:
            UserError: a file that is no picture, pixels of another shape, dtype or range.
        """
        if isinstance(images, str | Path | Image.Image) or (hasattr(images, "ndim") and images.ndim < 4):
            return next(self.read_each([cast(Picture, images)], batch_size))
        return Predictions(self.read_each(images, batch_size))

    __call__ = read

    def read_each(self, images: Iterable[Picture], batch_size: int | None = None) -> Iterator[Prediction]:
        """Yield the predictions of :meth:`read` batch by batch, in constant memory."""
        if not isinstance(images, Iterable):
            raise UserError(f"{images!r:.60} is not an image", _PICTURES)
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise UserError(f"batch_size={batch_size!r}", "Give a whole number, at least 1")
        for found in self.read_opened((partial(open_picture, image) for image in images), batch_size):
            if isinstance(found, UserError):
                raise found
            yield found

    def evaluate(
        self, data: str | Path | Sequence[str | Path] | WordImages, protocol: Protocol = "field"
    ) -> Evaluation:
        """Return word accuracy and 1-NED on labelled crops, as ``dptr evaluate`` does.

        Args:
            data: one or several folders, LMDBs, Parquet or tar files, each a data set; or an opened data set.
            protocol: ``field``: 36, 62 and 94 characters; ``chinese``: NFKC, case-insensitive, simplified.

        Raises:
            UserError: it holds no labelled crop that can be read.
        """
        paths = [data] if isinstance(data, str | Path) else data
        if protocol not in PROTOCOLS:
            raise UserError(f"protocol={protocol!r}", f"Give {' or '.join(PROTOCOLS)}")
        with errors_in_python():
            if isinstance(paths, WordImages):
                sets = {"data": paths}
            elif isinstance(paths, Sequence) and paths and all(isinstance(path, str | Path) for path in paths):
                sets = {str(path): WordImages.open_as_written([at_hand(Path(path))]) for path in paths}
            else:
                raise UserError(f"{data!r:.60} is no labelled crops", "Give a path, or several")
        return evaluate(self.recognizer, sets, self._device, protocol)

    def read_opened(
        self, openers: Iterable[Callable[[], Image.Image]], batch_size: int | None = None
    ) -> Iterator[Prediction | UserError]:
        """Open pictures and read them; yield a reading for each, in order, or what keeps it from being read.

        Several batches of them wait until they are sorted by width; with a batch of one picture, none waits.
        """
        size = batch_size or self.batch_size
        for opened in _groups(map(_opened, openers), 1 if size == 1 else size * _BATCHES_SORTED):
            pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
            predictions = iter(read_pictures(self.recognizer, pictures, self._device, size))
            yield from (next(predictions) if isinstance(found, Image.Image) else found for found in opened)


@checked
def load(
    name: str | Path = "bundled",
    device: str = "auto",
    lexicon: Words | None = None,
    precision: ReadingPrecision = "auto",
    workspace: str | Path = WORKSPACE,
) -> Reader:
    """Load the recogniser of a fine-tuning run, of a file that ``--to safetensors`` wrote, or a bundled one.

    Args:
        name: a run (its folder, its name, or ``newest``) or a model file; where there is none, ``bundled`` or
            ``scripts`` for those that ship, or ``user/model`` or ``user/model@REVISION`` for one of the Hugging Face
            hub. A pre-training run reads through its CLIP's image encoder.
        device: ``cpu``, ``cuda``, or ``auto``: cuda where there is one.
        lexicon: words preferred where a picture leaves doubt, in place of those that the file keeps; CTC decoders only.
        precision: with ``auto``, confidences of a device that has bfloat16 and of one that has not differ in the third
            digit; ``fp32`` gives the same on all.
        workspace: folder that holds the runs.

    Raises:
        UserError: no such run, it has no checkpoint yet, the hub has none of that name; words that cannot be used.
    """
    return load_reader(model_path(Workspace.at(workspace), str(name)), device, lexicon, precision)


def load_reader(
    path: Path, device: str = "auto", lexicon: Words | None = None, precision: ReadingPrecision = "auto"
) -> Reader:
    """Load the recogniser of a run's folder or a model file; arguments and errors as of :func:`load`."""
    device = resolve_device(device)
    recognizer = _recognizer(path, device)
    if lexicon is not None:
        recognizer.prefer_words(word_counts(lexicon))
    if precision == "bf16" or (precision == "auto" and _has_bfloat16(torch.device(device))):
        recognizer.read_in_bfloat16()
    return Reader(recognizer, device, path=path)


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products of bfloat16."""
    if device.type == "cpu":
        return cpu_has_bfloat16()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _recognizer(path: Path, device: str) -> Recognizer:
    model = model_at(path)
    if isinstance(model, Run) and model.kind == "pretrain":
        return zero_label_recognizer(model, device)
    require_recogniser(model)
    return load_recognizer(model, device)


def zero_label_recognizer(run: Run, device: str = "cpu") -> Recognizer:
    """Put a pre-training run's decoder behind the image encoder of the CLIP that embedded its text, in evaluation mode.

    CLIP's embeddings of an image of a text are near to those of the text, which the decoder was trained on. With memory
    of kind ``pooled`` it reads the image's pooled vector, with ``tokens`` the image's projected tokens.

    Raises:
        UserError: the decoder was trained on columns, which no image encoder gives; or the CLIP is not to be found.
        DamagedStore: the CLIP of that name is another one by now.
    """
    if run.recipe.memory.kind == "columns":
        raise UserError(
            f"{run.folder} was pre-trained with memory.kind=columns, which CLIP's image encoder does not provide",
            "Fine-tune it (`dptr finetune`), or pre-train with --set memory.kind=pooled",
        )
    if not run.clip:
        raise UserError(f"{run.folder} does not record the CLIP that embedded its text", "Pre-train again")
    folder = find_clip(run.clip)
    require_weights(folder, run.clip, run.clip_weights, str(run.folder))
    recipe = run.recipe.replace("encoder", kind=PREFIX + run.clip, config=describe(folder))
    recipe = recipe.replace("fmu", kind="none").replace("finetune", ctc_weight=0.0)
    recognizer = Recognizer(recipe, run.charset, run.memory_dim)
    recognizer.decoder.load_state_dict(run.weights())
    if isinstance(recognizer.encoder, ClipEncoder):
        recognizer.encoder.load(folder)
    return recognizer.to(device).eval()


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
                yield UserError(f"no image in {name}", f"Known kinds: {', '.join(IMAGE_SUFFIXES)}")

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
        for unlisted in errors:
            yield UserError(f"{unlisted.filename} cannot be listed: {unlisted.strerror}", "Change its permissions")


def open_picture(image: Picture) -> Image.Image:
    """Return a picture upright and in RGB.

    Raises:
        UserError: a file that is no picture, or pixels of another shape than (height, width[, 3]) or dtype than uint8.
    """
    if isinstance(image, Tensor):
        return _from_pixels(_array_of(image))
    if isinstance(image, np.ndarray):
        return _from_pixels(image)
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if not isinstance(image, str | Path):
        raise UserError(f"{image!r:.60} is not an image", _PICTURES)
    if not os.path.exists(image):
        raise UserError(f"{image} does not exist", "Name picture files or folders")
    try:
        return read_picture(Path(image))
    except UnusablePicture as error:
        raise UserError(
            f"{image} cannot be read as a picture: {error}", "Leave it out, or save it again as PNG or JPEG"
        ) from error


def _array_of(pixels: Tensor) -> NDArray[np.uint8]:
    """Return a tensor (3 or 1, height, width) as an array (height, width[, 3])."""
    given = pixels.detach().cpu()
    if given.is_floating_point() and given.numel():
        if not (given.amin() >= 0 and given.amax() <= 1):
            raise UserError(
                f"a tensor with values from {given.amin():g} to {given.amax():g}", "Scale floating values to 0 to 1"
            )
        given = (given * 255).round().to(torch.uint8)
    if given.ndim != 3 or given.shape[0] not in (1, 3) or given.dtype != torch.uint8:
        raise UserError(f"a tensor of shape {tuple(given.shape)} and type {given.dtype}", _PICTURES)
    array: NDArray[np.uint8] = given.permute(1, 2, 0).numpy()
    return array[..., 0] if array.shape[2] == 1 else array


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
