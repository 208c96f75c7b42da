"""What the benchmarks compare with: the same decoder, its work arranged as PARSeq's code arranges it.

One reading order after another, labels padded to the longest possible, keys and values made anew for every use, and a
reading that runs over all it has read at every step. Same weights, same results; only the arrangement differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.model.decoders.parseq import ParseqDecoder, TwoStreamLayer, attention_masks, draw_permutations
from dptr.trainer.model.layers import Attention

LABEL_LENGTH = 25


def update(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
    """One step on the sum of ``losses``, each of which is freed before the next is made."""
    optimizer.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
    optimizer.step()


def padded_targets(labels: list[str], charset: Charset) -> Targets:
    """Begin, label, end, padded to 27; inputs and outputs are 26 long each."""
    targets = Targets.of(labels, charset)
    missing = LABEL_LENGTH + 1 - targets.inputs.shape[1]
    inputs, outputs = (F.pad(ids, (0, missing), value=targets.padding) for ids in (targets.inputs, targets.outputs))
    return dataclasses.replace(targets, inputs=inputs, outputs=outputs)


def loss_order_by_order(decoder: ParseqDecoder, memory: Tensor, targets: Targets) -> Tensor:
    """PARSeq's training step: each order runs the whole decoder again."""
    return torch.stack(list(losses_of_orders(decoder, memory, targets))).sum()


def losses_of_orders(decoder: ParseqDecoder, memory: Tensor, targets: Targets) -> Iterator[Tensor]:
    """Each order's part of the loss; taken and differentiated one by one, the graph of one order is in memory."""
    targets = targets.to(memory.device)
    outputs = targets.outputs
    without_end = outputs.masked_fill(outputs == targets.end, targets.padding)
    visible = (targets.inputs != targets.padding)[:, None, None, :]
    orders = draw_permutations(LABEL_LENGTH, decoder.shape.permutations).to(memory.device)
    of_order = [outputs if number < 2 else without_end for number in range(len(orders))]
    counted = sum((part != targets.padding).sum() for part in of_order)
    for order, expected in zip(orders, of_order, strict=True):
        content_mask, query_mask = (mask[:, None] & visible for mask in attention_masks(order[None]))
        content = decoder.dropout(decoder.embed(targets.inputs))
        query = decoder.dropout(decoder.positions[: targets.inputs.shape[1]].expand(len(memory), -1, -1))
        for depth, layer in enumerate(layers_of(decoder)):
            normed = layer.norm_content(content)
            query = stream(layer, query, layer.norm_query(query), normed, memory, query_mask)
            if depth + 1 < len(decoder.layers):
                content = stream(layer, content, normed, normed, memory, content_mask)
        logits = decoder.logits(query).flatten(0, 1).float()
        summed = F.cross_entropy(logits, expected.flatten(), ignore_index=targets.padding, reduction="sum")
        yield summed / counted


def layers_of(decoder: ParseqDecoder) -> list[TwoStreamLayer]:
    return cast(list[TwoStreamLayer], list(decoder.layers))


def stream(
    layer: TwoStreamLayer,
    x: Tensor,
    normed: Tensor,
    content: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    same_kernels: bool = False,
) -> Tensor:
    """One stream through one layer; keys and values are made anew for each, as PARSeq's attention modules do."""
    if same_kernels:
        x = layer.self_attend(x, normed, layer.self_attention.keys_values(content), mask)
        return layer.cross_attend(x, layer.cross_attention.keys_values(memory), None)
    x = x + layer.dropout(weighted_attention(layer.self_attention, normed, content, mask))
    x = x + layer.dropout(weighted_attention(layer.cross_attention, layer.norm_cross(x), memory, None))
    thought: Tensor = layer.dropout(layer.feed_forward(layer.norm_feed_forward(x)))
    return x + thought


def weighted_attention(attention: Attention, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """What ``nn.MultiheadAttention`` computes by default, weights included, with this attention's parameters."""
    dim, heads = attention.query.out_features, attention.heads
    keys, values = attention.key_value.weight.chunk(2)
    forbidden = None if mask is None else ~mask.expand(-1, heads, -1, -1).flatten(0, 1)
    mixed, _ = F.multi_head_attention_forward(
        x.transpose(0, 1), source.transpose(0, 1), source.transpose(0, 1), dim, heads, None,
        torch.cat([attention.query.bias, attention.key_value.bias]), None, None, False, attention.dropout,
        attention.out.weight, attention.out.bias, attn_mask=forbidden, use_separate_proj_weight=True,
        q_proj_weight=attention.query.weight, k_proj_weight=keys, v_proj_weight=values,
    )  # fmt: skip
    return mixed.transpose(0, 1)


def decode_without_cache(decoder: ParseqDecoder, memory: Memory) -> Tensor:
    """Read left to right, at every step running over all that was read so far; then refine as the decoder does."""
    tokens, begin = memory.tokens, torch.full((len(memory.tokens), 1), decoder.begin)
    inputs, logits = begin, []
    for position in range(decoder.steps(None)):
        causal = torch.ones(position + 1, position + 1, dtype=torch.bool).tril().expand(len(tokens), 1, -1, -1)
        content = decoder.embed(inputs)
        query = decoder.positions[position].expand(len(tokens), 1, -1)
        for depth, layer in enumerate(layers_of(decoder)):
            normed = layer.norm_content(content)
            query = stream(layer, query, layer.norm_query(query), normed, tokens, None, same_kernels=True)
            if depth + 1 < len(decoder.layers):
                content = stream(layer, content, normed, normed, tokens, causal, same_kernels=True)
        logits.append(decoder.logits(query))
        inputs = torch.cat([inputs, logits[-1].argmax(-1)], dim=1)
        if bool((inputs == decoder.end).any(1).all()):
            break
    read = torch.cat(logits, dim=1)
    for _ in range(decoder.shape.refinements):
        read = decoder.refine(memory, read)
    return read


def made_up_words(count: int) -> list[str]:
    """Distinct words of two to four syllables, about as long as a dictionary's."""
    generator = np.random.default_rng(0)
    syllables = [a + b + c for a in "bcdfghlmnprstvw" for b in "aeiou" for c in ("", "n", "r", "st")]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(generator.choice(syllables, int(generator.integers(2, 5))))] = None
    return list(words)
