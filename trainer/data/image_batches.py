"""Batches of labelled crops by their number, from pictures: read, distorted and resized when a batch is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dptr.cache.crops.augmentation import augment
from dptr.cache.crops.dataset import UnreadableImage, WordImages, preprocess
from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.row_set import EveryRow
from dptr.cache.text.charset import Charset
from dptr.cache.text.reading_order import PORTRAIT, may_stand_in_a_column
from dptr.trainer.data.batch_order import BatchOrder, KeyedPermutation, WeightedRows
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.model.decoders.base import Targets, Tensors, sent
from dptr.trainer.recipe import Recipe
from dptr.trainer.seeds import generator_of

#: Longest label, and the least and greatest width in heights of the pictures in which such labels are read. Characters
#: of a line are half as wide as high, and reading stretches short words: :func:`dptr.trainer.model.reading.width_for`.
_WIDTHS_OF_LENGTHS = ((13, 0, 8), (25, 6, 12), (math.inf, 12, math.inf))


@dataclass(frozen=True)
class ImageBatch(Tensors):
    """Preprocessed word images (batch, 3, height, width) uint8, or stored tokens of some, with their labels.

    ``unreadable`` lists excluded samples with reasons, ``portrait`` images taller than wide.
    """

    images: Tensor | StoredTensor
    targets: Targets
    unreadable: tuple[str, ...] = ()
    portrait: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch on a device, stored tokens as float32."""
        images = self.images.to(device) if isinstance(self.images, StoredTensor) else sent(self.images, device)
        return replace(self, images=images, targets=self.targets.to(device))

    def padded(self, positions: int) -> ImageBatch:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""
        return replace(self, targets=self.targets.padded(positions))


@dataclass
class Oddities:
    """Unreadable or portrait training images, each reported once."""

    unreadable: set[str] = field(default_factory=set)
    portrait: set[str] = field(default_factory=set)

    def take(self, batch: ImageBatch) -> None:
        """Count a batch's oddities and name those that are new."""
        for line in sorted(set(batch.unreadable) - self.unreadable):
            note(f"skipped: {line}")
        self.unreadable.update(batch.unreadable)
        self.portrait.update(batch.portrait)


class CropBatches:
    """Batch number -> :class:`ImageBatch`; a pure function of the recipe's seed and the number.

    Attributes:
        per_epoch: batches of an epoch.
    """

    per_epoch: int

    def __init__(self, charset: Charset, recipe: Recipe) -> None:
        self._charset, self._for_columns = charset, recipe.finetune.ctc_weight > 0
        self._seed = recipe.finetune.seed

    def targets(self, labels: Sequence[str]) -> Targets:
        """Encode labels for the decoder, and for a CTC loss beside it."""
        return Targets.of(labels, self._charset, self._for_columns)


class ImageBatches(CropBatches):
    """Batches of pictures."""

    def __init__(
        self, images: WordImages, charset: Charset, recipe: Recipe, height: int, widths: Sequence[int]
    ) -> None:
        """Images become ``height`` pixels high; all those of a batch become as wide as one of ``widths``."""
        super().__init__(charset, recipe)
        self._images = images
        self._strength, self._distortions = recipe.finetune.augmentation, recipe.finetune.distortions
        self._height = height
        self._groups = _groups(images, recipe, height, widths)
        self._ends = np.cumsum([group.batches for group in self._groups])
        self.per_epoch = int(self._ends[-1])

    def require_finite(self, number: int) -> None:
        """Check what batch ``number`` was made of; pictures hold no NaN."""

    def _group_of(self, number: int) -> tuple[_Group, int]:
        """Return the group that batch ``number`` is of, and which of the group's batches it is."""
        epoch, place = divmod(number, self.per_epoch)
        if len(self._groups) > 1:
            order = KeyedPermutation(self.per_epoch, (self._seed, 8, epoch))
            place = int(order(np.array([place]))[0])
        group = int(np.searchsorted(self._ends, place, side="right"))
        found = self._groups[group]
        return found, epoch * found.batches + place - int(self._ends[group]) + found.batches

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        group, step = self._group_of(number)
        width = int(generator_of(self._seed, "widths", number).choice(group.widths))
        pixels: list[NDArray[np.uint8]] = []
        labels: list[str] = []
        unreadable: list[str] = []
        portrait: list[str] = []
        for row in group.order.rows_of(step).tolist():
            try:
                image = self._images.image(row)
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            label = self._images.samples[row].label
            if image.height > image.width:
                portrait.append(self._images.samples[row].key)
            if image.height > PORTRAIT * image.width and may_stand_in_a_column(label):
                image = image.transpose(Image.Transpose.ROTATE_90)
            if self._strength > 0:
                chance = generator_of(self._seed, "augmentation", number, row)
                image = augment(image, chance, self._strength, self._distortions)
            pixels.append(preprocess(image, self._height, width))
            labels.append(label)
        if not pixels:
            raise UserError(
                f"batch {number} has no readable image: {unreadable[0]}", "Check the data with `dptr evaluate`"
            )
        pictures = torch.from_numpy(np.stack(pixels))
        return ImageBatch(pictures, self.targets(labels), tuple(unreadable), tuple(portrait))


@dataclass(frozen=True)
class _Group:
    """Crops whose labels are of similar length: their order, the widths they are read in, batches of an epoch."""

    order: BatchOrder
    widths: Sequence[int]
    batches: int


def batch_order(images: WordImages, recipe: Recipe, inside: NDArray[np.bool_] | None = None) -> BatchOrder:
    """Return which rows make which batch: of all images, or of those ``inside``, shape (samples,)."""
    settings = recipe.finetune
    every = EveryRow(len(images))
    weights = _weights_of_samples(images, settings.mix)
    if weights is None:
        rows = every if inside is None else np.flatnonzero(inside)
        return BatchOrder(rows, None, settings.batch_size, settings.seed)
    within = weights if inside is None else weights * inside
    return BatchOrder(every, None, settings.batch_size, settings.seed, WeightedRows(len(images), within.take))


def _groups(images: WordImages, recipe: Recipe, height: int, widths: Sequence[int]) -> list[_Group]:
    """Group crops by the length of their labels, so that no long line is squeezed into a narrow picture.

    Where all widths are narrow there is one group.
    """
    longest = [length for length, _, most in _WIDTHS_OF_LENGTHS if most * height < max(widths)]
    if not longest:
        order = batch_order(images, recipe)
        return [_Group(order, widths, order.batches_per_epoch)]
    lengths = np.fromiter((len(sample.label) for sample in images.samples), np.int32, len(images))
    group_of = np.searchsorted(longest, lengths, side="left")
    weights = _weights_of_samples(images, recipe.finetune.mix)
    shares = np.ones(len(images)) if weights is None else weights
    groups = []
    for group in np.unique(group_of).tolist():
        _, least, most = _WIDTHS_OF_LENGTHS[group]
        inside = group_of == group
        fitting = [width for width in widths if least * height <= width <= most * height]
        rows = len(images) * shares[inside].sum() / shares.sum()
        batches = math.ceil(rows / recipe.finetune.batch_size)
        groups.append(_Group(batch_order(images, recipe, inside), fitting or [max(widths)], batches))
    return groups


def _weights_of_samples(images: WordImages, mix: str) -> NDArray[np.float64] | None:
    weights = mixing_weights(images, mix)
    return None if weights is None else weights[images.samples.every_data_set()]


def mixing_weights(images: WordImages, mix: str) -> NDArray[np.float64] | None:
    """Return the weight of each data set's samples, (data sets,), so that sets are drawn in the proportions of ``mix``.

    None without a mix: all are drawn alike.

    Raises:
        UserError: ``mix`` is not one number above zero for each data set that has samples.
    """
    if not mix:
        return None
    sizes = np.bincount(images.samples.every_data_set())
    try:
        shares = np.array([float(part) for part in mix.split(",")])
    except ValueError as error:
        raise UserError(f"finetune.mix = {mix!r} is not numbers between commas", 'For example: "3,1"') from error
    if len(shares) != len(sizes) or not (shares > 0).all():
        raise UserError(
            f"finetune.mix = {mix!r} does not fit {len(sizes)} data sets", "Give each one number above zero"
        )
    weights: NDArray[np.float64] = shares / np.maximum(sizes, 1)
    return weights
