"""Batches of labelled crops by their number, from word-crop stores: each epoch shows another view of a crop."""

from __future__ import annotations

import numpy as np

from dptr.cache.charset import Charset
from dptr.trainer.data.image_batches import CropBatches, ImageBatch, batch_order
from dptr.trainer.data.stored_crops import StoredCrops
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.training.recipe import Recipe


class StoredBatches(CropBatches):
    """Batches of stored image tokens.

    Which crops make a batch is what training on their pictures would take. A crop begins with a view of its own and
    goes round all of them, so that as many epochs pass before one is drawn again.
    """

    def __init__(self, crops: StoredCrops, charset: Charset, recipe: Recipe) -> None:
        super().__init__(charset, recipe)
        self._crops = crops
        self._order = batch_order(crops, recipe)
        self._view_counts = crops.view_counts
        self._first_view = np.random.default_rng((self._seed, 6)).integers(0, self._view_counts)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._order.batches_per_epoch

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows = self._order.rows_of(number)
        views = (self._first_view[rows] + number // self.per_epoch) % self._view_counts[rows]
        labels = [self._crops.samples[row].label for row in rows.tolist()]
        return ImageBatch(StoredTensor.of(self._crops.views(rows, views)), self.targets(labels))
