"""Autoregressive decoders: their base, with embeddings and the greedy loop, and NRTR, the plain transformer.

NRTR reads each character from those before it and from the memory. One order and one stream, so its training step is
the cheapest; it cannot refine what it has read. Source: NRTR ("A No-Recurrence Sequence-to-Sequence Model For Scene
Text Recognition", ICDAR 2019), the decoder; norms stand before the blocks here, which trains without a long warm-up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.layers import DecoderLayer, KeysValues, extend, initialize

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


class NrtrDecoder(AutoregressiveDecoder[DecoderLayer]):
    """Causal self-attention over the characters, cross-attention to the memory."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape, DecoderLayer)

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy of every character and of the end, a scalar."""
        length = targets.inputs.shape[1]
        # Padding stands behind the label, where the causal mask keeps every counted position from attending.
        causal = torch.ones(length, length, dtype=torch.bool, device=targets.inputs.device).tril()
        x = self.dropout(self.embed(targets.inputs))
        for layer in self.stack:
            normed = layer.norm_content(x)
            x = layer.self_attend(x, normed, layer.self_attention.keys_values(normed), causal)
            x = layer.cross_attend(x, layer.cross_attention.keys_values(memory.tokens), memory.mask)
        logits = self.logits(x).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.outputs.flatten(), ignore_index=targets.padding)

    def prediction(self, memory: Memory) -> Step:
        """Keep keys and values of the memory and of every character read so far."""
        memories = [layer.cross_attention.keys_values(memory.tokens) for layer in self.stack]
        caches: list[KeysValues | None] = [None] * len(self.layers)

        def step(ids: Tensor, position: int) -> Tensor:
            x = self.embed(ids, position)
            for depth, layer in enumerate(self.stack):
                normed = layer.norm_content(x)
                cache = extend(caches[depth], layer.self_attention.keys_values(normed))
                caches[depth] = cache
                x = layer.self_attend(x, normed, cache, None)
                x = layer.cross_attend(x, memories[depth], memory.mask)
            return self.logits(x)

        return step
