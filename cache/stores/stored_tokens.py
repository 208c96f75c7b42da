"""Token states as a store keeps them: half the bytes of float32, or a quarter, until they are computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredTokens:
    """Token states in the precision that is stored.

    Attributes:
        values: shape (.., dim), float16, float32 or int8.
        scale: what int8 values are multiplied by, shape (..), float32; None for the others.
    """

    values: NDArray[np.generic]
    scale: NDArray[np.float32] | None = None

    def widened(self) -> NDArray[np.float32]:
        """Return the states as float32, shape (.., dim)."""
        values = self.values.astype(np.float32)
        return values if self.scale is None else values * self.scale[..., None]

    def floating(self) -> NDArray[np.floating]:
        """Return the states to compute with, shape (.., dim): in the precision that is stored, int8 as float32."""
        return self.widened() if self.scale is not None else cast("NDArray[np.floating]", self.values)


@dataclass(frozen=True)
class StoredStates:
    """Ragged token states of some rows, as they are stored.

    Attributes:
        tokens: all rows' tokens behind each other, shape (sum(lengths), dim).
        lengths: tokens of each row, shape (rows,), int64.
        pooled: pooled vector of each row, shape (rows, pooled_dim), float16.
    """

    tokens: StoredTokens
    lengths: NDArray[np.int64]
    pooled: NDArray[np.float16]
