"""A set of rows as one bit each: 12 MB for a hundred million rows.

Choice of validation data by hashes and a seed, so that adding data moves nothing.

A word image has the :func:`validation_position` of its key and label, a prompt the :func:`positions_of` its label's
hash, which is stored with the label: computed for a hundred million prompts in less than a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

#: Rows of a block, whose bits are counted together.
BLOCK = 256


#: Position of the first, second, … set bit of a byte, counted from its highest: shape (256, 8).
_PLACES = np.argsort(-np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8), kind="stable")


class RowSet:
    """A set of row numbers, indexed by position: ``rows[3]`` is the fourth of them, counted from the lowest.

    Args:
        masks: whether each row is in the set, from row 0 on, in chunks of shape (rows,); all but the last have a
            multiple of :data:`BLOCK` rows.
    """

    def __init__(self, masks: Iterable[NDArray[np.bool_]]) -> None:
        bits = np.concatenate([np.zeros(0, np.uint8), *(np.packbits(mask) for mask in masks)])
        bits.resize(-(-len(bits) // (BLOCK // 8)) * (BLOCK // 8), refcheck=False)
        self._bits = bits.reshape(-1, BLOCK // 8)
        counts = np.bitwise_count(self._bits).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of(cls, rows: NDArray[np.int64], count: int) -> RowSet:
        """Return the set of ``rows``, shape (rows,), each below ``count``."""
        mask = np.zeros(count, np.bool_)
        mask[rows] = True
        return cls([mask])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row numbers at ``positions``, both of shape (positions,)."""
        blocks = np.searchsorted(self._before, positions, side="right") - 1
        within = positions - self._before[blocks]
        of_bytes = self._bits[blocks]
        ends = np.cumsum(np.bitwise_count(of_bytes), axis=1, dtype=np.int64)
        byte = (ends <= within[:, None]).sum(axis=1)
        found = np.arange(len(positions)), byte
        before_byte = ends[found] - np.bitwise_count(of_bytes[found])
        rows: NDArray[np.int64] = blocks * BLOCK + byte * 8 + _PLACES[of_bytes[found], within - before_byte]
        return rows

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each of ``rows`` is in the set, of the same shape."""
        found: NDArray[np.bool_] = (self._bits.reshape(-1)[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8) & 1) == 1
        return found


class EveryRow:
    """All rows ``0 … count - 1``."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return ``positions``."""
        return positions


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
