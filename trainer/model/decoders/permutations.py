"""The reading orders that a permuted autoregressive decoder is trained in, and the attention masks they come to.

Source: PARSeq ("Scene Text Recognition with Permuted Autoregressive Sequence Models", ECCV 2022), section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
