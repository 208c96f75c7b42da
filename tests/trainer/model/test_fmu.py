"""The Feature Merge Unit against one written from the authors' description, at equal weights.

Their description: learned queries attend to the image tokens by multi-head attention; dropout, then the residual; a
LayerNorm before a feed-forward of two linear layers with GELU and dropout between them; dropout, then the residual;
nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.recipe import FmuSettings, load_recipe

DIM, TOKENS = 64, 40
PAPER = load_recipe("paper").fmu


def merging(settings: FmuSettings) -> FeatureMergeUnit:
    torch.manual_seed(0)
    unit = FeatureMergeUnit(DIM, DIM, 8, settings)
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return unit.eval()


def images() -> Tensor:
    return torch.randn(5, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def as_described(unit: FeatureMergeUnit, tokens: Tensor) -> Tensor:
    """torch's own attention, with the unit's weights."""
    attention = nn.MultiheadAttention(DIM, unit.attention.heads, batch_first=True)
    first, norm, second = nn.Linear(DIM, 4 * DIM), nn.LayerNorm(DIM), nn.Linear(4 * DIM, DIM)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([unit.attention.query.weight, unit.attention.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([unit.attention.query.bias, unit.attention.key_value.bias]))
        attention.out_proj.load_state_dict(unit.attention.out.state_dict())
        norm.load_state_dict(unit.norm_feed_forward.state_dict())
        first.load_state_dict(unit.feed_forward[0].state_dict())
        second.load_state_dict(unit.feed_forward[3].state_dict())
        query = unit.queries.expand(len(tokens), -1, -1)
        query = query + attention(query, tokens, tokens, need_weights=False)[0]
        return query + second(nn.functional.gelu(first(norm(query))))


def furthest(settings: FmuSettings) -> float:
    unit = merging(settings)
    with torch.no_grad():
        return float((unit(images()) - as_described(unit, images())).abs().max())


def test_the_papers_unit_is_that_of_the_description() -> None:
    assert furthest(PAPER) < 5e-6


def test_the_final_norm_is_what_the_description_lacks() -> None:
    assert furthest(PAPER.model_copy(update={"final_norm": True})) > 1


def dropped(settings: FmuSettings, part: str) -> bool:
    """Whether training drops from what ``part`` adds to the queries, all dropout within the parts left out."""
    unit = merging(settings.model_copy(update={"dropout": 0.0})).train()
    silenced: dict[str, Callable[[], nn.Module]] = {
        "attention": lambda: unit.feed_forward[3],
        "feed-forward": lambda: unit.attention.out,
    }
    for parameter in silenced[part]().parameters():
        nn.init.zeros_(parameter)
    added = unit(images()) - unit.queries
    return bool((added == 0).any())


@pytest.mark.parametrize("part", ["attention", "feed-forward"])
def test_the_paper_drops_out_of_both_residuals(part: str) -> None:
    assert dropped(PAPER, part)
    assert not dropped(PAPER.model_copy(update={"residual_dropout": 0.0}), part)


def test_queries_start_at_random_or_at_their_part_of_the_image() -> None:
    torch.manual_seed(0)
    tokens = torch.zeros(1, TOKENS, DIM)
    random = FeatureMergeUnit(DIM, DIM, 8, PAPER)
    assert 0.015 < float(random.queries.detach().std()) < 0.025
    assert not torch.equal(random.attention.query.weight, random.attention.key_value.weight[:DIM])
    placed = FeatureMergeUnit(DIM, DIM, 8, FmuSettings())
    assert torch.equal(placed.attention.query.weight, placed.attention.key_value.weight[:DIM])
    assert placed(tokens).shape == random(tokens).shape == (1, 26, DIM)
