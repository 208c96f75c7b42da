"""Choice of validation data by hashes and a seed, so that adding data moves nothing.

A word image has the :func:`validation_position` of its key and label, a prompt the :func:`positions_of` its label's
hash, which is stored with the label: computed for a hundred million prompts in less than a second.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray


def validation_position(name: str | bytes, seed: int) -> float:
    """Return a position in [0, 1) by a hash of ``name`` and the seed; positions below the share are for validation.

    It depends on nothing else, so adding or removing data does not move ``name``. A larger share is a superset of a
    smaller one.
    """
    encoded = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    digest = hashlib.blake2b(b"%d\t%s" % (seed, encoded), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def hashes_of(labels: pa.Array) -> NDArray[np.uint32]:
    """Return a hash of each label, case-insensitive, shape (labels,)."""
    lower = pc.utf8_lower(labels).cast(pa.binary()).to_pylist()
    return np.fromiter((xxhash.xxh3_64_intdigest(label) & 0xFFFFFFFF for label in lower), np.uint32, len(lower))


def positions_of(hashes: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Return positions of hashes among 2 ** 32, of the same shape; positions below the share are for validation.

    Each seed has its own multiplier and offset, so that the choices of two labels are independent over seeds.
    """
    factor, offset = np.random.SeedSequence((seed, 7)).generate_state(2, np.uint32)
    positions: NDArray[np.uint32] = hashes * (factor | np.uint32(1)) + offset
    return positions
