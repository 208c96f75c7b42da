"""All characters at once: one query a position looks at the queries before it and at the memory.

It never sees a character it has read, so it is the fastest to read with and learns least of the language. Source: the
parallel visual attention of SRN (CVPR 2020) and ABINet (CVPR 2021), as a transformer over position queries. Their
queries do not see each other; here each sees those before it, because where a character stands in the memory depends
on how much the earlier ones have used up. None sees a later one, so a batch costs no more than its longest label.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.decoders.decoder_layer import DecoderLayer
from dptr.trainer.model.layers import Attention, FeedForward, initialize


class MemoryLayer(nn.Module):
    """Tokens of the memory look at each other: a text state then knows how many characters stand before its own."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.project = nn.Linear(shape.memory_dim, shape.dim)
        self.norm_attention = nn.LayerNorm(shape.dim)
        self.attention = Attention(shape.dim, shape.heads, dropout=shape.dropout)
        self.norm_feed_forward = nn.LayerNorm(shape.dim)
        self.feed_forward = FeedForward(shape.dim, shape.feed_forward, shape.dropout)
        self.norm = nn.LayerNorm(shape.dim)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, memory: Memory) -> Tensor:
        """(batch, tokens, memory_dim) -> (batch, tokens, dim)."""
        x = self.project(memory.tokens)
        normed = self.norm_attention(x)
        keys, values = self.attention.keys_values(normed)
        x = x + self.dropout(self.attention.attend(self.attention.queries(normed), keys, values, memory.mask))
        out: Tensor = self.norm(x + self.dropout(self.feed_forward(self.norm_feed_forward(x))))
        return out


class ParallelDecoder(Decoder):
    """Non-autoregressive decoder over position queries."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.positions = nn.Parameter(torch.empty(shape.max_label_length + 1, shape.dim))
        self.memory_layer = MemoryLayer(shape)
        inner = dataclasses.replace(shape, memory_dim=shape.dim)
        self.layers = nn.ModuleList(DecoderLayer(inner) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, self.classes)
        self.dropout = nn.Dropout(shape.dropout)
        self.apply(initialize)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy of every character and of the first end, a scalar."""
        logits = self._forward(memory, targets.outputs.shape[1]).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.outputs.flatten(), ignore_index=targets.padding)

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read every position in one pass: logits (batch, positions, classes), nothing meant behind the first end."""
        logits = self._forward(memory, self.steps(max_length))
        if torch.compiler.is_exporting():  # a graph's shapes cannot hang on what was read
            return logits
        ends = logits.argmax(-1) == self.end
        longest = int(torch.where(ends.any(1), ends.int().argmax(1) + 1, logits.shape[1]).max())
        return logits[:, :longest]

    def _forward(self, memory: Memory, length: int) -> Tensor:
        """Return logits for the first ``length`` positions."""
        x: Tensor = self.dropout(self.positions[:length].expand(memory.tokens.shape[0], -1, -1))
        tokens = self.memory_layer(memory)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for layer in cast(list[DecoderLayer], list(self.layers)):
            normed = layer.norm_content(x)
            x = layer.look(x, normed, layer.self_attention.keys_values(normed), causal)
            x = layer.read(x, layer.cross_attention.keys_values(tokens), memory.mask)
        logits: Tensor = self.head(self.norm(x))
        return logits
