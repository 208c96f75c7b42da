"""Seeds by name: every use of random numbers has a stream of its own, fixed by the recipe's seed and by numbers."""

from __future__ import annotations

from typing import Literal
from zlib import crc32

import numpy as np

Stream = Literal["noise", "dropout", "validation", "validation noise", "widths", "augmentation", "first views"]


def seeds_of(seed: int, stream: Stream, *numbers: int) -> np.random.SeedSequence:
    """Return the seeds of one stream, such as that of a batch's noise by the batch's number."""
    return np.random.SeedSequence(seed, spawn_key=(crc32(stream.encode()), *numbers))


def generator_of(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    """Return NumPy's generator of a stream; see :func:`seeds_of`."""
    return np.random.default_rng(seeds_of(seed, stream, *numbers))


def torch_seed(seed: int, stream: Stream, *numbers: int) -> int:
    """Return what ``torch.manual_seed`` takes for a stream; see :func:`seeds_of`."""
    return int(seeds_of(seed, stream, *numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
