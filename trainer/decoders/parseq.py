"""PARSeq's decoder: two streams, many reading orders, one pass.

A content stream holds the characters read so far; a query stream holds one question per position. Training reads each
label in several orders. Taken one after another, as elsewhere, every order repeats the same projections; here

- all orders run in one batch;
- keys and values of the memory are made once a layer, for both streams and all orders;
- in the first layer the content does not depend on the order yet, so its keys, values and queries are made once, too.

The loss is the same. Source: PARSeq (ECCV 2022) and, for training it on text states, DPTR (ACM MM 2024).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.decoders.layers import Attention, FeedForward, initialize
from dptr.trainer.decoders.permutations import attention_masks, cloze_orders, draw_permutations

KeysValues = tuple[Tensor, Tensor]


class TwoStreamLayer(nn.Module):
    """One layer: self-attention from either stream to the content, cross-attention to the memory, feed-forward."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(shape.dim)
        self.norm_content = nn.LayerNorm(shape.dim)
        self.norm_cross = nn.LayerNorm(shape.dim)
        self.norm_feed_forward = nn.LayerNorm(shape.dim)
        self.self_attention = Attention(shape.dim, shape.heads, dropout=shape.dropout)
        self.cross_attention = Attention(shape.dim, shape.heads, shape.memory_dim, shape.dropout)
        self.feed_forward = FeedForward(shape.dim, shape.feed_forward, shape.dropout)
        self.dropout = nn.Dropout(shape.dropout)

    def look(self, x: Tensor, normed: Tensor, content: KeysValues, mask: Tensor | None) -> Tensor:
        """Self-attention from a stream to the content.

        ``x`` is (batch * orders, length, dim); where ``normed`` and ``content`` have fewer rows than that, the orders
        share them, and fold into the length.
        """
        queries = self.self_attention.queries(normed)
        keys, values = content
        groups, length = keys.shape[0], x.shape[1]
        orders = x.shape[0] // groups
        if queries.shape[0] < x.shape[0]:
            queries = queries.repeat(1, 1, orders, 1)
        elif orders > 1:
            queries = queries.view(groups, orders, *queries.shape[1:]).transpose(1, 2).flatten(2, 3)
        folded = None if mask is None else mask.reshape(groups, 1, orders * length, -1)
        mixed: Tensor = self.dropout(self.self_attention.attend(queries, keys, values, folded))
        return x + mixed.reshape(x.shape)

    def read(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        """Cross-attention to the memory and feed-forward, for (batch * orders, length, dim)."""
        batch = memory[0].shape[0]
        folded: Tensor = x.reshape(batch, -1, x.shape[-1])
        queries = self.cross_attention.queries(self.norm_cross(folded))
        folded = folded + self.dropout(self.cross_attention.attend(queries, *memory, mask))
        folded = folded + self.dropout(self.feed_forward(self.norm_feed_forward(folded)))
        return folded.reshape(x.shape)


class ParseqDecoder(Decoder):
    """Permuted autoregressive decoder."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.layers = nn.ModuleList(TwoStreamLayer(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.embedding = nn.Embedding(shape.characters + 3, shape.dim)
        self.positions = nn.Parameter(torch.empty(shape.max_label_length + 1, shape.dim))
        self.head = nn.Linear(shape.dim, self.classes)
        self.dropout = nn.Dropout(shape.dropout)
        self.apply(initialize)
        nn.init.trunc_normal_(self.positions, std=0.02)

    @property
    def _stack(self) -> list[TwoStreamLayer]:
        return cast(list[TwoStreamLayer], list(self.layers))

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy over all orders; the end counts in the first two orders only, as in PARSeq."""
        characters = targets.inputs.shape[1] - 1
        orders = draw_permutations(characters, self.shape.permutations).to(targets.inputs.device)
        return self.loss_over_orders(memory, targets, orders)

    def loss_over_orders(self, memory: Memory, targets: Targets, orders: Tensor) -> Tensor:
        """Return the loss for given reading orders, shape (orders, length + 1)."""
        content_mask, query_mask = attention_masks(orders)
        visible = (targets.inputs != targets.padding)[:, None, None, :]
        logits = self._forward(targets.inputs, memory, content_mask & visible, query_mask & visible)
        outputs = targets.outputs[:, None].expand(-1, len(orders), -1).clone()
        outputs[:, 2:][outputs[:, 2:] == targets.end] = targets.padding
        return F.cross_entropy(logits.flatten(0, 2).float(), outputs.flatten(), ignore_index=targets.padding)

    def _embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Embed inputs (batch, length); the begin carries no position."""
        embedded: Tensor = self.embedding(ids) * self.shape.dim**0.5
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        position = self.positions[(places - 1).clamp(min=0)] * (places > 0)[:, None]
        return embedded + position

    def _forward(
        self, inputs: Tensor, memory: Memory, content_mask: Tensor, query_mask: Tensor, own_query: bool = False
    ) -> Tensor:
        """Run both streams over all orders at once.

        Args:
            inputs: (batch, length). Masks: (batch, orders, length, length), True where looking is allowed.
            own_query: order i asks only for output i (refinement); otherwise every order asks for every output.

        Returns:
            logits (batch, orders, queries, classes), with one query an order where ``own_query``.
        """
        batch, orders, length = content_mask.shape[:3]
        content = self.dropout(self._embed(inputs))
        query = self.dropout(self.positions[:length].expand(batch, -1, -1))
        query_normed = self._stack[0].norm_query(query)
        if own_query:
            query_mask = query_mask.diagonal(dim1=1, dim2=2).movedim(-1, 1)[:, :, None]
            query, query_normed = (x.reshape(batch * length, 1, -1) for x in (query, query_normed))
        else:
            query = query.repeat_interleave(orders, dim=0)
        memory_mask = None if memory.padding is None else ~memory.padding[:, None, None, :]
        for depth, layer in enumerate(self._stack):
            normed = layer.norm_content(content)
            keys_values = layer.self_attention.keys_values(normed)
            memory_keys_values = layer.cross_attention.keys_values(memory.tokens)
            if depth > 0:
                query_normed = layer.norm_query(query)
            query = layer.look(query, query_normed, keys_values, query_mask)
            query = layer.read(query, memory_keys_values, memory_mask)
            if depth + 1 < len(self.layers):
                if content.shape[0] == batch and orders > 1:
                    content = content.repeat_interleave(orders, dim=0)
                content = layer.look(content, normed, keys_values, content_mask)
                content = layer.read(content, memory_keys_values, memory_mask)
        logits: Tensor = self.head(self.norm(query))
        return logits.view(batch, orders, -1, self.classes)

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read left to right with cached keys and values, then refine each character from all others."""
        limit = min(max_length or self.shape.max_label_length, self.shape.max_label_length)
        logits = self._decode_left_to_right(memory, limit + 1)
        for _ in range(self.shape.refinements):
            logits = self._refine(memory, logits)
        return logits

    def _decode_left_to_right(self, memory: Memory, length: int) -> Tensor:
        batch, device = memory.tokens.shape[0], memory.tokens.device
        memory_mask = None if memory.padding is None else ~memory.padding[:, None, None, :]
        memories = [layer.cross_attention.keys_values(memory.tokens) for layer in self._stack]
        caches: list[KeysValues | None] = [None] * len(self.layers)
        ids = torch.full((batch, 1), self.begin, device=device)
        finished = torch.zeros(batch, dtype=torch.bool, device=device)
        steps: list[Tensor] = []
        for step in range(length):
            content = self._embed(ids, first=step)
            query = self.positions[step].expand(batch, 1, -1)
            for depth, layer in enumerate(self._stack):
                normed = layer.norm_content(content)
                cache = _extend(caches[depth], layer.self_attention.keys_values(normed))
                caches[depth] = cache
                query = layer.look(query, layer.norm_query(query), cache, None)
                query = layer.read(query, memories[depth], memory_mask)
                if depth + 1 < len(self.layers):
                    content = layer.look(content, normed, cache, None)
                    content = layer.read(content, memories[depth], memory_mask)
            steps.append(self.head(self.norm(query)))
            ids = steps[-1].argmax(-1)
            finished |= ids[:, 0] == self.end
            if bool(finished.all()):
                break
        return torch.cat(steps, dim=1)

    def _refine(self, memory: Memory, logits: Tensor) -> Tensor:
        """Read every position again, given all the others.

        With more than one layer, content that has mixed with position i would whisper it to query i. So each position
        has an order of its own in which it comes last, exactly as training sees it.
        """
        ids = logits.argmax(-1)
        begin = torch.full_like(ids[:, :1], self.begin)
        inputs = torch.cat([begin, ids[:, :-1]], dim=1)
        ended = (inputs == self.end).cumsum(-1) > 0
        visible = ~ended[:, None, None, :]
        content_mask, query_mask = attention_masks(cloze_orders(ids.shape[1], ids.device))
        refined = self._forward(inputs, memory, content_mask & visible, query_mask & visible, own_query=True)
        return refined[:, :, 0]


def _extend(cache: KeysValues | None, new: KeysValues) -> KeysValues:
    if cache is None:
        return new
    return torch.cat([cache[0], new[0]], dim=2), torch.cat([cache[1], new[1]], dim=2)
