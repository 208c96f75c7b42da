"""In place of an encoder whose tokens are stored: what comes in are tokens, and they go out as they are.

For a decoder of pooled vectors an image's own stands before its tokens.
"""

from __future__ import annotations

from torch import Tensor

from dptr.trainer.model.encoders.base import Encoder


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
