"""Interface of image encoders; a package may register its own under the entry point ``dptr.encoders``."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from torch import Tensor, nn


class Encoder(nn.Module):
    """Word images to tokens. A registered encoder is made with the recipe's ``EncoderSettings`` alone.

    Attributes:
        dim: width of a token. size: (height, width) of the images it takes, in pixels.
        grid: (rows, columns) of its tokens.
    """

    dim: int
    size: tuple[int, int]
    grid: tuple[int, int]
    #: Whether tokens carry where they stand. The recogniser adds it to those that do not, as plain convolutions'.
    positioned: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths of images that it takes, in pixels, ascending."""
        return (self.size[1],)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, tokens, dim), row by row."""


class PretrainedEncoder(Encoder):
    """An encoder that starts from a model's own weights."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take the weights of the model in ``folder``.

        Raises:
            UserError: its weights are no safetensors, damaged, or of another shape than its configuration says.
        """


class GivenTokens(Encoder):
    """Nothing to train and nothing to save.

    Attributes:
        dim: width of the tokens. grid: (rows, columns) of them.
        size: (height, width) of the images they were made from.
    """

    def __init__(self, dim: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.dim = dim
        self.size = size
        self.grid = grid

    def forward(self, images: Tensor) -> Tensor:
        """(batch, tokens, dim) in the precision that is stored -> the same in float32."""
        return images.float()

    def tokens_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 1 + tokens, dim), the pooled vector first -> tokens, and pooled vectors (batch, dim), in float32."""
        return images[:, 1:].float(), images[:, 0].float()
