"""The convolutional encoder: columns from left to right, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.convolution import ConvolutionalEncoder
from dptr.trainer.model.folding import FoldedConvolution, HalfLinear, cpu_has_bfloat16, fold_batch_norms, halve
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


def encoder_with_statistics() -> ConvolutionalEncoder:
    torch.manual_seed(0)
    encoder = ConvolutionalEncoder(EncoderSettings(kind="convolution", channels=8, dim=24))
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    return encoder.eval()


@pytest.mark.parametrize("images", [1, 3])
def test_folded_convolutions_give_the_same_and_halved_ones_nearly(images: int) -> None:
    encoder = encoder_with_statistics()
    pixels = torch.rand(images, 3, *encoder.size) * 2 - 1
    with torch.inference_mode():
        before = encoder(pixels)
        fold_batch_norms(encoder)
        folded = encoder(pixels)
        halve(encoder)
        halved = encoder(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    torch.testing.assert_close(folded, before, rtol=1e-4, atol=1e-4)
    assert halved.dtype == torch.bfloat16
    assert float((halved - folded).abs().max() / folded.abs().max()) < 0.05


def test_halved_linears_give_nearly_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8, bias=False))
    x = torch.randn(4, 16)
    with torch.inference_mode():
        before = model(x)
        halve(model)
        after = model(x)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.float(), before, rtol=0.05, atol=0.02)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="the CPU has no bfloat16")
def test_weights_laid_out_once_give_what_those_of_each_image_give() -> None:
    encoder, linear = encoder_with_statistics(), nn.Sequential(nn.Linear(24, 32))
    pixels = torch.rand(1, 3, *encoder.size) * 2 - 1
    with torch.inference_mode():
        fold_batch_norms(encoder)
        halve(encoder)
        halve(linear)
        packed = linear(encoder(pixels))
        layers = [m for m in [*encoder.modules(), *linear] if isinstance(m, FoldedConvolution | HalfLinear)]
        assert layers
        for layer in layers:
            assert layer.packed is not None
            layer.packed = None
        plain = linear(encoder(pixels))
    torch.testing.assert_close(packed, plain, rtol=0.02, atol=0.02)
