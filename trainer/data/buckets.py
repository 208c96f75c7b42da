"""Few shapes instead of many: batches padded to the next of some lengths, for losses that are compiled once a shape.

What is added is padding, which no loss counts and no attention sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F

from dptr.trainer.data.stored_memory import StoredMemory
from dptr.trainer.model.decoders.base import Memory, Targets

#: Lengths are padded to multiples of these. Positions cost more than memory tokens, each being read in every order.
POSITIONS, TOKENS = 4, 8


def few_shapes(batches: Callable[[int], Any], longest_label: int) -> Callable[[int], Any]:
    """Pad batches, which have a method ``padded``, to few shapes; picklable, for workers."""
    return partial(_padded, batches, longest_label + 1)


def _padded(batches: Callable[[int], Any], positions: int, number: int) -> Any:
    return batches(number).padded(positions)


def padded_targets(targets: Targets, most: int) -> Targets:
    """Pad targets to a multiple of :data:`POSITIONS`, and to ``most`` positions at most, the end's included."""
    length = targets.inputs.shape[1]
    added = (0, min(-length % POSITIONS, max(most - length, 0)))
    padded = targets.each(lambda ids: F.pad(ids, added, value=targets.padding))
    return replace(padded, longest=targets.characters)


def padded_memory(memory: Memory | StoredMemory) -> Memory | StoredMemory:
    """Pad a memory's tokens to a multiple of :data:`TOKENS`; those of a fixed number stay as they are."""
    if not (isinstance(memory, StoredMemory) and memory.padded):
        return memory
    return replace(memory, places=F.pad(memory.places, (0, -memory.tokens % TOKENS), value=-1))
