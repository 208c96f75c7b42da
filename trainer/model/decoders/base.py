"""Interface of decoders: a memory in, logits of characters out.

A decoder is trained on text embeddings and later given image tokens; both arrive as the same :class:`Memory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.text.charset import Charset
from dptr.trainer.choices import Refinement

#: Labels are padded to multiples of this where shapes are to be few. Positions cost more than memory tokens, each being
#: read in every order.
POSITIONS = 4


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; to a GPU it goes while that computes.

    From memory that is not pinned, the processor would have to wait until the GPU has done all it was given.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Tensors:
    """Tensors that go to a device together: what a batch is made of."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with each tensor changed, those of its parts as well."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, Tensors):
                changed[field.name] = value.each(change)
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Any:
        """Return a copy on a device."""
        return self.each(lambda tensor: sent(tensor, device))

    def pin_memory(self) -> Self:
        """Return a copy from which a GPU takes it while it computes."""
        return self.each(Tensor.pin_memory)


@dataclass(frozen=True)
class Memory(Tensors):
    """Input of a decoder's cross-attention.

    Attributes:
        tokens: shape (batch, tokens, dim).
        padding: shape (batch, tokens), True where there is no token; None when every token is real.
    """

    tokens: Tensor
    padding: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """True for tokens that are not padding, shape (batch, tokens)."""
        return torch.ones_like(self.tokens[..., 0], dtype=torch.bool) if self.padding is None else ~self.padding

    @property
    def mask(self) -> Tensor | None:
        """Attention mask, True for real tokens, (batch, 1, 1, tokens), broadcast over heads and queries; None: all."""
        return None if self.padding is None else ~self.padding[:, None, None, :]


@dataclass(frozen=True)
class Targets(Tensors):
    """Labels as ids, padded to the longest label of the batch, or further where shapes are to be few.

    Attributes:
        inputs: begin, characters, then padding; shape (batch, length), int64.
        outputs: characters, end, then padding; shape (batch, length), int64.
        longest: characters of the longest label; None: length - 1, as nothing is padded further.
        seen: outputs with labels as they are seen from left to right, for a loss on columns; None: they are so already.
    """

    inputs: Tensor
    outputs: Tensor
    end: int
    padding: int
    longest: int | None = None
    seen: Tensor | None = None

    @property
    def characters(self) -> int:
        """Characters of the longest label."""
        return self.inputs.shape[1] - 1 if self.longest is None else self.longest

    @property
    def of_columns(self) -> Targets:
        """The same with labels as they are seen from left to right."""
        return self if self.seen is None else replace(self, outputs=self.seen, seen=None)

    @classmethod
    def of(cls, labels: Sequence[str], charset: Charset, for_columns: bool = False) -> Targets:
        """Encode labels with a charset that covers them; ``for_columns`` as they are seen, too."""
        outputs = _outputs(labels, charset)
        inputs = np.full_like(outputs, charset.padding)
        inputs[:, 0] = charset.begin
        inputs[:, 1:] = np.where(outputs == charset.end, charset.padding, outputs)[:, :-1]
        seen = None
        if for_columns and charset.as_seen is not charset:
            seen = torch.from_numpy(_outputs(labels, charset.as_seen))
        return cls(torch.from_numpy(inputs), torch.from_numpy(outputs), charset.end, charset.padding, seen=seen)

    def padded(self, most: int) -> Targets:
        """Pad to a multiple of :data:`POSITIONS`, and to ``most`` positions at most, the end's included."""
        length = self.inputs.shape[1]
        added = (0, min(-length % POSITIONS, max(most - length, 0)))
        return replace(self.each(lambda ids: F.pad(ids, added, value=self.padding)), longest=self.characters)


def _outputs(labels: Sequence[str], charset: Charset) -> NDArray[np.int64]:
    """Return the ids of labels, each followed by the end and padding: (batch, length)."""
    encoded = [charset.encode(label) for label in labels]
    outputs = np.full((len(labels), max(len(ids) for ids in encoded) + 1), charset.padding)
    for row, ids in enumerate(encoded):
        outputs[row, : len(ids)] = ids
        outputs[row, len(ids)] = charset.end
    return outputs


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder.

    Attributes:
        dim: width of the decoder. memory_dim: width of the memory's tokens. feed_forward: hidden width.
        characters: size of the charset; classes are one more (the end).
        max_label_length: longest label it can read.
        permutations, refinements, refinement: used by the permuted autoregressive decoder only.
    """

    dim: int
    memory_dim: int
    heads: int
    layers: int
    feed_forward: int
    dropout: float
    characters: int
    max_label_length: int
    permutations: int = 6
    refinements: int = 1
    refinement: Refinement = "cloze"


class Decoder(nn.Module, ABC):
    """Reads characters out of a memory."""

    #: Whether it adds to the memory where each token stands; else tokens have to carry it.
    positions_memory: bool = False
    #: Whether each token of the memory names a letter, from left to right: labels are then learnt as they are seen.
    reads_columns: bool = False

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.classes = shape.characters + 1
        self.end = 0
        self.begin = shape.characters + 1
        self.padding = shape.characters + 2

    @abstractmethod
    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Return the training loss, a scalar. Random choices come from torch's global generator."""

    @abstractmethod
    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read.

        Args:
            memory: what to read.
            max_length: most characters to read; the decoder's own maximum when None.

        Returns:
            logits, shape (batch, length, classes) with length <= max_length + 1: one more than characters, for the end.
        """

    def steps(self, max_length: int | None) -> int:
        """Return how many positions a reading of at most ``max_length`` characters has, the end included."""
        longest = self.shape.max_label_length
        return (longest if max_length is None else min(max_length, longest)) + 1
