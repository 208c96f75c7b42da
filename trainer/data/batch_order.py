"""Which rows make which batch: a pure function of the seed and the step, so that resuming needs no replay.

Every epoch is a true shuffle. Where lengths are given, rows are sorted by length within a window of the shuffled order
before they are cut into batches, so that little is padding; then the window's batches are shuffled, so that lengths
come in no order. That is for text. Batches of images are not sorted: an image stretched to a fixed width shows how
long its word is, and batch norm would gather statistics of one length at a time, which hold for no batch that it reads
later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BATCHES_PER_WINDOW = 64


class BatchOrder:
    """Maps a step to row numbers.

    Args:
        rows: candidate row numbers, shape (candidates,). lengths: what to sort by, same shape; None: not sorted.
        batch_size: rows of a batch; an epoch ends with one short batch at most.
        weights: relative chance of each candidate; None visits each exactly once an epoch.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        lengths: NDArray[np.integer] | None,
        batch_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._rows = rows
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._cumulative = None if weights is None else np.cumsum(weights / weights.sum())
        self.batches_per_epoch = -(-len(rows) // batch_size)
        # Only the window in use is kept; another one costs a shuffle of the epoch.
        self._epoch, self._picks = -1, rows
        self._window_at: tuple[int, int] = (-1, -1)
        self._window: list[NDArray[np.int64]] = []

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Return the row numbers of batch ``step``, shape (batch,), counted from 0 through all epochs."""
        epoch, batch = divmod(step, self.batches_per_epoch)
        window, index = divmod(batch, _BATCHES_PER_WINDOW)
        if self._window_at != (epoch, window):
            self._window = self._cut_window(epoch, window)
            self._window_at = (epoch, window)
        return self._window[index]

    def _cut_window(self, epoch: int, window: int) -> list[NDArray[np.int64]]:
        span = _BATCHES_PER_WINDOW * self._batch_size
        if self._epoch != epoch:
            self._picks = self._shuffled(epoch)
            self._epoch = epoch
        picks = self._picks[window * span : (window + 1) * span]
        if self._lengths is not None:
            picks = picks[np.argsort(self._lengths[picks], kind="stable")]
        starts = range(0, len(picks), self._batch_size)
        batches = [self._rows[picks[start : start + self._batch_size]] for start in starts]
        np.random.default_rng((self._seed, 2, epoch, window)).shuffle(batches)
        return batches

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._seed, 1, epoch))
        if self._cumulative is None:
            return generator.permutation(len(self._rows))
        return np.searchsorted(self._cumulative, generator.random(len(self._rows))).clip(max=len(self._rows) - 1)
