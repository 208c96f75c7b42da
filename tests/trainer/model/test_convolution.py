"""The convolutional encoder: columns from left to right, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.layers import grid_positions
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import EncoderSettings, Recipe

SETTINGS = EncoderSettings(kind="convolution", channels=8, dim=24, image_height=32, image_width=64)


def test_a_column_sees_its_own_part_of_the_image() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(SETTINGS).eval()
    image = torch.zeros(1, 3, 32, 64)
    marked = image.clone()
    marked[..., 60:] = 1.0
    with torch.inference_mode():
        before, after = encoder(image), encoder(marked)
    assert before.shape == (1, 16, 24)
    assert encoder.grid == (1, 16)
    changed = (before - after).abs().sum(-1)[0] > 1e-6
    assert changed[-1]
    assert not changed[:6].any()


def test_every_width_it_was_given_comes_out_as_columns() -> None:
    encoder = build_encoder(SETTINGS.model_copy(update={"image_widths": "96, 48"})).eval()
    assert encoder.widths == (48, 64, 96)
    with torch.inference_mode():
        assert [encoder(torch.zeros(1, 3, 32, width)).shape[1] for width in encoder.widths] == [12, 16, 24]


@pytest.mark.parametrize("widths", ["96;128", "96,-4", "95", "wide"])
def test_widths_that_cannot_be_are_told(widths: str) -> None:
    with pytest.raises(UserError, match="image_width"):
        build_encoder(SETTINGS.model_copy(update={"image_widths": widths}))


def test_rejects_sizes_that_do_not_halve() -> None:
    with pytest.raises(UserError, match="30x64"):
        build_encoder(EncoderSettings(kind="convolution", image_height=30, image_width=64))


@pytest.mark.parametrize(("decoder", "added"), [("parseq", True), ("ctc", False)])
def test_columns_say_where_they_stand_unless_the_decoder_does(decoder: str, added: bool) -> None:
    """Attention reads a set: equal columns in another order would be read alike."""
    recipe = Recipe().replace("fmu", kind="none").replace("encoder", **SETTINGS.model_dump())
    recipe = recipe.replace("decoder", kind=decoder, dim=24, heads=2, layers=1)
    recognizer = Recognizer(recipe, Charset("ab"), 24).eval()
    images = torch.zeros(1, 3, 32, 64)
    with torch.inference_mode():
        apart = recognizer.memory(images).tokens - recognizer.tokens(images)
    assert bool(apart.any()) == added
    if added:
        assert torch.equal(apart[0], grid_positions(1, 16, 24))


def recognizer_of(decoder: str, fmu: str) -> Recognizer:
    recipe = Recipe().replace("fmu", kind=fmu, queries=4, heads=2).replace("encoder", **SETTINGS.model_dump())
    recipe = recipe.replace("decoder", kind=decoder, dim=24, heads=2, layers=1, feed_forward=24)
    return Recognizer(recipe, Charset("ab"), 24).eval()


@pytest.mark.parametrize(("decoder", "fmu"), [("parseq", "none"), ("nrtr", "queries")])
def test_weights_from_before_columns_carried_their_place_read_as_they_were_trained(decoder: str, fmu: str) -> None:
    trained = recognizer_of(decoder, fmu)
    images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    with torch.inference_mode():
        without = trained.fmu(trained.tokens(images))
        former = {name: tensor for name, tensor in trained.state_dict().items() if name != "places"}
        present = recognizer_of(decoder, fmu)
        present.load_state_dict(trained.state_dict())
        assert torch.equal(present.memory(images).tokens, trained.memory(images).tokens)
        assert not torch.equal(present.memory(images).tokens, without)
        present.load_state_dict(former)
        assert torch.equal(present.memory(images).tokens, without)
        again = recognizer_of(decoder, fmu)
        again.load_state_dict(present.state_dict())
        assert torch.equal(again.memory(images).tokens, without)
    assert "places" not in recognizer_of("ctc", "none").state_dict()
