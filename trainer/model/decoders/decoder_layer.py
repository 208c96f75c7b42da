"""One transformer decoder layer: self-attention, cross-attention to the memory, feed-forward.

Both attentions take keys and values that the caller has computed, so that it can keep them between decoding steps
or share them between streams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import DecoderShape
from dptr.trainer.model.layers import Attention, FeedForward

KeysValues = tuple[Tensor, Tensor]


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to the memory and feed-forward, each with a residual."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.norm_content = nn.LayerNorm(shape.dim)
        self.norm_cross = nn.LayerNorm(shape.dim)
        self.norm_feed_forward = nn.LayerNorm(shape.dim)
        self.self_attention = Attention(shape.dim, shape.heads, dropout=shape.dropout)
        self.cross_attention = Attention(shape.dim, shape.heads, shape.memory_dim, shape.dropout)
        self.feed_forward = FeedForward(shape.dim, shape.feed_forward, shape.dropout)
        self.dropout = nn.Dropout(shape.dropout)

    def self_attend(self, x: Tensor, normed: Tensor, content: KeysValues, mask: Tensor | None) -> Tensor:
        """Self-attention with its residual: ``x`` and ``normed``, ``x`` after the norm, are (batch, length, dim).

        Args:
            content: keys and values, each (batch, heads, tokens, head_dim).
            mask: broadcastable to (batch, heads, length, tokens), True where a query may attend.
        """
        mixed = self.self_attention.attend(self.self_attention.queries(normed), *content, mask)
        out: Tensor = x + self.dropout(mixed)
        return out

    def cross_attend(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        """Cross-attention to the memory, then the feed-forward, each with its residual.

        Args:
            x: (batch * streams, length, dim); streams of one row share its memory and fold into the length.
            memory: keys and values, each (batch, heads, tokens, head_dim).
            mask: broadcastable to (batch, heads, length, tokens), True where a query may attend.
        """
        batch = memory[0].shape[0]
        folded: Tensor = x.reshape(batch, -1, x.shape[-1])
        queries = self.cross_attention.queries(self.norm_cross(folded))
        folded = folded + self.dropout(self.cross_attention.attend(queries, *memory, mask))
        folded = folded + self.dropout(self.feed_forward(self.norm_feed_forward(folded)))
        return folded.reshape(x.shape)


def extend(cache: KeysValues | None, new: KeysValues) -> KeysValues:
    """Append keys and values of new positions to those kept from earlier decoding steps."""
    if cache is None:
        return new
    return torch.cat([cache[0], new[0]], dim=2), torch.cat([cache[1], new[1]], dim=2)
