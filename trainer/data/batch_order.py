"""Order of batches: a pure function of seed, epoch and position, so that resuming needs no replay.

Every epoch is a true shuffle, computed position by position without a list of rows. For text, rows are sorted by length
within a window of the shuffled order before they are cut into batches, to reduce padding; then the window's batches are
shuffled. Batches of images are not sorted: the appearance of an image stretched to a fixed width depends on its word's
length, and batch norm would collect statistics of one length at a time, which fit no later batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: More rounds than a large domain needs: with a small one each round mixes little.
_ROUNDS = 24
#: Odd constants with well mixed bits, of SplitMix64.
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class KeyedPermutation:
    """A permutation of ``0 … count - 1``, fixed by ``key`` alone, computed position by position.

    A Feistel network over the smallest power of two that holds all numbers is a permutation whatever its rounds
    compute; a number beyond the end goes through it again until one within is met (cycle walking: Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002).
    """

    def __init__(self, count: int, key: tuple[int, ...]) -> None:
        bits = max(1, int(count - 1).bit_length())
        self._count = np.uint64(count)
        self._right_bits = np.uint64(bits // 2)
        self._right_mask = np.uint64((1 << bits // 2) - 1)
        self._left_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at ``positions``, both of shape (positions,)."""
        numbers = self._network(positions.astype(np.uint64))
        outside = np.flatnonzero(numbers >= self._count)
        while len(outside):
            numbers[outside] = self._network(numbers[outside])
            outside = outside[numbers[outside] >= self._count]
        return numbers.astype(np.int64)

    def _network(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._right_bits, numbers & self._right_mask
        for one, other in self._keys.reshape(-1, 2):
            left = left ^ (_mixed(right + one) & self._left_mask)
            right = right ^ (_mixed(left + other) & self._right_mask)
        return (left << self._right_bits) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash ``numbers`` with the last steps of SplitMix64: each output bit depends on all input bits."""
    numbers = (numbers ^ (numbers >> _SHIFTS[0])) * _MULTIPLIERS[0]
    numbers = (numbers ^ (numbers >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return numbers ^ (numbers >> _SHIFTS[2])


_BATCHES_PER_WINDOW = 64
#: Rows of a block of summed weights; sampling draws a block, then a row in it.
_WEIGHTED_TOGETHER = 64
_BLOCKS_AT_ONCE = 1 << 14


class Rows(Protocol):
    """Row numbers by position: an array, or one of :mod:`dptr.cache.row_set`."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: NDArray[np.int64], /) -> NDArray[np.int64]: ...


#: Row numbers, shape (rows,), to a number of each: its length, or its weight.
OfRows = Callable[[NDArray[np.int64]], NDArray[np.generic]]


class WeightedRows:
    """Samples rows by weight; weights are computed on demand.

    Args:
        count: rows ``0 … count - 1`` are sampled. weights: rows -> weights of at least 0, not all 0.
    """

    def __init__(self, count: int, weights: OfRows) -> None:
        self._count, self._weights = count, weights
        blocks = np.arange(-(-count // _WEIGHTED_TOGETHER))
        pieces = np.split(blocks, range(_BLOCKS_AT_ONCE, len(blocks), _BLOCKS_AT_ONCE))
        self._ends = np.cumsum(np.concatenate([self._within(piece).sum(axis=1) for piece in pieces]))

    def draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``count`` row numbers, each independent of the others."""
        blocks = np.searchsorted(self._ends, generator.random(count) * self._ends[-1], side="right")
        blocks = blocks.clip(max=len(self._ends) - 1)
        ends = np.cumsum(self._within(blocks), axis=1)
        picks = generator.random(count) * ends[:, -1]
        within = (ends <= picks[:, None]).sum(axis=1).clip(max=_WEIGHTED_TOGETHER - 1)
        return np.asarray(blocks * _WEIGHTED_TOGETHER + within, np.int64)

    def _within(self, blocks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of the rows of ``blocks``, shape (blocks, rows of one), 0 beyond the last row."""
        rows = blocks[:, None] * _WEIGHTED_TOGETHER + np.arange(_WEIGHTED_TOGETHER)
        weights = np.zeros(rows.shape)
        inside = rows < self._count
        weights[inside] = self._weights(rows[inside])
        return weights


class BatchOrder:
    """Maps a step to row numbers.

    Args:
        rows: the candidates.
        lengths: of some rows, to sort by; None: not sorted.
        batch_size: rows of a batch; an epoch ends with one short batch at most.
        weighted: draws an epoch's rows, as many as there are candidates; None visits each exactly once an epoch.
    """

    def __init__(
        self, rows: Rows, lengths: OfRows | None, batch_size: int, seed: int, weighted: WeightedRows | None = None
    ) -> None:
        self._rows = rows
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._weighted = weighted
        self.batches_per_epoch = -(-len(rows) // batch_size)
        # Only the window in use is kept.
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
        picked = self._picked(epoch, window)
        if self._lengths is not None:
            picked = picked[np.argsort(self._lengths(picked), kind="stable")]
        starts = range(0, len(picked), self._batch_size)
        batches = [picked[start : start + self._batch_size] for start in starts]
        np.random.default_rng((self._seed, 2, epoch, window)).shuffle(batches)
        return batches

    def _picked(self, epoch: int, window: int) -> NDArray[np.int64]:
        span = _BATCHES_PER_WINDOW * self._batch_size
        positions = np.arange(window * span, min((window + 1) * span, len(self._rows)))
        if self._weighted is not None:
            return self._weighted.draw(len(positions), np.random.default_rng((self._seed, 1, epoch, window)))
        return self._rows[KeyedPermutation(len(self._rows), (self._seed, 1, epoch))(positions)]
