"""A vision transformer over the patches of one word image, in PARSeq's shapes.

Source: ViT (ICLR 2021) without a class token, patch 4x8 and input 32x128 as PARSeq has it. ``stem = "convolution"``
replaces the one linear patch projection by a few small convolutions with the same output grid, which learns from far
fewer images ("Early convolutions help transformers see better", NeurIPS 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.trainer.model.encoders.base import Encoder
from dptr.trainer.model.layers import SelfAttentionLayer, grid_positions, initialize
from dptr.trainer.recipe import EncoderSettings


class VisionTransformer(Encoder):
    """Word images to tokens.

    Attributes:
        dim: width of a token. size: (height, width) of the images it takes. grid: (rows, columns) of its tokens.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        height, width = settings.image_height, settings.image_width
        if height % settings.patch_height or width % settings.patch_width:
            raise UserError(
                f"image {height}x{width} is not a whole number of patches "
                f"{settings.patch_height}x{settings.patch_width}",
                "Change encoder.image_* or encoder.patch_*",
            )
        self.dim = settings.dim
        self.size = (height, width)
        self.grid = (height // settings.patch_height, width // settings.patch_width)
        self.stem = _convolutions(settings) if settings.stem == "convolution" else _linear(settings)
        self.positions = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], settings.dim))
        self.layers = nn.Sequential(
            *(SelfAttentionLayer(settings.dim, settings.heads, 4 * settings.dim) for _ in range(settings.layers))
        )
        self.norm = nn.LayerNorm(settings.dim)
        self.apply(initialize)
        self.positions.data.copy_(grid_positions(*self.grid, settings.dim))

    def forward(self, images: Tensor) -> Tensor:
        """Encode.

        Args:
            images: (batch, 3, height, width), values in [-1, 1].

        Returns:
            tokens (batch, tokens, dim), row by row over the grid of patches.
        """
        grid: Tensor = self.stem(images)
        x: Tensor = self.layers(grid.flatten(2).transpose(1, 2) + self.positions)
        normed: Tensor = self.norm(x)
        return normed


def _linear(settings: EncoderSettings) -> nn.Module:
    patch = (settings.patch_height, settings.patch_width)
    return nn.Conv2d(3, settings.dim, patch, stride=patch)


def _convolutions(settings: EncoderSettings) -> nn.Module:
    """Halve each side by 3x3 convolutions until the grid of patches is reached, doubling channels on the way."""
    height, width = settings.patch_height, settings.patch_width
    halvings = max(height.bit_length(), width.bit_length()) - 1
    if (1 << (height.bit_length() - 1), 1 << (width.bit_length() - 1)) != (height, width):
        raise UserError(f"patch {height}x{width} is not made of powers of two", 'Use encoder.stem = "linear"')
    layers: list[nn.Module] = []
    channels = 3
    for halving in range(halvings):
        wider = settings.dim >> (halvings - 1 - halving)
        stride = (2 if height > 1 else 1, 2 if width > 1 else 1)
        height, width = max(height // 2, 1), max(width // 2, 1)
        layers += [nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, settings.dim, 1))
