"""A decoder of one pooled vector: a linear layer unfolds the vector into the memory that the decoder within reads.

The layer is trained with the decoder, and takes a text's vector and an image's alike. Where images are centred by a
mean, that mean is saved with the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, Memory, Targets


class PooledDecoder(Decoder):
    """Unfolds memories of one token (batch, 1, dim) into ``tokens`` of them, for another decoder to read.

    Attributes:
        image_mean: mean of images' vectors, each of length one, (dim,); zero where vectors are not centred.
    """

    image_mean: Tensor

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        super().__init__(decoder.shape)
        dim = decoder.shape.memory_dim
        self.decoder = decoder
        self.unfolding = nn.Linear(dim, tokens * dim)
        self.norm = nn.LayerNorm(dim)
        self.register_buffer("image_mean", torch.zeros(dim))

    def unfold(self, memory: Memory) -> Memory:
        """Memories of one vector to memories of several tokens."""
        # Entries of a vector of length one are small; a linear layer expects them near one.
        vectors = memory.tokens[:, 0] * memory.tokens.shape[2] ** 0.5
        return Memory(self.norm(self.unfolding(vectors).unflatten(1, (-1, memory.tokens.shape[2]))))

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Return the loss of the decoder within."""
        return self.decoder.loss(self.unfold(memory), targets)

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read with the decoder within."""
        return self.decoder.decode(self.unfold(memory), max_length)


def directions(vectors: Tensor, mean: Tensor | None) -> Tensor:
    """Scale vectors (..., dim) to length one; with the mean of such vectors, centre them by it and scale again."""
    scaled = F.normalize(vectors, dim=-1)
    return scaled if mean is None else F.normalize(scaled - mean, dim=-1)
