"""Nearest rows by comparing with every row: the ground truth that recall is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def exact_neighbours(queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], k: int) -> NDArray[np.int64]:
    """Return each query's ``k`` nearest rows among all blocks, by comparing with every row, shape (queries, k)."""
    queries = normalized(queries)
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    first = 0
    for block in blocks:
        best = np.concatenate([best, queries @ block.T], axis=1)
        numbers = np.arange(first, first + len(block), dtype=np.int64)
        rows = np.concatenate([rows, np.broadcast_to(numbers, (len(queries), len(block)))], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
        first += len(block)
    return rows


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of ``vectors``, shape (rows, dim), at length one, float32; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
