"""PARSeq's decoder: two streams, many reading orders, one pass.

The content stream embeds the characters read so far; the query stream has one query per position, which the logits
are computed from. Training reads each label in several orders. One order after another, as PARSeq's own code runs
them, repeats the same projections; here

- all orders run in one batch;
- keys and values of the memory are computed once a layer, for both streams and all orders;
- in the first layer the content does not depend on the order yet, so its keys, values and queries are computed once.

The loss is the same. Source: PARSeq (ECCV 2022) and, for training it on text embeddings, DPTR (ACM MM 2024).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.autoregressive import AutoregressiveDecoder, Step
from dptr.trainer.model.decoders.base import DecoderShape, Memory, Targets, sent
from dptr.trainer.model.layers import DecoderLayer, KeysValues, extend


class TwoStreamLayer(DecoderLayer):
    """A decoder layer that both streams pass through; the query stream has a norm of its own."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.norm_query = nn.LayerNorm(shape.dim)

    def self_attend(self, x: Tensor, normed: Tensor, content: KeysValues, mask: Tensor | None) -> Tensor:
        """Self-attention from a stream to the content, with its residual.

        Args:
            x: (batch * orders, length, dim). normed: the same after the norm, or (batch, length, dim) for all orders.
            content: keys and values, (batch, heads, length, head_dim) for all orders or (batch * orders, ..). Where
                orders share them, the orders fold into the length, so that keys and values are not copied.
            mask: (batch, orders, length, length), True where a query may attend; None: everywhere.
        """
        queries = self.self_attention.queries(normed)  # (rows of normed, heads, length, head_dim)
        keys, values = content  # (groups, heads, length, head_dim): one group a label, or one a label and order
        groups, length = keys.shape[0], x.shape[1]
        orders = x.shape[0] // groups  # that share a group's keys and values; 1 once the content depends on the order
        if queries.shape[0] < x.shape[0]:
            # The same in all orders: (batch, heads, length, head_dim) -> (batch, heads, orders * length, head_dim).
            queries = queries.repeat(1, 1, orders, 1)
        elif orders > 1:
            # Queries of each order: (batch * orders, heads, length, ..) -> (batch, heads, orders * length, ..).
            queries = queries.view(groups, orders, *queries.shape[1:]).transpose(1, 2).flatten(2, 3)
        # (batch, orders, length, length) -> (groups, 1, rows of queries, length); the 1 stands for all heads.
        folded = None if mask is None else mask.reshape(groups, 1, orders * length, -1)
        mixed: Tensor = self.dropout(self.self_attention.attend(queries, keys, values, folded))
        # (groups, orders * length, dim) -> (batch * orders, length, dim): the fold is undone by the shape alone.
        return x + mixed.reshape(x.shape)


class ParseqDecoder(AutoregressiveDecoder[TwoStreamLayer]):
    """Permuted autoregressive decoder."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape, TwoStreamLayer)

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy over all orders, a scalar; the end counts in the first two only, as in PARSeq."""
        return self.loss_over_orders(memory, targets, _orders_for(targets, self.shape.permutations))

    def loss_over_orders(self, memory: Memory, targets: Targets, orders: Tensor) -> Tensor:
        """Return the loss for given reading orders, shape (orders, length + 1)."""
        content_mask, query_mask = attention_masks(orders)  # (orders, length, length), length = characters + 1 for end
        visible = (targets.inputs != targets.padding)[:, None, None, :]  # (batch, 1, 1, length): keys, for all orders
        # The last output, length - 1, is the longest label's end, and padding in shorter labels. The end counts in the
        # first two orders only, so from the third on the last query is never computed (:func:`_counted`).
        logits = self._forward(targets.inputs, memory, content_mask & visible, query_mask & visible)
        outputs = targets.outputs[:, None].expand(-1, len(orders), -1)  # (batch, orders, length)
        # In shorter labels the end stands before the last output: computed with the rest, and not counted.
        without_end = outputs.masked_fill(outputs == targets.end, targets.padding)
        outputs = _counted(torch.cat([outputs[:, :2], without_end[:, 2:]], dim=1))  # (batch, counted)
        # One mean over all orders' outputs is PARSeq's mean of orders, each weighted by how many outputs it counts.
        return F.cross_entropy(logits.flatten(0, 1).float(), outputs.flatten(), ignore_index=targets.padding)

    def _forward(
        self, inputs: Tensor, memory: Memory, content_mask: Tensor, query_mask: Tensor, refining: bool = False
    ) -> Tensor:
        """Run both streams over all orders at once.

        Args:
            inputs: (batch, length). Masks: (batch, orders, length, length), True where a query may attend.
            refining: orders == length, and only query i of order i is computed; else those that :func:`_counted` names.

        Returns:
            logits (batch, computed queries, classes).
        """
        batch, orders, length = content_mask.shape[:3]
        content = self.dropout(self.embed(inputs))  # (batch, length, dim): one for all orders up to the first layer
        query = self.dropout(self.positions[:length].expand(batch, -1, -1))
        query_normed = self.stack[0].norm_query(query)
        if refining:
            # Each position becomes an order of length 1, (batch, length, dim) -> (batch * length, 1, dim), and of the
            # mask (batch, orders, length, keys) only the rows (i, i) remain: (batch, orders, 1, keys).
            query_mask = query_mask.diagonal(dim1=1, dim2=2).movedim(-1, 1)[:, :, None]
            query, query_normed = (x.reshape(batch * length, 1, -1) for x in (query, query_normed))
        else:
            query = query.repeat_interleave(orders, dim=0)  # (batch * orders, length, dim), a label's orders together
        for depth, layer in enumerate(self.stack):
            normed = layer.norm_content(content)
            keys_values = layer.self_attention.keys_values(normed)
            memory_keys_values = layer.cross_attention.keys_values(memory.tokens)
            if depth > 0:
                query_normed = layer.norm_query(query)
            query = layer.self_attend(query, query_normed, keys_values, query_mask)
            if depth + 1 == len(self.layers) and not refining:
                # Queries attend to the content, never to each other: those that do not count go as soon as they can.
                # (batch * orders, length, dim) -> (batch, counted, dim)
                query = _counted(query.view(batch, orders, length, -1))
            query = layer.cross_attend(query, memory_keys_values, memory.mask)
            if depth + 1 < len(self.layers):
                if content.shape[0] == batch and orders > 1:
                    # Each order masks the content's self-attention differently: (batch, ..) -> (batch * orders, ..).
                    content = content.repeat_interleave(orders, dim=0)
                content = layer.self_attend(content, normed, keys_values, content_mask)
                content = layer.cross_attend(content, memory_keys_values, memory.mask)
        # Training: (batch, counted, dim). Refinement: (batch * length, 1, dim) -> (batch, length, dim).
        return self.logits(query.reshape(batch, -1, self.shape.dim))

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read left to right with cached keys and values, then refine: logits (batch, positions, classes)."""
        logits = super().decode(memory, max_length)
        if self.shape.refinements:
            # A row read alone stops at its first end. In a batch it must not go on from there: refinement may read
            # another character in place of that end.
            ended = (logits.argmax(-1) == self.end).cumsum(-1)
            beyond = F.pad(ended[:, :-1], (1, 0)) > 0
            for _ in range(self.shape.refinements):
                logits = self.refine(memory, logits, beyond)
        return logits

    def prediction(self, memory: Memory) -> Step:
        """Keep keys and values of the memory and of every character read so far."""
        memories = [layer.cross_attention.keys_values(memory.tokens) for layer in self.stack]
        caches: list[KeysValues | None] = [None] * len(self.layers)

        def step(ids: Tensor, position: int) -> Tensor:
            content = self.embed(ids, position)
            query = self.positions[position].expand(ids.shape[0], 1, -1)
            for depth, layer in enumerate(self.stack):
                normed = layer.norm_content(content)
                cache = extend(caches[depth], layer.self_attention.keys_values(normed))
                caches[depth] = cache
                query = layer.self_attend(query, layer.norm_query(query), cache, None)
                query = layer.cross_attend(query, memories[depth], memory.mask)
                if depth + 1 < len(self.layers):
                    content = layer.self_attend(content, normed, cache, None)
                    content = layer.cross_attend(content, memories[depth], memory.mask)
            return self.logits(query)

        return step

    def refine(self, memory: Memory, logits: Tensor, beyond: Tensor | None = None) -> Tensor:
        """Read every position again, given all the others: (batch, positions, classes) -> the same.

        The content's mask matters with more than one layer: content that has attended to position i leaks it to
        query i. ``shape.refinement`` is one of

        - ``cloze``: each position has an order of its own, in which it is read last, as in training;
        - ``causal``: content attends to earlier positions, so later content leaks position i to query i;
        - ``shared``: content has the queries' mask, all but the next position. The authors' code does this, as both
          masks are one tensor there that refinement changes in place.

        Args:
            beyond: positions behind the first end of the first reading, (batch, positions): not attended to, and read
                as the end. None: those behind the first end of ``logits`` are not attended to.
        """
        ids = logits.argmax(-1)
        begin = torch.full_like(ids[:, :1], self.begin)
        inputs = torch.cat([begin, ids[:, :-1]], dim=1)
        hidden = (inputs == self.end).cumsum(-1) > 0  # an end that was read, and whatever was read after it
        if beyond is not None:
            hidden = hidden | beyond
        visible = ~hidden[:, None, None, :]
        cloze = self.shape.refinement == "cloze"
        content_mask, query_mask = attention_masks(cloze_orders(ids.shape[1], ids.device))
        if not cloze:
            query_mask = query_mask.diagonal().T[None]  # (1, length, length): query i of order i
            content_mask = torch.ones_like(query_mask).tril() if self.shape.refinement == "causal" else query_mask
        refined = self._forward(inputs, memory, content_mask & visible, query_mask & visible, refining=cloze)
        if beyond is None:
            return refined
        end = torch.full_like(refined[:1, :1], -torch.inf)
        end[..., self.end] = 0
        return torch.where(beyond[..., None], end, refined)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _orders_for(targets: Targets, count: int) -> Tensor:
    """Draw reading orders for the longest label; what is padded beyond it comes last in each.

    Returns:
        shape (orders, length + 1), on the targets' device.
    """
    orders = draw_permutations(targets.characters, count)
    beyond = torch.arange(orders.shape[1], targets.inputs.shape[1] + 1)
    return sent(torch.cat([orders, beyond.expand(len(orders), -1)], dim=1), targets.inputs.device)


def _counted(x: Tensor) -> Tensor:
    """Leave out the last of each order's positions from the third order on, where no end counts.

    Args:
        x: (batch, orders, length, ..).

    Returns:
        (batch, counted, ..), counted = orders * length - max(orders - 2, 0). By slices: an index would have to be sent.
    """
    return torch.cat([x[:, :2].flatten(1, 2), x[:, 2:, :-1].flatten(1, 2)], dim=1)


def draw_permutations(characters: int, count: int) -> Tensor:
    """Draw reading orders from torch's global generator.

    The first is left to right, the second right to left; further ones come as a random order and its mirror. Fewer than
    ``count`` come back when there are not as many orders.

    Args:
        characters: characters of the longest label.

    Returns:
        shape (orders, characters + 2), int64: positions of begin (always first), the characters, and the end.
    """
    orders = [torch.arange(characters)]
    wanted_pairs = min(math.ceil(count / 2), max(1, math.factorial(min(characters, 12)) // 2))
    seen = {tuple(orders[0].tolist()), tuple(orders[0].flip(0).tolist())}
    while len(orders) < wanted_pairs:
        order = torch.randperm(characters)
        if tuple(order.tolist()) not in seen:
            seen |= {tuple(order.tolist()), tuple(order.flip(0).tolist())}
            orders.append(order)
    pairs = [row for order in orders for row in (order, order.flip(0))]
    rows = torch.stack(pairs if characters > 1 else orders)[:count] + 1
    begin = torch.zeros(len(rows), 1, dtype=torch.int64)
    end = torch.full((len(rows), 1), characters + 1)
    with_ends = torch.cat([begin, rows, end], dim=1)
    if len(with_ends) > 1:
        # Right to left reads the end first, so that the end is learnt in both directions.
        with_ends[1, 1:] = characters + 1 - torch.arange(characters + 1)
    return with_ends


def attention_masks(orders: Tensor) -> tuple[Tensor, Tensor]:
    """Turn reading orders into what each position may attend to.

    Args:
        orders: shape (orders, length + 1) from :func:`draw_permutations`.

    Returns:
        content and query masks, each (orders, length, length), True where it may. Row i of the content mask
        is input i (begin and the characters); row i of the query mask is the query for output i, which is input i + 1.
    """
    rank = orders.argsort(dim=1)
    earlier = rank[:, None, :] < rank[:, :, None]
    own = torch.eye(orders.shape[1], dtype=torch.bool, device=orders.device)
    content = (earlier | own)[:, :-1, :-1]
    query = earlier[:, 1:, :-1]
    return content, query


def cloze_orders(length: int, device: torch.device) -> Tensor:
    """Orders for refinement: order i reads all other positions first and position i last.

    Returns:
        shape (length, length + 1): one order per output position.
    """
    positions = torch.arange(1, length + 1, device=device).repeat(length, 1)
    others = positions[~torch.eye(length, dtype=torch.bool, device=device)].view(length, length - 1)
    begin = torch.zeros(length, 1, dtype=torch.int64, device=device)
    return torch.cat([begin, others, torch.arange(1, length + 1, device=device)[:, None]], dim=1)
