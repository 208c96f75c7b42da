"""Batches of labelled crops by their number, from pictures: read, distorted and resized when a batch is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dptr.cache.charset import Charset
from dptr.cache.columns import PORTRAIT, may_stand_in_a_column
from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.row_set import EveryRow
from dptr.cache.word_images.augmentation import augment
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess
from dptr.trainer.data.batch_order import BatchOrder, WeightedRows
from dptr.trainer.data.buckets import padded_targets
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.model.decoders.base import Targets, sent
from dptr.trainer.training.recipe import Recipe


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed word images (batch, 3, height, width) uint8, or stored tokens of some, with their labels.

    ``unreadable`` says what had to be left out and why, ``portrait`` names images taller than wide.
    """

    images: Tensor | StoredTensor
    targets: Targets
    unreadable: tuple[str, ...] = ()
    portrait: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ImageBatch:
        """Return the batch on a device, stored tokens as float32."""
        images = self.images.to(device) if isinstance(self.images, StoredTensor) else sent(self.images, device)
        return replace(self, images=images, targets=self.targets.to(device))

    def padded(self, positions: int) -> ImageBatch:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""
        return replace(self, targets=padded_targets(self.targets, positions))

    def pin_memory(self) -> ImageBatch:
        """Return a copy from which a GPU takes it while it computes."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


@dataclass
class Oddities:
    """Images of training that were unreadable or portrait, each named once however often it is drawn."""

    unreadable: set[str] = field(default_factory=set)
    portrait: set[str] = field(default_factory=set)

    def take(self, batch: ImageBatch) -> None:
        """Count a batch's oddities and name those that are new."""
        for line in sorted(set(batch.unreadable) - self.unreadable):
            note(f"left out: {line}")
        self.unreadable.update(batch.unreadable)
        self.portrait.update(batch.portrait)


class CropBatches(ABC):
    """Batch number -> :class:`ImageBatch`; a pure function of the recipe's seed and the number."""

    def __init__(self, images: WordImages, charset: Charset, recipe: Recipe) -> None:
        settings = recipe.finetune
        weights = mixing_weights(images, settings.mix)
        weighted = None if weights is None else WeightedRows(len(images), weights)
        self._order = BatchOrder(EveryRow(len(images)), None, settings.batch_size, settings.seed, weighted)
        self._charset, self._for_columns = charset, settings.ctc_weight > 0
        self._seed = settings.seed

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._order.batches_per_epoch

    def targets(self, labels: Sequence[str]) -> Targets:
        """Encode labels for the decoder, and for a CTC loss beside it."""
        return Targets.of(labels, self._charset, self._for_columns)

    @abstractmethod
    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""


class ImageBatches(CropBatches):
    """Batches of pictures."""

    def __init__(
        self, images: WordImages, charset: Charset, recipe: Recipe, height: int, widths: Sequence[int]
    ) -> None:
        """Images become ``height`` pixels high; all those of a batch become as wide as one of ``widths``."""
        super().__init__(images, charset, recipe)
        self._images = images
        self._strength = recipe.finetune.augmentation
        self._height, self._widths = height, widths

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        width = int(np.random.default_rng((self._seed, 6, number)).choice(self._widths))
        pixels: list[NDArray[np.uint8]] = []
        labels: list[str] = []
        unreadable: list[str] = []
        portrait: list[str] = []
        for row in self._order.rows_of(number).tolist():
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
                image = augment(image, np.random.default_rng((self._seed, 5, number, row)), self._strength)
            pixels.append(preprocess(image, self._height, width))
            labels.append(label)
        if not pixels:
            raise UserError(
                f"batch {number} has no readable image: {unreadable[0]}", "Check the data with `dptr evaluate`"
            )
        pictures = torch.from_numpy(np.stack(pixels))
        return ImageBatch(pictures, self.targets(labels), tuple(unreadable), tuple(portrait))


@dataclass(frozen=True)
class MixingWeights:
    """Weights of samples: ``of_sets`` (data sets,) has a sample's weight by its data set, ``sets`` (samples,)."""

    sets: NDArray[np.integer]
    of_sets: NDArray[np.float64]

    def __call__(self, samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of ``samples``, of the same shape."""
        weights: NDArray[np.float64] = self.of_sets[self.sets[samples]]
        return weights


def mixing_weights(images: WordImages, mix: str) -> MixingWeights | None:
    """Return each sample's weight, so that data sets are drawn in the proportions of ``mix``.

    None without a mix: all are drawn alike.

    Raises:
        UserError: ``mix`` is not one number above zero for each data set that has samples.
    """
    if not mix:
        return None
    sets = images.samples.every_data_set()
    sizes = np.bincount(sets)
    try:
        shares = np.array([float(part) for part in mix.split(",")])
    except ValueError as error:
        raise UserError(f"finetune.mix = {mix!r} is not numbers between commas", 'For example: "3,1"') from error
    if len(shares) != len(sizes) or not (shares > 0).all():
        raise UserError(
            f"finetune.mix = {mix!r} does not fit {len(sizes)} data sets", "Give each one number above zero"
        )
    return MixingWeights(sets, shares / np.maximum(sizes, 1))
