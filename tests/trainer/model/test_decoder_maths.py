"""The permuted decoder computes what PARSeq's equations say, however its work is arranged."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.autoregressive import AutoregressiveDecoder
from dptr.trainer.model.decoders.base import DecoderShape, Memory, Targets
from dptr.trainer.model.decoders.parseq import ParseqDecoder, TwoStreamLayer, attention_masks, draw_permutations
from dptr.trainer.model.layers import Attention, attention

CHARSET = Charset("abcdef")
LABELS = ["fade", "a", "bee", "decaf"]


def decoder(layers: int, **changes: Any) -> ParseqDecoder:
    torch.manual_seed(0)
    shape = DecoderShape(
        dim=16, memory_dim=12, heads=4, layers=layers, feed_forward=32, dropout=0.0, characters=6, max_label_length=9
    )
    shape = dataclasses.replace(shape, **changes)
    made = ParseqDecoder(shape)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def memory(rows: int = len(LABELS), tokens: int = 7) -> Memory:
    generator = torch.Generator().manual_seed(1)
    padding = torch.zeros(rows, tokens, dtype=torch.bool)
    padding[0, 5:] = True
    return Memory(torch.randn(rows, tokens, 12, generator=generator), padding)


def plain_attention(attention: Attention, x: Tensor, source: Tensor, allowed: Tensor) -> Tensor:
    """Multi-head attention head by head, with an additive mask."""
    dim = x.shape[-1]
    width = dim // attention.heads
    query = attention.query(x)
    keys, values = attention.key_value(source).split(dim, dim=-1)
    heads = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ keys[..., part].transpose(1, 2) / width**0.5
        heads.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ values[..., part])
    return attention.out(torch.cat(heads, dim=-1))


def plain_stream(
    layer: TwoStreamLayer, x: Tensor, normed: Tensor, content: Tensor, memory: Memory, allowed: Tensor
) -> Tensor:
    x = x + plain_attention(layer.self_attention, normed, content, allowed)
    to_memory = ~memory.padding[:, None, :].expand(-1, x.shape[1], -1)
    x = x + plain_attention(layer.cross_attention, layer.norm_cross(x), memory.tokens, to_memory)
    return x + layer.feed_forward(layer.norm_feed_forward(x))


def plain_logits(
    model: ParseqDecoder, inputs: Tensor, memory: Memory, content_mask: Tensor, query_mask: Tensor
) -> Tensor:
    """Both streams for one order, layer after layer; masks (batch, length, length)."""
    length = inputs.shape[1]
    embedded = model.embedding(inputs) * model.shape.dim**0.5
    content = torch.cat([embedded[:, :1], embedded[:, 1:] + model.positions[: length - 1]], dim=1)
    query = model.positions[:length].expand(len(inputs), -1, -1)
    for layer in cast(list[TwoStreamLayer], list(model.layers)):
        normed = layer.norm_content(content)
        query = plain_stream(layer, query, layer.norm_query(query), normed, memory, query_mask)
        content = plain_stream(layer, content, normed, normed, memory, content_mask)
    return model.head(model.norm(query))


def plain_loss(model: ParseqDecoder, memory: Memory, orders: Tensor) -> Tensor:
    """One order after another on targets padded to the longest label possible, weighted by what counts."""
    longest = model.shape.max_label_length + 1
    targets = Targets.of(LABELS, CHARSET)
    short = targets.inputs.shape[1]
    inputs = F.pad(targets.inputs, (0, longest - short), value=targets.padding)
    outputs = F.pad(targets.outputs, (0, longest - short), value=targets.padding)
    visible = (inputs != targets.padding)[:, None, :]
    total, counted = torch.zeros(()), 0
    for number, order in enumerate(orders):
        # Positions beyond the batch's longest label are read last; nothing that counts looks at them.
        whole = torch.cat([order, torch.arange(len(order), longest + 1)])
        content_mask, query_mask = attention_masks(whole[None])
        logits = plain_logits(model, inputs, memory, content_mask & visible, query_mask & visible)
        if number == 2:
            outputs = outputs.masked_fill(outputs == targets.end, targets.padding)
        count = int((outputs != targets.padding).sum())
        total = total + count * F.cross_entropy(logits.flatten(0, 1), outputs.flatten(), ignore_index=targets.padding)
        counted += count
    return total / counted


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_all_orders_in_one_pass_give_the_same_loss_and_gradients(layers: int) -> None:
    model = decoder(layers)
    torch.manual_seed(5)
    orders = draw_permutations(5, 6)
    ours = model.loss_over_orders(memory(), Targets.of(LABELS, CHARSET), orders)
    gradients = torch.autograd.grad(ours, list(model.parameters()))
    theirs = plain_loss(model, memory(), orders)
    assert abs(ours.item() - theirs.item()) < 1e-5
    for mine, reference in zip(gradients, torch.autograd.grad(theirs, list(model.parameters())), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("layers", [1, 3])
def test_cached_decoding_equals_decoding_that_starts_over_at_every_step(layers: int) -> None:
    model = decoder(layers)
    with torch.inference_mode():
        cached = AutoregressiveDecoder.decode(model, memory(), 5)
        ids = torch.full((len(LABELS), 1), CHARSET.begin)
        for step in range(cached.shape[1]):
            order = torch.arange(step + 2)[None]
            content_mask, query_mask = (m.expand(len(LABELS), -1, -1) for m in attention_masks(order))
            logits = plain_logits(model, ids, memory(), content_mask, query_mask)
            torch.testing.assert_close(cached[:, step], logits[:, -1], atol=1e-5, rtol=1e-4)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)


@pytest.mark.parametrize("layers", [1, 2])
def test_refinement_never_sees_the_character_it_refines(layers: int) -> None:
    model = decoder(layers)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(LABELS), 5, 7, generator=generator)
    logits[..., 0] -= 100  # no end: all five positions count
    with torch.inference_mode():
        refined = model.refine(memory(), logits)
        for position in range(5):
            changed = logits.clone()
            changed[:, position, 1:] = changed[:, position, 1:].roll(1, dims=-1)
            again = model.refine(memory(), changed)
            torch.testing.assert_close(again[:, position], refined[:, position])
            others = [p for p in range(5) if p != position]
            # The last character is nobody's input; every other one is seen by all positions but its own.
            assert position == 4 or not torch.allclose(again[:, others], refined[:, others])


def refined_as_described(model: ParseqDecoder, logits: Tensor, content_mask: Tensor, query_mask: Tensor) -> Tensor:
    """One pass over the whole reading: begin and all characters but the last as context, hidden from the first end."""
    ids = logits.argmax(-1)
    inputs = torch.cat([torch.full_like(ids[:, :1], model.begin), ids[:, :-1]], dim=1)
    seen = ((inputs == model.end).cumsum(-1) == 0)[:, None, :]
    return plain_logits(model, inputs, memory(), content_mask & seen, query_mask & seen)


@pytest.mark.parametrize("refinement", ["causal", "shared"])
@pytest.mark.parametrize("layers", [1, 6])
def test_refinement_of_the_authors_is_that_of_their_description(layers: int, refinement: str) -> None:
    """Queries see all but their own character; content sees what stands before it, or has the queries' mask."""
    model = decoder(layers, refinement=refinement)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    with torch.inference_mode():
        logits = AutoregressiveDecoder.decode(model, memory())
        length = logits.shape[1]
        all_but_own = torch.ones(length, length, dtype=torch.bool)
        all_but_own[torch.arange(length - 1), torch.arange(1, length)] = False
        content = all_but_own if refinement == "shared" else torch.ones_like(all_but_own).tril()
        expected = refined_as_described(model, logits, content[None], all_but_own[None]).softmax(-1)
        assert float((model.refine(memory(), logits).softmax(-1) - expected).abs().max()) < 1e-5
        cloze = decoder(layers, refinement="cloze")
        cloze.load_state_dict(model.state_dict())
        apart = float((cloze.refine(memory(), logits).softmax(-1) - expected).abs().max())
        # With one layer content is never updated, so there is nothing for the variants to differ in.
        assert apart < 1e-5 if layers == 1 else apart > 1e-3


@pytest.mark.parametrize("refinement", ["cloze", "causal", "shared"])
@pytest.mark.parametrize("refinements", [1, 2, 3])
def test_a_text_read_in_a_batch_is_that_read_alone(refinements: int, refinement: str) -> None:
    model = decoder(2, refinements=refinements, refinement=refinement, max_label_length=25)
    torch.manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)  # ends come early, late and never
    tokens = torch.randn(256, 7, 12, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        first = AutoregressiveDecoder.decode(model, Memory(tokens)).argmax(-1)
        lengths = {len(CHARSET.decode(row.numpy())) for row in first}
        assert min(lengths) < 3
        assert max(lengths) > 20
        together = [CHARSET.decode(row) for row in model.decode(Memory(tokens)).argmax(-1).numpy()]
        alone = [CHARSET.decode(model.decode(Memory(row[None])).argmax(-1)[0].numpy()) for row in tokens]
    assert sum(one != other for one, other in zip(together, alone, strict=True)) == 0


def test_orders_start_with_both_directions_and_come_in_mirrored_pairs() -> None:
    torch.manual_seed(0)
    orders = draw_permutations(6, 6)
    assert orders.shape == (6, 8)
    assert orders[0].tolist() == list(range(8))
    assert orders[1].tolist() == [0, 7, 6, 5, 4, 3, 2, 1]
    for first in (2, 4):
        assert orders[first, 1:-1].tolist() == orders[first + 1, 1:-1].flip(0).tolist()
    assert len({tuple(order.tolist()) for order in orders}) == 6


@pytest.mark.parametrize(("characters", "expected"), [(1, 1), (2, 2), (3, 6), (9, 6)])
def test_short_labels_have_fewer_orders(characters: int, expected: int) -> None:
    torch.manual_seed(0)
    orders = draw_permutations(characters, 6)
    assert len(orders) == expected
    assert all(sorted(order.tolist()) == list(range(characters + 2)) for order in orders)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_that_of_fp32(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 5, 8, generator=generator).bfloat16() for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    plain = attention(queries.float(), keys.float(), values.float(), mask, 0.0)
    half = attention(queries, keys, values, mask, 0.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=2e-2, rtol=2e-2)


def test_attention_in_bf16_drops_out() -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 5, 8).bfloat16() for _ in range(3))
    assert not torch.equal(*(attention(queries, keys, values, None, 0.5) for _ in range(2)))
