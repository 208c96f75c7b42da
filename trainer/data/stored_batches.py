"""Batches of labelled crops by their number, from image-feature stores: each epoch shows another view of a crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptr.cache.text.charset import Charset
from dptr.trainer.data.image_batches import CropBatches, ImageBatch, batch_order
from dptr.trainer.data.image_features import StoredCrops
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.recipe import Recipe
from dptr.trainer.seeds import generator_of


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
        self._first_view = generator_of(self._seed, "first views").integers(0, self._view_counts)

    def require_finite(self, number: int) -> None:
        """Check the stored rows that batch ``number`` was made of.

        Raises:
            DamagedStore: one holds NaN or infinity; the error names it.
        """
        self._crops.require_finite(*self._rows_and_views(number))

    def _rows_and_views(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = self._order.rows_of(number)
        return rows, (self._first_view[rows] + number // self.per_epoch) % self._view_counts[rows]

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._order.batches_per_epoch

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows, views = self._rows_and_views(number)
        labels = [self._crops.samples[row].label for row in rows.tolist()]
        return ImageBatch(StoredTensor.of(self._crops.views(rows, views)), self.targets(labels))
