"""Memories and image tokens in the stored precision, until they are on the device.

Copies between processes and to a GPU are half as large in half precision and a quarter in int8. So batches hold the
stored precision, and are converted to float32 on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dptr.cache.stores.shards import StoredTokens
from dptr.trainer.model.decoders.base import Memory, Tensors, sent

#: Memory tokens are padded to multiples of this where shapes are to be few.
TOKENS = 8


@dataclass(frozen=True)
class StoredTensor(Tensors):
    """Token embeddings as they are stored.

    Attributes:
        values: shape (.., dim), float16, float32 or int8.
        scale: what int8 values are multiplied by, shape (..), float32; None for the others.
    """

    values: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, tokens: StoredTokens) -> StoredTensor:
        """Take NumPy's arrays, without a copy."""
        scale = None if tokens.scale is None else torch.from_numpy(tokens.scale)
        return cls(torch.from_numpy(tokens.values), scale)

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> Tensor:
        """Return the embeddings on a device, as float32, shape (.., dim)."""
        widened = sent(self.values, device).float()
        return widened if self.scale is None else widened * sent(self.scale, device)[..., None]

    def gather(self, at: Tensor, out: Tensor) -> None:
        """Write the embeddings at ``at``, shape (batch, places), to ``out``, float32 on its device: (.., dim)."""
        out.copy_(sent(self.values, out.device)[at])  # widens on the way
        if self.scale is not None:
            out.mul_(sent(self.scale, out.device)[at][..., None])


@dataclass(frozen=True)
class StoredMemory(Tensors):
    """The parts of a memory: :meth:`to` puts them together where the decoder is.

    Attributes:
        embeddings: text embeddings of all rows behind each other, shape (embeddings, dim).
        places: which state stands where, shape (batch, places), int64; -1: none.
        pooled: each row's pooled vector, which comes first, shape (batch, dim); None: there is none.
        prefix: the embeddings that come next in every row, shape (prefix, dim).
        noise: what is added, ``ratio`` times, shape (batch, tokens, dim); None: nothing.
        shared: embeddings that several rows have, to which ``places`` count on from the last of ``embeddings``,
            (shared, dim).
        padded: whether places without a state are padding; else they are zero, as columns beside a word.
    """

    embeddings: StoredTensor
    places: Tensor
    pooled: Tensor | None = None
    prefix: Tensor | None = None
    noise: StoredTensor | None = None
    ratio: float = 0.0
    shared: Tensor | None = None
    padded: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of each row's memory."""
        before = 0 if self.prefix is None else len(self.prefix)
        return (self.pooled is not None) + before + self.places.shape[1]

    def with_noise(self, noise: StoredTokens, ratio: float) -> StoredMemory:
        """Return this memory with noise of shape (batch, tokens, dim)."""
        return replace(self, noise=StoredTensor.of(noise), ratio=ratio)

    def to(self, device: torch.device | str) -> Memory:
        """Return the memory on a device: ``[pooled; prefix; embeddings]`` plus noise, float32."""
        places = sent(self.places, device)
        missing = places < 0
        first = self.tokens - places.shape[1]
        tokens = torch.empty(len(places), self.tokens, self.embeddings.values.shape[1], device=places.device)
        self.embeddings.gather(places.clamp(0, len(self.embeddings) - 1), tokens[:, first:])
        tokens[:, first:].masked_fill_(missing[..., None], 0.0)
        if self.shared is not None:
            common = places >= len(self.embeddings)
            tokens[:, first:][common] = sent(self.shared, device)[places[common] - len(self.embeddings)]
        if self.prefix is not None:
            tokens[:, first - len(self.prefix) : first] = sent(self.prefix, device)
        if self.pooled is not None:
            tokens[:, 0] = sent(self.pooled, device)
        if self.noise is not None:
            # Of half precision each number is widened while it is added, and never written out wide.
            drawn = sent(self.noise.values, device) if self.noise.scale is None else self.noise.to(device)
            tokens[:, : drawn.shape[1]].add_(drawn, alpha=self.ratio)
        if not self.padded:
            return Memory(tokens)
        return Memory(tokens, torch.cat([missing.new_zeros(len(places), first), missing], dim=1))

    def padded_to_few(self) -> StoredMemory:
        """Pad tokens to a multiple of :data:`TOKENS`; those of a fixed number stay as they are."""
        if not self.padded:
            return self
        return replace(self, places=F.pad(self.places, (0, -self.tokens % TOKENS), value=-1))
