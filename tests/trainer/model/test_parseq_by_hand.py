"""PARSeq's masks and loss for labels of three characters, worked out on paper; nothing here comes from the code.

Masks: Table 1 of PARSeq (ECCV 2022) gives, for each order of y1 y2 y3, what the query of each output may see. Inputs
are [B] y1 y2 y3, outputs are y1 y2 y3 [E]. The second order, right to left, starts with the end, as the paper's code
has it; the end is an output only, so nobody sees it.

Loss: all layers are set to pass on what they see. Embeddings are one-hot (times the root of the width that the decoder
multiplies by), attention is even, values pass unchanged, the memory says nothing, and the classes are scored 12 ln 2
times the share of each symbol among those seen. A query that sees n different symbols so gives each the odds
4096 ** (1 / n), against odds of 1 for a symbol it does not see: 4096, 64, 16, 8 for n = 1, 2, 3, 4.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.base import DecoderShape, Memory, Targets
from dptr.trainer.model.decoders.parseq import ParseqDecoder, attention_masks

CHARSET = Charset("abc")
#: Order as positions of [B] y1 y2 y3 [E] -> what y1, y2, y3, [E] may see of [B] y1 y2 y3.
QUERY_MASKS: dict[tuple[int, ...], list[str]] = {
    (0, 1, 2, 3, 4): ["1000", "1100", "1110", "1111"],
    (0, 4, 3, 2, 1): ["1011", "1001", "1000", "1000"],
    (0, 1, 3, 2, 4): ["1000", "1101", "1100", "1111"],
    (0, 2, 3, 1, 4): ["1011", "1000", "1010", "1111"],
}
#: The same orders -> what [B], y1, y2, y3 may see of themselves: all that was read before, and each itself.
CONTENT_MASKS: dict[tuple[int, ...], list[str]] = {
    (0, 1, 2, 3, 4): ["1000", "1100", "1110", "1111"],
    (0, 4, 3, 2, 1): ["1000", "1111", "1011", "1001"],
    (0, 1, 3, 2, 4): ["1000", "1100", "1111", "1101"],
    (0, 2, 3, 1, 4): ["1000", "1111", "1010", "1011"],
}


def see_through() -> ParseqDecoder:
    """One layer that hands each query the shares of the symbols it sees: [B], a, b, c."""
    shape = DecoderShape(
        dim=4, memory_dim=4, heads=1, layers=1, feed_forward=4, dropout=0.0, characters=3, max_label_length=3
    )
    decoder = ParseqDecoder(shape).eval()
    for parameter in decoder.parameters():
        nn.init.zeros_(parameter)
    layer = decoder.layers[0]
    for name in ("norm_content", "norm_query", "norm_cross", "norm_feed_forward"):
        setattr(layer, name, nn.Identity())
    decoder.register_module("norm", nn.Identity())
    begin, root = 4, math.sqrt(4)
    with torch.no_grad():
        decoder.embedding.weight[begin, 0] = 1 / root
        decoder.embedding.weight[1:4, 1:] = torch.eye(3) / root
        layer.self_attention.key_value.weight[4:] = torch.eye(4)
        layer.self_attention.out.weight.copy_(torch.eye(4))
        decoder.head.weight.copy_(torch.eye(4) * 12 * math.log(2))
    return decoder


@pytest.mark.parametrize("order", QUERY_MASKS)
def test_masks_are_those_of_the_papers_table(order: tuple[int, ...]) -> None:
    content, query = attention_masks(torch.tensor([order]))
    assert ["".join(str(int(seen)) for seen in row) for row in query[0]] == QUERY_MASKS[order]
    assert ["".join(str(int(seen)) for seen in row) for row in content[0]] == CONTENT_MASKS[order]


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        # [B] and class 0 (the end) share a place, as do a, b, c and their classes. Label "aab", left to right:
        # a from [B]: 1 / 4099. a from [B] a: 64 / 130. b from [B] a a: odds 16, 256, 1, 1, so 1 / 274.
        # The end from [B] a a b: odds 8, 64, 8, 1, so 8 / 81.
        ([(0, 1, 2, 3, 4)], math.log(4099 * 130 / 64 * 274 * 81 / 8) / 4),
        # Then right to left. The end from [B]: 4096 / 4099. b from [B]: 1 / 4099. a from [B] b: 1 / 130. a from
        # [B] b a: 16 / 49.
        (
            [(0, 1, 2, 3, 4), (0, 4, 3, 2, 1)],
            (math.log(4099 * 130 / 64 * 274 * 81 / 8) + math.log(4099 / 4096 * 4099 * 130 * 49 / 16)) / 8,
        ),
        # y1 y3 y2: a from [B], b from [B] a, a from [B] a b. y2 y3 y1: the same odds. From the third order on the end
        # is not counted: 4 + 4 + 3 + 3 outputs.
        (list(QUERY_MASKS), 4.2765579000898715),
    ],
    ids=["left to right", "both directions", "four orders"],
)
def test_loss_is_that_worked_out_on_paper(orders: list[tuple[int, ...]], expected: float) -> None:
    targets = Targets.of(["aab"], CHARSET)
    loss = see_through().loss_over_orders(Memory(torch.zeros(1, 2, 4)), targets, torch.tensor(orders))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_orders_are_weighted_by_what_they_count_and_padding_counts_nothing() -> None:
    """Every symbol has a fixed probability: end .1, a .2, b .3, c .4; labels "abc" and "a", all six orders.

    "abc": the first two orders count a, b, c and the end, the other four a, b, c: -(6 ln .024 + 2 ln .1) over 20. "a":
    -(6 ln .2 + 2 ln .1) over 8. In all 41.2451769 over 28.
    """
    decoder = see_through()
    with torch.no_grad():
        decoder.head.weight.zero_()
        decoder.head.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    torch.manual_seed(0)
    loss = decoder.loss(Memory(torch.zeros(2, 2, 4)), Targets.of(["abc", "a"], CHARSET))
    assert loss.item() == pytest.approx(1.4730420, abs=1e-6)
