"""Labelled word images for training and evaluation: samples, rejected samples with reasons, and pixels.

Labels are normalised and checked once, when the data is listed. Images are read on demand, in the process that needs
them. ``split`` and ``without_overlap`` keep training and validation crops disjoint.

Output of every form is complete or absent: labels, or the name, are written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.crops import label_files, lmdb_form, parquet_form
from dptr.cache.crops.form import NotLabelled, Rejected, Source
from dptr.cache.crops.samples import CropTable, Rows, Rules, Sample, Samples, list_crops
from dptr.cache.crops.sources import find_sources
from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import LABELS_FILE
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.progress import note, progress
from dptr.cache.rejections import Tally
from dptr.cache.row_set import RowSet, validation_position
from dptr.cache.stores.lock import locked, locked_file
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

_LEAST_SIDE = 2
_Read = TypeVar("_Read")
#: What reading a word image raises where it is missing or damaged.
UNREADABLE = (OSError, KeyError, ValueError, UnusablePicture)


class UnreadableImage(DptrError):
    """A word image that cannot be decoded; the caller counts it and continues."""


@dataclass
class WordImages:
    """A map from position to labelled word image; picklable, also to spawned workers.

    Attributes:
        samples: usable samples, in the order of the data.
        rejected: labels that cannot be used. changed: labels that are used, but altered.
        sources: the data sets by name.
    """

    samples: Samples = field(default_factory=Samples)
    rejected: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)
    sources: dict[str, Source] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, paths: Sequence[Path], charset: Charset, normalization: Normalization) -> WordImages:
        """List the labelled images at ``paths``, of any forms.

        Raises:
            UserError: a path holds no labelled images in an accepted form, or no label can be used.
        """
        images = cls._listed(paths, Rules(charset, normalization))
        if not images.samples:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in images.rejected.counts.most_common(3))
            raise UserError(
                f"no usable label in {', '.join(map(str, paths))}: {reasons or 'there are none'}",
                "Choose a charset and a longest label that fit the data",
            )
        return images

    @classmethod
    def open_as_written(cls, paths: Sequence[Path]) -> WordImages:
        """List the labelled images at ``paths`` with their labels unchanged: for evaluation.

        Raises:
            NotLabelled: a path holds no labelled images in an accepted form, or not one label.
        """
        images = cls._listed(paths, None)
        if not images.samples:
            raise NotLabelled(f"no label in {', '.join(map(str, paths))}", "Name data with labels and images")
        return images

    @classmethod
    def _listed(cls, paths: Sequence[Path], rules: Rules | None) -> WordImages:
        images = cls()
        data_sets: list[CropTable] = []
        for path in paths:
            found = find_sources(path)
            images.sources |= {source.name: source for source in found}
            crops, rejected, changed = list_crops(path, found, rules)
            data_sets.append(crops)
            images.rejected.extend(rejected)
            images.changed.extend(changed)
        return replace(images, samples=Samples(data_sets))

    def __len__(self) -> int:
        return len(self.samples)

    def identity(self) -> dict[str, Any]:
        """Identity of the images, by which a run detects that they have changed."""
        return {"rows": len(self), "sha256": self.samples.digest()}

    def image(self, index: int) -> Image.Image:
        """Return the image of sample ``index``, RGB, as large as it is stored, or raise :class:`UnreadableImage`."""
        return self._usable(index, lambda sample: decode_crop(self.read(sample)))

    def encoded(self, index: int) -> bytes:
        """Return the encoded picture of sample ``index``, or raise :class:`UnreadableImage`."""
        return self._usable(index, self.read)

    def _usable(self, index: int, read: Callable[[Sample], _Read]) -> _Read:
        sample = self.samples[index]
        try:
            return read(sample)
        except UNREADABLE as error:
            raise UnreadableImage(f"image {sample.key} of {sample.source} cannot be read ({error})") from error

    def read(self, sample: Sample) -> bytes:
        """Return a sample's encoded picture, or raise one of :data:`UNREADABLE`."""
        return self.sources[sample.source].read(sample.key)

    def content_hashes(self) -> Iterator[bytes | None]:
        """Yield the SHA-256 of each sample's encoded picture, 32 bytes; None where it cannot be read."""
        for sample in self.samples:
            try:
                yield hashlib.sha256(self.read(sample)).digest()
            except UNREADABLE:
                yield None

    def require_readable(self) -> None:
        """Raise :class:`UserError` unless at least one picture can be decoded."""
        problem = "there are none"
        for index in range(len(self)):
            try:
                self.image(index)
            except UnreadableImage as error:
                problem = str(error)
            else:
                return
        raise UserError(f"none of {len(self)} validation crops can be read: {problem}", "Copy or write them again")

    def only(self, indices: Rows | Sequence[int]) -> Self:
        """Return the samples at ``indices``; rejected samples stay with the complete data set."""
        return replace(self, samples=self.samples.only(indices), rejected=Tally(), changed=Tally())


def decode_crop(encoded: bytes) -> Image.Image:
    """Decode one word image to upright RGB; see :func:`dptr.cache.pictures.decode`.

    Raises:
        UnusablePicture: it is damaged, or too small to hold a character.
    """
    image = decode(encoded)
    if min(image.size) < _LEAST_SIDE:
        raise UnusablePicture(f"{image.width} x {image.height} pixels")
    return image


def preprocess(image: Image.Image, height: int = 32, width: int = 128) -> NDArray[np.uint8]:
    """Resize to the model's input as PARSeq does, bicubic and without keeping the shape: (3, height, width), uint8."""
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


Images = TypeVar("Images", bound=WordImages)


def split(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Choose about ``share`` of the images for validation by a hash of key and label: adding data moves none.

    Returns:
        The images to train on and those for validation, each in the order of the data.

    Raises:
        UserError: one of the two would be empty.
    """
    chosen = _chosen(images.samples, share, seed)
    if share <= 0 or chosen.all():
        raise UserError(
            f"cannot keep {share:g} of {len(images)} images for validation",
            "Give a share between 0 and 1, or more data",
        )
    validation = images.only(RowSet([chosen]))
    validation.require_readable()
    return images.only(RowSet([~chosen])), validation


def without_overlap(training: Images, validation: WordImages) -> Images:
    """Return the training images without those of the validation set, compared by their bytes.

    Raises:
        UserError: no training image is left, or the validation set has no readable image.
    """
    validation.require_readable()
    total = len(validation) + len(training)
    with progress("comparing training and validation crops", total, "crops") as shown:

        def hashes(images: WordImages) -> Iterator[bytes | None]:
            for found in images.content_hashes():
                shown.advance()
                yield found

        held_out = set(hashes(validation)) - {None}
        apart = np.fromiter((found not in held_out for found in hashes(training)), np.bool_, len(training))
    overlapping = len(training) - int(apart.sum())
    if not overlapping:
        return training
    if overlapping == len(training):
        raise UserError(
            f"all {overlapping:,} training crops are validation crops, too",
            "Name other crops with --validation, or leave it out: a share of the data is taken",
        )
    note(f"rejected: {overlapping:,} of {len(training):,} training crops that are also validation crops")
    return training.only(RowSet([apart]))


def _chosen(samples: Samples, share: float, seed: int) -> NDArray[np.bool_]:
    """Return whether each sample is for validation, shape (samples,)."""
    positions = np.fromiter((validation_position(name, seed) for name in samples.names()), np.float64, len(samples))
    chosen = positions < share
    # With few images, none may be below the share: then choose the nearest.
    return chosen if chosen.any() or share <= 0 or not len(samples) else positions <= positions.min()


class WordImageWriter(Protocol):
    """Takes labelled images in order."""

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded as JPEG or PNG, and its label."""


#: Forms that are one file, by its ending; anything else is a folder with ``labels.tsv``.
_FILES: dict[str, Callable[[Path], AbstractContextManager[WordImageWriter]]] = {
    ".lmdb": lmdb_form.write,
    ".parquet": parquet_form.write,
}


@contextmanager
def write_word_images(out: Path) -> Iterator[WordImageWriter]:
    """Open ``out`` for labelled images; its suffix chooses the form: ``.lmdb``, ``.parquet``, else a folder.

    Raises:
        UserError: ``out`` holds labelled images already, or another process writes it.
    """
    is_file = out.suffix in _FILES
    finished = out if is_file else out / LABELS_FILE
    with (locked_file if is_file else locked)(out):
        if finished.exists():
            raise UserError(f"{finished} is there already", "Name another place, or remove it first")
        with _FILES.get(out.suffix, label_files.write)(out) as writer:
            yield writer


@dataclass
class PackSummary:
    """Result of packing: output, number of crops, rejected crops."""

    out: Path
    rows: int = 0
    rejected: Tally = field(default_factory=Tally)


def pack_crops(folder: Path, out: Path) -> PackSummary:
    """Pack the labelled word images in ``folder``, of any form, into ``out``, which ends in ``.lmdb`` or ``.parquet``.

    Bytes and labels are stored unchanged; labels are normalised when they are used. Damaged images are rejected.

    Raises:
        UserError: ``out`` ends otherwise or exists, or ``folder`` holds no readable labelled image.
    """
    if out.suffix not in _FILES:
        raise UserError(f"{out} is neither .lmdb nor .parquet", "Give the output one of these suffixes")
    sources = find_sources(folder)
    summary = PackSummary(out)
    with write_word_images(out) as writer, progress("packing", None, "images") as bar:
        for source in sources:
            for key, label in source.labels():
                bar.advance()
                if isinstance(label, Rejected):
                    summary.rejected.add(source.name, key, "", label.reason)
                    continue
                try:
                    encoded = source.read(key)
                    decode_crop(encoded)
                except UNREADABLE as error:
                    summary.rejected.add(source.name, key, label, f"unreadable image: {error}")
                    continue
                writer.write(encoded, label)
                summary.rows += 1
        if not summary.rows:
            reasons = [f"{one} ({one.reason})" for one in summary.rejected.listed[:1]]
            raise UserError(f"no image in {folder} can be packed", f"For one: {(reasons or ['there are none'])[0]}")
    return summary
