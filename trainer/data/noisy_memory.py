"""Rows of a prompt store to the memory a decoder learns to read, with noise from an ORP bank.

The order of a row's tokens is the authors': pooled vector, embeddings that all prompts share, embeddings of the
prompt's own tokens. Memories of other kinds are in :mod:`~dptr.trainer.data.pooled_memory` and
:mod:`~dptr.trainer.data.column_memory`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.data.column_memory import column_memory
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.data.pooled_memory import pooled_memory
from dptr.trainer.data.stored_memory import StoredMemory, StoredTensor
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.recipe import MemorySettings


def text_memory(store: PromptStore, rows: NDArray[np.int64]) -> StoredMemory:
    """Gather ``rows``, shape (batch,), as ``[pooled; prefix; embeddings]``, padded to the longest row."""
    embeddings = store.stored_embeddings(rows)
    starts, own = np.cumsum(embeddings.lengths) - embeddings.lengths, np.arange(int(embeddings.lengths.max()))
    places = np.where(own < embeddings.lengths[:, None], starts[:, None] + own, -1)
    stored, pooled = StoredTensor.of(embeddings.tokens), torch.from_numpy(embeddings.pooled)
    if len(store.prefixes) == 1:
        return StoredMemory(stored, torch.from_numpy(places), pooled, torch.from_numpy(store.prefix))
    return StoredMemory(
        stored,
        torch.from_numpy(_behind_prefixes(store, rows, places, embeddings.lengths)),
        pooled,
        shared=torch.from_numpy(np.concatenate(store.prefixes)),
    )


def _behind_prefixes(
    store: PromptStore, rows: NDArray[np.int64], places: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return ``places`` (batch, own) behind those of each row's prefix, which count on from the embeddings' last."""
    shared = np.array([len(prefix) for prefix in store.prefixes])
    which = store.templates_of(rows)
    firsts, before = (lengths.sum() + np.cumsum(shared) - shared)[which, None], shared[which, None]
    at = np.arange(int((before[:, 0] + lengths).max()))
    padded = np.pad(places, ((0, 0), (0, 1)), constant_values=-1)
    own = np.take_along_axis(padded, np.clip(at - before, 0, places.shape[1]), axis=1)
    return np.where(at < before, firsts + at, own)


def noisy_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    generator: np.random.Generator,
    settings: MemorySettings,
) -> Memory | StoredMemory:
    """Return a memory of the recipe's kind, with noise of size ``ratio``."""
    if settings.kind == "pooled":
        return pooled_memory(store, rows, noise, ratio, settings.centred, generator)
    if settings.kind == "columns":
        return column_memory(store, rows, noise, ratio, settings.columns, generator)
    return token_memory(store, rows, noise, ratio, generator)


def token_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    generator: np.random.Generator,
) -> StoredMemory:
    """Return text embeddings of ``rows``, shape (batch,), plus ``ratio`` times ORP noise; padding stays masked."""
    memory = text_memory(store, rows)
    if noise is None or ratio == 0:
        return memory
    return memory.with_noise(noise.draw(rows, memory.tokens, generator), ratio)
