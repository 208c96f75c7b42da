"""ORP noise for rows of a prompt store: embeddings of crops from a bank, drawn anew in every batch.

The noise is drawn per row, or, as in the authors' code, per batch: no crop twice, and the same token positions in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.stores.shards import StoredTokens
from dptr.trainer.recipe import NoiseSettings

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours
    from dptr.cache.stores.orp import OrpBank

#: Enough for a mean over all numbers of their embeddings.
_CROPS_MEASURED = 256


class NoiseSource:
    """Draws ORP noise for rows of a prompt store, or normal numbers as large as that: noise that shows no picture.

    Args:
        bank: where the noise comes from. settings: how it is drawn.
        neighbours: each prompt's nearest crops; needed for ``nearest`` and ``mixed``.

    Raises:
        UserError: the neighbours are needed and missing.
    """

    def __init__(self, bank: OrpBank, settings: NoiseSettings, neighbours: Neighbours | None) -> None:
        if settings.needs_neighbours and neighbours is None:
            raise UserError(
                f"noise.draw = {settings.draw!r} needs each prompt's nearest crops, and there are none",
                "Run `dptr mine-neighbours`, or draw at random: --set noise.draw=random",
            )
        self.bank = bank
        self._settings = settings
        self._neighbours = neighbours
        self._size = _size_of_entries(bank) if settings.draw == "gaussian" else None

    def draw(self, rows: NDArray[np.int64], tokens: int, generator: np.random.Generator) -> StoredTokens:
        """Draw noise of shape (len(rows), tokens, dim): for each row one crop, and ``tokens`` of that crop's tokens.

        It comes in the precision that the bank stores. Tokens repeat within a row only when the crop has fewer than are
        needed. With ``whole_batch`` all rows share their positions, and crops repeat only when the bank has fewer than
        there are rows.
        """
        if self._size is not None:
            return StoredTokens(self._size * generator.standard_normal((len(rows), tokens, self.bank.dim), np.float32))
        crops = self._crops(rows, generator)
        available, drawn = self.bank.tokens_per_crop, 1 if self._settings.whole_batch else len(rows)
        if available >= tokens:
            positions = generator.random((drawn, available)).argsort(axis=1)[:, :tokens]
        else:
            positions = generator.integers(0, available, (drawn, tokens))
        positions = np.broadcast_to(positions, (len(rows), tokens))
        return self.bank.stored_tokens(crops, positions)

    def draw_pooled(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float32]:
        """Draw for each row where one crop's pooled vector points from the bank's mean: (rows, dim), of length one."""
        if self._size is not None:
            return _of_length_one(generator.standard_normal((len(rows), self.bank.dim), np.float32))
        vectors = self.bank.pooled_of(self._crops(rows, generator))
        return _of_length_one(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - self.bank.pooled_mean)

    def _crops(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        if self._settings.whole_batch and len(rows) <= len(self.bank):
            anywhere = generator.choice(len(self.bank), len(rows), replace=False)
        else:
            anywhere = generator.integers(0, len(self.bank), len(rows))
        if self._neighbours is None or not self._settings.needs_neighbours:
            return anywhere
        nearest = self._neighbours.of(rows)
        near: NDArray[np.int64] = nearest[np.arange(len(rows)), generator.integers(0, nearest.shape[1], len(rows))]
        if self._settings.draw == "nearest":
            return near
        wants_near = generator.random(len(rows)) < self._settings.nearest_share
        return np.asarray(np.where(wants_near, near, anywhere), np.int64)


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def _size_of_entries(bank: OrpBank) -> np.float32:
    """Return the root mean square of the numbers in the bank's embeddings, from crops spread evenly over it."""
    crops = np.unique(np.linspace(0, len(bank) - 1, _CROPS_MEASURED).astype(np.int64))
    positions = np.broadcast_to(np.arange(bank.tokens_per_crop), (len(crops), bank.tokens_per_crop))
    return np.float32(np.sqrt(np.mean(np.square(bank.tokens(crops, positions).astype(np.float32)))))
