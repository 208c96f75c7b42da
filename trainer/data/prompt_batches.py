"""Batches of noisy memories with labels from a prompt store, and its split into training and validation rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.row_set import RowSet, positions_of
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.trainer.data.batch_order import BatchOrder, WeightedRows
from dptr.trainer.data.noisy_memory import NoiseSource, noisy_memory
from dptr.trainer.data.stored_memory import StoredMemory
from dptr.trainer.model.decoders.base import Memory, Targets, Tensors
from dptr.trainer.recipe import Recipe
from dptr.trainer.seeds import generator_of


@dataclass(frozen=True)
class PromptBatch(Tensors):
    """A batch of noisy memories with their labels."""

    memory: Memory | StoredMemory
    targets: Targets

    def __len__(self) -> int:
        return len(self.targets.inputs)

    def to(self, device: torch.device | str) -> PromptBatch:
        """Return the batch on a device, its memory put together."""
        return PromptBatch(self.memory.to(device), self.targets.to(device))

    def padded(self, positions: int) -> PromptBatch:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""
        memory = self.memory.padded_to_few() if isinstance(self.memory, StoredMemory) else self.memory
        return PromptBatch(memory, self.targets.padded(positions))


@dataclass(frozen=True)
class CountWeights:
    """Weights of a store's rows: their labels' counts to a power, 0 for those not among ``rows``."""

    store: PromptStore
    rows: RowSet
    power: float

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of ``rows``, of the same shape."""
        return np.where(self.rows.holds(rows), self.store.counts_of(rows).astype(np.float64) ** self.power, 0.0)


class PromptBatches:
    """Batch number -> :class:`PromptBatch`; a pure function of the recipe's seed and the number."""

    def __init__(
        self,
        store: PromptStore,
        noise: NoiseSource | None,
        rows: RowSet,
        recipe: Recipe,
        charset: Charset | None = None,
    ) -> None:
        """Labels are encoded with the run's ``charset``; None: the store's."""
        settings = recipe.pretrain
        weighted = None
        if settings.sampling == "count":
            weighted = WeightedRows(len(store), CountWeights(store, rows, settings.count_power))
        # The decoder's work grows with the label, the memory's with the tokens; labels cost more.
        self._order = BatchOrder(rows, store.label_lengths_of, settings.batch_size, settings.seed, weighted)
        self._store = store
        self._noise = noise
        self._ratio = recipe.noise.ratio
        self._memory = recipe.memory
        self._seed = settings.seed
        self._charset = charset or store.charset

    def __call__(self, number: int) -> PromptBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows = self._order.rows_of(number)
        generator = generator_of(self._seed, "noise", number)
        memory = noisy_memory(self._store, rows, self._noise, self._ratio, generator, self._memory)
        return PromptBatch(memory, Targets.of(self._store.labels_of(rows), self._charset))

    def require_finite(self, number: int) -> None:
        """Check what batch ``number`` was made of.

        Raises:
            DamagedStore: a row of the store or the bank holds NaN or infinity; the error names it.
        """
        self._store.require_finite(self._order.rows_of(number))
        if self(number).memory.to("cpu").tokens.isfinite().all():
            return
        # Noise, or the mean by which pooled vectors are centred.
        for store in [self._store] if self._noise is None else [self._store, self._noise.bank]:
            store.require_finite(np.arange(len(store)))


_PLACES = 1 << 32


def split_rows(store: PromptStore, recipe: Recipe) -> tuple[NDArray[np.int64], RowSet]:
    """Return the rows to validate on, at most ``validation_rows`` of those that are for it, and the rows to train on.

    The split depends only on label and seed, case-insensitive: case variants are on the same side, and growth of the
    store moves none. Made-up words are for training only: their accuracy does not describe the store's language.
    Validation rows are row numbers, int64 of shape (rows,), ascending.

    Raises:
        UserError: the store has too few labels.
    """
    settings = recipe.pretrain
    lowest = _Lowest(settings.validation_rows)

    limit = np.uint32(settings.validation_share * _PLACES)

    def trained_on() -> Iterator[NDArray[np.bool_]]:
        first = 0
        columns = store.rows.column("label_hash"), store.rows.column("made_up")
        for hashes, made_up in zip(*columns, strict=True):
            positions = positions_of(hashes, settings.seed)
            chosen = (positions < limit) & (made_up == 0)
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
