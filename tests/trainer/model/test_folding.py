"""Folding batch norm into convolutions changes no reading."""

import pytest
import torch
from torch import nn

from dptr.trainer.model.encoders.convolution import ConvolutionalEncoder
from dptr.trainer.model.folding import FoldedConvolution, HalfLinear, cpu_has_bfloat16, fold_batch_norms, halve
from dptr.trainer.recipe import EncoderSettings


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
def test_folded_convolutions_give_what_convolution_and_batch_norm_gave(images: int) -> None:
    encoder = encoder_with_statistics()
    pixels = torch.rand(images, 3, *encoder.size) * 2 - 1
    with torch.inference_mode():
        before = encoder(pixels)
        fold_batch_norms(encoder)
        after = encoder(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert any(isinstance(module, FoldedConvolution) for module in encoder.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [1, 3])
def test_halved_convolutions_give_nearly_the_same_one_image_as_several(images: int) -> None:
    encoder = encoder_with_statistics()
    pixels = torch.rand(images, 3, *encoder.size) * 2 - 1
    with torch.inference_mode():
        fold_batch_norms(encoder)
        before = encoder(pixels)
        halve(encoder)
        after = encoder(pixels)
    assert after.dtype == torch.bfloat16
    assert float((after - before).abs().max() / before.abs().max()) < 0.05


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
