"""Memory of kind ``pooled``: the one vector of a prompt in CLIP's joint space, where an image's may take its place.

Text and images lie in two cones of that space, each round its own mean (the modality gap, Liang et al. 2022). Centred
by its own side's mean, a vector keeps what texts and images share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.model.decoders.pooled import directions

if TYPE_CHECKING:
    from dptr.trainer.data.noise import NoiseSource


def pooled_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    centred: bool,
    generator: np.random.Generator,
) -> Memory:
    """Return the pooled text vectors of ``rows``, of length one, as memories of one token: (batch, 1, dim).

    Noise points where a photo crop's centred vector does; its length is drawn evenly from 0 to ``ratio``.
    """
    vectors = directions(torch.from_numpy(store.pooled(rows)), torch.from_numpy(store.pooled_mean) if centred else None)
    if noise is not None and ratio > 0:
        drawn = torch.from_numpy(noise.draw_pooled(rows, generator))
        lengths = torch.from_numpy(generator.uniform(0, ratio, (len(rows), 1)).astype(np.float32))
        vectors = vectors + lengths * drawn
    return Memory(vectors[:, None])
