"""The Feature Merge Unit: learned queries cross-attend to all image tokens; their outputs are the decoder's memory.

The queries learn to attend to character foreground, so that the memory resembles the text embeddings that the decoder
was pre-trained on. Source: DPTR (ACM MM 2024), section 3.4. Defaults differ from the authors' code, where the unit has
no final norm and queries start as uninitialised memory: here query i starts as the sinusoids of the i-th part of the
image, those that the encoder's positions start with, and keys start as the queries' projection where the widths are
equal. So from the first step each query attends mostly to its own part of the image, and reading order need not be
learnt. :class:`~dptr.trainer.recipe.FmuSettings` has a key for each difference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptr.trainer.model.layers import Attention, FeedForward, initialize, sinusoids
from dptr.trainer.recipe import FmuSettings


class FeatureMergeUnit(nn.Module):
    """Cross-attention from learned queries to image tokens, then a pre-norm feed-forward, both residual.

    Args:
        image_dim: width of image tokens. memory_dim: width of queries and memory.
        columns: columns of the image's token grid, over which queries are spread.
        settings: sizes and variants. queries: number of queries; None: the settings'.
    """

    def __init__(
        self, image_dim: int, memory_dim: int, columns: int, settings: FmuSettings, queries: int | None = None
    ) -> None:
        super().__init__()
        count = settings.queries if queries is None else queries
        self.queries = nn.Parameter(torch.empty(count, memory_dim))
        self.attention = Attention(memory_dim, settings.heads, image_dim, settings.dropout)
        self.norm_feed_forward = nn.LayerNorm(memory_dim)
        self.feed_forward = FeedForward(memory_dim, 4 * memory_dim, settings.dropout)
        self.norm = nn.LayerNorm(memory_dim) if settings.final_norm else nn.Identity()
        self.dropout = nn.Dropout(settings.residual_dropout)
        self.apply(initialize)
        if settings.start == "positions":
            self._start_at_positions(image_dim, columns)
        else:
            nn.init.trunc_normal_(self.queries, std=0.02)

    def _start_at_positions(self, image_dim: int, columns: int) -> None:
        count, memory_dim = self.queries.shape
        positions = (torch.arange(count) + 0.5) * columns / count - 0.5
        self.queries.data.zero_()
        self.queries.data[:, : memory_dim - memory_dim // 2] = sinusoids(positions, memory_dim - memory_dim // 2)
        if image_dim == memory_dim:
            nn.init.orthogonal_(self.attention.query.weight)
            self.attention.key_value.weight.data[:memory_dim].copy_(self.attention.query.weight)

    def forward(self, image_tokens: Tensor) -> Tensor:
        """(batch, tokens, image_dim) -> (batch, queries, memory_dim)."""
        queries = self.queries.expand(image_tokens.shape[0], -1, -1)
        keys, values = self.attention.keys_values(image_tokens)
        x = queries + self.dropout(self.attention.attend(self.attention.queries(queries), keys, values, None))
        x = x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        normed: Tensor = self.norm(x)
        return normed

    def attention_map(self, image_tokens: Tensor) -> Tensor:
        """Return attention weights averaged over heads: (batch, queries, tokens), rows sum to one."""
        queries = self.attention.queries(self.queries.expand(image_tokens.shape[0], -1, -1))
        keys, _ = self.attention.keys_values(image_tokens)
        weights: Tensor = (queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5).softmax(-1)
        averaged: Tensor = weights.mean(1)
        return averaged
