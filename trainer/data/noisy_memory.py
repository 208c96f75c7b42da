"""Rows of a prompt store to the memory a decoder learns to read, with noise from an ORP bank.

The order of a row's tokens is the authors': pooled vector, states that all prompts share, states of the prompt's own
tokens. Memories of other kinds are in :mod:`~dptr.trainer.data.pooled_memory` and
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
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.training.settings import MemorySettings


def text_memory(store: PromptStore, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Gather rows as ``[pooled; prefix; states]``, padded to the longest row.

    Returns:
        tokens (batch, tokens, dim) float32, zero where padded; padding (batch, tokens), True where padded.
    """
    states = store.states(rows)
    prefix = store.prefix
    first_own = 1 + len(prefix)
    longest = int(states.lengths.max())
    tokens = np.zeros((len(rows), first_own + longest, prefix.shape[1]), np.float32)
    tokens[:, 0] = states.pooled
    tokens[:, 1:first_own] = prefix
    real = np.arange(longest) < states.lengths[:, None]
    tokens[:, first_own:][real] = states.tokens
    padding = np.zeros(tokens.shape[:2], np.bool_)
    padding[:, first_own:] = ~real
    return tokens, padding


def noisy_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    generator: np.random.Generator,
    settings: MemorySettings,
) -> Memory:
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
) -> Memory:
    """Return text states plus ``ratio`` times ORP states; padded positions stay masked."""
    states, padding = text_memory(store, rows)
    tokens = torch.from_numpy(states)
    if noise is not None and ratio > 0:
        # Torch widens half precision while it adds; NumPy would first write it out, number by number.
        tokens.add_(torch.from_numpy(noise.draw(rows, tokens.shape[1], generator)), alpha=ratio)
    return Memory(tokens, torch.from_numpy(padding))
