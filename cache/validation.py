"""Which data is for validation, by hashes of it and a seed, so that growth of the data moves nothing.

A word image's side is :func:`validation_position` of its key and label. A prompt's is :func:`positions_of` its label's
hash, which is stored with the label: a hundred million of them are placed in less than a second.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray


def validation_position(name: str | bytes, seed: int) -> float:
    """Return where ``name`` stands in [0, 1), by a hash of it and the seed; what is below a share is for validation.

    It depends on nothing else, so that whatever joins or leaves the data, the side of ``name`` stays. A larger share
    keeps all that a smaller one chose.
    """
    encoded = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    digest = hashlib.blake2b(b"%d\t%s" % (seed, encoded), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def hashes_of(labels: pa.Array) -> NDArray[np.uint32]:
    """Return a hash of each label, case-insensitive, shape (labels,)."""
    lower = pc.utf8_lower(labels).cast(pa.binary()).to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(label) & 0xFFFFFFFF for label in lower), np.uint32, len(lower))


def positions_of(hashes: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Return where hashes stand among 2 ** 32 places, of the same shape; what is below a share is for validation.

    Each seed has a multiplier and an offset of its own, so that two labels fall to one side as often as chance has it.
    """
    factor, offset = np.random.SeedSequence((seed, 7)).generate_state(2, np.uint32)
    positions: NDArray[np.uint32] = hashes * (factor | np.uint32(1)) + offset
    return positions
