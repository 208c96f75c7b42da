"""Layers of decoders, encoders and the Feature Merge Unit: attention over given keys, feed-forward.

Keys and values are computed separately from attention, so that they can be reused (for all permutations, streams and
decoding steps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from dptr.trainer.model.decoders.base import DecoderShape


class Attention(nn.Module):
    """Multi-head attention whose keys and values are projected separately."""

    def __init__(self, dim: int, heads: int, memory_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(memory_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def queries(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, heads, length, head_dim)."""
        return self._split(self.query(x))

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, memory_dim) -> keys and values, each (batch, heads, tokens, head_dim)."""
        keys, values = self.key_value(memory).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Mix values by attention.

        Args:
            queries: (batch, heads, length, head_dim). keys, values: (batch, heads, tokens, head_dim).
            mask: boolean, broadcastable to (batch, heads, length, tokens), True where a query may attend.

        Returns:
            (batch, length, dim).
        """
        dropout = self.dropout if self.training else 0.0
        mixed = attention(queries, keys, values, mask, dropout)
        batch, _, length, _ = mixed.shape
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, self.heads, -1).transpose(1, 2)


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017): shapes as in :meth:`Attention.attend`.

    In bf16 on a CPU, the backward pass of torch's fused kernel takes three to ten times as long as plain products over
    the few tokens of a word; there, and only there, plain products are what runs.
    """
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(-1), dropout)
    return weights.to(values.dtype) @ values


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class SelfAttentionLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, residuals round both."""

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout=dropout)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, feed_forward, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, dim) -> the same; ``mask`` is boolean, (batch, 1, 1, tokens), True where it may attend."""
        normed = self.norm_attention(x)
        keys, values = self.attention.keys_values(normed)
        x = x + self.attention.attend(self.attention.queries(normed), keys, values, mask)
        out: Tensor = x + self.feed_forward(self.norm_feed_forward(x))
        return out


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Return sines and cosines of positions (count,) at geometric frequencies, (count, dim), as in the Transformer."""
    frequencies = 1e4 ** -torch.linspace(0, 1, -(-dim // 2), device=positions.device)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


def grid_positions(rows: int, columns: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return where each token of a grid stands, half of the width for its column and half for its row.

    Without them, or with learnt ones that start near zero, a decoder reads the right characters in the wrong order for
    thousands of steps.

    Returns:
        shape (rows * columns, dim), row by row.
    """
    of_rows, of_columns = torch.arange(rows, device=device), torch.arange(columns, device=device)
    row, column = torch.meshgrid(of_rows, of_columns, indexing="ij")
    half = dim // 2
    return torch.cat([sinusoids(column.flatten(), dim - half), sinusoids(row.flatten(), half)], dim=1)


def initialize(module: nn.Module) -> None:
    """Truncated-normal weights and zero biases, as vision transformers and PARSeq start."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


KeysValues = tuple[Tensor, Tensor]


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to the memory and feed-forward, each with a residual.

    Both attentions take keys and values that the caller has computed, so that it can keep them between decoding steps
    or share them between streams.
    """

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
