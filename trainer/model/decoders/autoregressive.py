"""Base of autoregressive decoders: embeddings of characters and positions, and the greedy loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory
from dptr.trainer.model.layers import DecoderLayer, initialize

#: One decoding step: ids (batch, 1) of the newest inputs and their position -> logits (batch, 1, classes).
Step = Callable[[Tensor, int], Tensor]


Layer = TypeVar("Layer", bound=DecoderLayer)


class AutoregressiveDecoder(Decoder, Generic[Layer]):
    """A decoder whose inputs are the characters read so far, the begin first."""

    def __init__(self, shape: DecoderShape, layer: type[Layer]) -> None:
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.dim)
        self.embedding = nn.Embedding(shape.characters + 3, shape.dim)
        self.positions = nn.Parameter(torch.empty(shape.max_label_length + 1, shape.dim))
        self.head = nn.Linear(shape.dim, self.classes)
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.layers = nn.ModuleList(layer(shape) for _ in range(shape.layers))
        self.apply(initialize)

    @property
    def stack(self) -> list[Layer]:
        """The layers, in order."""
        return cast(list[Layer], list(self.layers))

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Embed inputs (batch, length) that start at position ``first``; the begin carries no position."""
        embedded: Tensor = self.embedding(ids) * self.shape.dim**0.5
        if first > 0:
            return embedded + self.positions[first - 1 : first - 1 + ids.shape[1]]
        return torch.cat([embedded[:, :1], embedded[:, 1:] + self.positions[: ids.shape[1] - 1]], dim=1)

    def logits(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> logits (batch, length, classes)."""
        out: Tensor = self.head(self.norm(x))
        return out

    @abstractmethod
    def prediction(self, memory: Memory) -> Step:
        """Start to read a memory; the step that comes back keeps what it has computed between calls."""

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read left to right, each time taking the likeliest character; logits (batch, positions, classes)."""
        step, length = self.prediction(memory), self.steps(max_length)
        ids = torch.full((memory.tokens.shape[0], 1), self.begin, device=memory.tokens.device)
        finished = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        logits: list[Tensor] = []
        for position in range(length):
            logits.append(step(ids, position))
            ids = logits[-1].argmax(-1)
            finished |= ids[:, 0] == self.end
            # An exported graph cannot end early; what follows an end is never read.
            if not torch.compiler.is_exporting() and bool(finished.all()):
                break
        return torch.cat(logits, dim=1)
