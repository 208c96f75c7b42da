"""A shuffle that is computed, not stored: any position's number, without the others'.

A Feistel network over the smallest power of two that holds all numbers is a permutation whatever its rounds compute;
a number beyond the end goes through it again until one within is met (cycle walking: Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002). A shuffled epoch of a hundred million rows so costs no memory in any process.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Far more than a large domain needs: a small one mixes little in each.
_ROUNDS = 24
#: Odd constants with well mixed bits, of SplitMix64.
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class KeyedPermutation:
    """A permutation of ``0 … count - 1``, fixed by ``key`` alone."""

    def __init__(self, count: int, key: tuple[int, ...]) -> None:
        bits = max(1, int(count - 1).bit_length())
        self._count = np.uint64(count)
        self._right_bits = np.uint64(bits // 2)
        self._right_mask = np.uint64((1 << bits // 2) - 1)
        self._left_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers at ``positions``, both of shape (positions,)."""
        numbers = self._network(positions.astype(np.uint64))
        outside = np.flatnonzero(numbers >= self._count)
        while len(outside):
            numbers[outside] = self._network(numbers[outside])
            outside = outside[numbers[outside] >= self._count]
        return numbers.astype(np.int64)

    def _network(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._right_bits, numbers & self._right_mask
        for one, other in self._keys.reshape(-1, 2):
            left = left ^ (_mixed(right + one) & self._left_mask)
            right = right ^ (_mixed(left + other) & self._right_mask)
        return (left << self._right_bits) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers each bit of which depends on all bits of ``numbers``: the last steps of SplitMix64."""
    numbers = (numbers ^ (numbers >> _SHIFTS[0])) * _MULTIPLIERS[0]
    numbers = (numbers ^ (numbers >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return numbers ^ (numbers >> _SHIFTS[2])
