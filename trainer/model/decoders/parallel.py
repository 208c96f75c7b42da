"""All characters in one pass: a query per position, causal self-attention over queries, cross-attention to the memory.

Its input holds no character that was read, so one pass reads a word, and it learns least of the language. Source: the
parallel visual attention of SRN (CVPR 2020) and ABINet (CVPR 2021), as a transformer over position queries. Their
queries do not attend to each other; here each attends to those before it, because where a character stands in the
memory depends on how many tokens the earlier ones take. None attends to a later one, so queries behind the batch's
longest label need not be computed.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.layers import Attention, DecoderLayer, FeedForward, initialize


class MemoryLayer(nn.Module):
    """Self-attention over the memory's tokens: a token can then carry how many characters stand before its own."""

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
        """Read every position in one pass: logits (batch, positions, classes), meaningless behind the first end."""
        logits = self._forward(memory, self.steps(max_length))
        if torch.compiler.is_exporting():  # a graph's shapes cannot depend on predictions
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
            x = layer.self_attend(x, normed, layer.self_attention.keys_values(normed), causal)
            x = layer.cross_attend(x, layer.cross_attention.keys_values(tokens), memory.mask)
        logits: Tensor = self.head(self.norm(x))
        return logits
