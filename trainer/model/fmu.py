"""The Feature Merge Unit: learned queries cross-attend to all image tokens; what they gather is the decoder's memory.

Its queries learn to attend to character foreground, so that what the decoder reads resembles the text states it was
pre-trained on. Source: DPTR (ACM MM 2024), section 3.4. In the authors' code the queries start as uninitialised memory;
here query i starts as the sinusoids of the i-th part of the image, those that the encoder's positions start with, and
keys start as the queries' projection where the widths are equal: from the first step each query attends mostly to its
own part of the image, and reading order need not be learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptr.trainer.model.layers import Attention, FeedForward, initialize, sinusoids


class FeatureMergeUnit(nn.Module):
    """Cross-attention from learned queries to image tokens, then a pre-norm feed-forward, both residual."""

    def __init__(
        self, image_dim: int, memory_dim: int, queries: int, columns: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, memory_dim))
        self.attention = Attention(memory_dim, heads, image_dim, dropout)
        self.norm_feed_forward = nn.LayerNorm(memory_dim)
        self.feed_forward = FeedForward(memory_dim, 4 * memory_dim, dropout)
        self.norm = nn.LayerNorm(memory_dim)
        self.apply(initialize)
        positions = (torch.arange(queries) + 0.5) * columns / queries - 0.5
        self.queries.data.zero_()
        self.queries.data[:, : memory_dim - memory_dim // 2] = sinusoids(positions, memory_dim - memory_dim // 2)
        if image_dim == memory_dim:
            nn.init.orthogonal_(self.attention.query.weight)
            self.attention.key_value.weight.data[:memory_dim].copy_(self.attention.query.weight)

    def forward(self, image_tokens: Tensor) -> Tensor:
        """(batch, tokens, image_dim) -> (batch, queries, memory_dim)."""
        queries = self.queries.expand(image_tokens.shape[0], -1, -1)
        keys, values = self.attention.keys_values(image_tokens)
        x = queries + self.attention.attend(self.attention.queries(queries), keys, values, None)
        x = x + self.feed_forward(self.norm_feed_forward(x))
        normed: Tensor = self.norm(x)
        return normed

    def attention_map(self, image_tokens: Tensor) -> Tensor:
        """Return attention weights averaged over heads: (batch, queries, tokens), rows sum to one."""
        queries = self.attention.queries(self.queries.expand(image_tokens.shape[0], -1, -1))
        keys, _ = self.attention.keys_values(image_tokens)
        weights: Tensor = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1)
        averaged: Tensor = weights.mean(1)
        return averaged
