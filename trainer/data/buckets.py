"""Few shapes instead of many: batches padded to the next of some lengths, for losses that are compiled once a shape.

What is added is padding, which no loss counts and no attention sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch.nn.functional as F

from dptr.trainer.data.stored_memory import StoredMemory
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.recipe import DecoderSettings

Batch = TypeVar("Batch", bound="Paddable")


class Paddable(Protocol):
    """What a batch has to be."""

    def padded(self, positions: int) -> Any:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""


@dataclass(frozen=True)
class FewShapes(Generic[Batch]):
    """Batch number -> batch in one of few shapes; picklable, for workers."""

    batches: Callable[[int], Batch]
    positions: int

    def __call__(self, number: int) -> Batch:
        """Return batch ``number``, padded."""
        padded: Batch = self.batches(number).padded(self.positions)
        return padded


def few_shapes(batches: Callable[[int], Batch], decoder: DecoderSettings) -> FewShapes[Batch]:
    """Pad the batches that a decoder is trained on."""
    return FewShapes(batches, decoder.max_label_length + 1)


#: Lengths are padded to multiples of these. Positions cost more than memory tokens, each being read in every order.
POSITIONS, TOKENS = 4, 8


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
