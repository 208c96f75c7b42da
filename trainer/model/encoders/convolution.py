"""A small residual network from a word image to columns, which learns fastest from few images on a CPU.

Unlike a vision transformer, convolutions need not learn locality from data, which matters for an hour of training on
two cores. Each of the four stages halves the height, the first two the width as well, so that 32 x 128 pixels end as 32
columns of one row. Plain 3 x 3 convolutions on purpose: depthwise ones need fewer products but run slower on a CPU.
Context beyond a few letters is the decoder's work. Source of the blocks: ResNet (CVPR 2016); of the shape: CRNN (Shi et
al. 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.trainer.model.encoders.base import Encoder
from dptr.trainer.recipe import EncoderSettings

_STRIDES = ((2, 2), (2, 2), (2, 1), (2, 1))
#: Channels of the stages, in units of ``encoder.channels``.
_WIDTHS = (1, 2, 4, 6)
#: Residual blocks of the stages: the first has the most pixels to compute and the smallest receptive field.
_BLOCKS = (0, 1, 2, 1)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions round which the input is passed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, 3, 1, 1)
        self.second = _convolution(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class ConvolutionalEncoder(Encoder):
    """Word images to one token a column.

    Attributes:
        dim: width of a token. size: (height, width) of the images it takes. grid: (1, columns).
    """

    positioned = False

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        height, width = settings.image_height, settings.image_width
        self._widths = tuple(sorted({width, *_numbers(settings.image_widths)}))
        if height % 16 or any(each % 4 for each in self._widths):
            raise UserError(
                f"encoder {settings.kind!r} halves the height four times and the width twice: "
                f"{height}x{', '.join(map(str, self._widths))}",
                "Give an image_height in whole sixteens, image_width and image_widths in whole fours",
            )
        self.dim = settings.dim
        self.size = (height, width)
        self.grid = (1, width // 4)
        stages: list[nn.Module] = []
        before = 3
        for share, blocks, stride in zip(_WIDTHS, _BLOCKS, _STRIDES, strict=True):
            channels = settings.channels * share
            stages += [_convolution(before, channels, 3, stride, 1), nn.ReLU()]
            stages += [ResidualBlock(channels) for _ in range(blocks)]
            before = channels
        self.stages = nn.Sequential(*stages)
        # What is left of the height becomes part of a column's token.
        self.merge = _convolution(before, settings.dim, (height // 16, 1), 1, 0)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths of images that it takes, in pixels, ascending."""
        return self._widths

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, width / 4, dim), from left to right."""
        x = self.stages(images.contiguous(memory_format=torch.channels_last))
        columns: Tensor = self.merge(x).squeeze(2)
        return columns.transpose(1, 2)


def _numbers(text: str) -> list[int]:
    """Parse ``encoder.image_widths``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"encoder.image_widths = {text!r} is not whole numbers between commas", 'For example: "96,160"')
    return [int(part) for part in parts]


def _convolution(
    before: int, after: int, kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(after),
    )
