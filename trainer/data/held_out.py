"""Which rows of a prompt store are for validation: by a hash of the label, looked at block by block.

A label's side depends on the label and the seed alone, case-insensitive: variants of case are never on both sides, and
growth of the store moves none. Words that were made up are all to learn from: nobody writes them, and how many of them
are read says nothing of the store's language.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.row_set import RowSet
from dptr.cache.stores.prompt_rows import within
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.validation import positions_of
from dptr.trainer.recipe import Recipe

_PLACES = 1 << 32


def split_rows(store: PromptStore, recipe: Recipe) -> tuple[NDArray[np.int64], RowSet]:
    """Return the rows to validate on, at most ``validation_rows`` of those that are for it, and the rows to train on.

    Those to validate on are row numbers, int64 of shape (rows,), rising.

    Raises:
        UserError: the store has too few labels.
    """
    settings = recipe.pretrain
    lowest = _Lowest(settings.validation_rows)

    limit = np.uint32(settings.validation_share * _PLACES)

    def trained_on() -> Iterator[NDArray[np.bool_]]:
        first = 0
        for hashes in store.rows.column("label_hash"):
            positions = positions_of(hashes, settings.seed)
            chosen = (positions < limit) & ~within(store.made_up, first, len(positions))
            lowest.add(first + np.flatnonzero(chosen), positions[chosen])
            first += len(positions)
            yield ~chosen

    training = RowSet(trained_on())
    if not len(lowest.rows) or not len(training):
        raise UserError(
            f"{store.folder} has {len(store)} rows, too few to keep {settings.validation_share:g} for validation",
            "Embed at least 100 labels, or change pretrain.validation_share",
        )
    return np.sort(lowest.rows), training


class _Lowest:
    """The ``count`` rows of the lowest positions, of two equal ones the first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows = np.zeros(0, np.int64)
        self._positions: NDArray[Any] = np.zeros(0)

    def add(self, rows: NDArray[np.int64], positions: NDArray[Any]) -> None:
        positions = np.concatenate([self._positions, positions])
        kept = np.argsort(positions, kind="stable")[: self._count]
        self.rows, self._positions = np.concatenate([self.rows, rows])[kept], positions[kept]
