from __future__ import annotations

import math
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from dptr.cache.row_set import EveryRow, RowSet
from dptr.trainer.data.batch_order import BatchOrder, KeyedPermutation, WeightedRows

MANY = 100_000_000


def even_rows_of(count: int) -> RowSet:
    return RowSet.of(np.arange(0, count, 2), count)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_has_every_number_once(count: int) -> None:
    for key in range(5):
        assert sorted(KeyedPermutation(count, (key,))(np.arange(count)).tolist()) == list(range(count))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_all_orders_of_few_rows_are_as_likely(count: int) -> None:
    draws, orders = 4000, math.factorial(count)
    found = Counter(tuple(KeyedPermutation(count, (7, key))(np.arange(count)).tolist()) for key in range(draws))
    expected = draws / orders
    squares = sum((times - expected) ** 2 / expected for times in found.values())
    squares += (orders - len(found)) * expected
    assert squares < orders + 5 * math.sqrt(2 * orders)


def test_every_position_holds_every_row_as_often() -> None:
    count, keys = 50, 3000
    times = np.zeros((count, count))
    for key in range(keys):
        times[np.arange(count), KeyedPermutation(count, (key, 1))(np.arange(count))] += 1
    squares = ((times - keys / count) ** 2 / (keys / count)).sum()
    freedom = (count - 1) ** 2
    assert abs(squares - freedom) < 5 * math.sqrt(2 * freedom)


def test_an_epoch_follows_neither_the_rows_nor_the_epoch_before() -> None:
    here = np.arange(20_000)
    one, other = (KeyedPermutation(20_000, (0, 1, epoch))(here) for epoch in (0, 1))
    for before, after in ((here, one), (one, other), (one[:-1], one[1:])):
        assert abs(np.corrcoef(before, after)[0, 1]) < 0.04
    assert (np.diff(one) == 1).sum() < 10


def test_a_batch_of_a_hundred_million_rows_needs_no_list_of_them() -> None:
    tracemalloc.start()
    order = BatchOrder(EveryRow(MANY), None, 256, seed=0)
    rows = np.concatenate([order.rows_of(step) for step in (0, 1, 300_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == len(rows)
    assert rows.max() > MANY // 2
    assert peak < 10_000_000


@pytest.mark.parametrize("count", [1, 5, 255, 256, 257, 5000])
def test_a_row_set_finds_its_rows_by_position(count: int) -> None:
    mask = np.random.default_rng(count).random(count) < 0.4
    mask[-1] = True
    rows = RowSet(mask[start : start + 512] for start in range(0, count, 512))
    assert len(rows) == mask.sum()
    assert np.array_equal(rows[np.arange(len(rows))], np.flatnonzero(mask))
    assert np.array_equal(rows.holds(np.arange(count)), mask)


def test_an_epoch_of_a_row_set_has_its_rows_and_no_other() -> None:
    order = BatchOrder(even_rows_of(3001), lambda rows: rows % 9, 16, seed=4)
    seen = np.concatenate([order.rows_of(step) for step in range(order.batches_per_epoch)])
    assert sorted(seen.tolist()) == list(range(0, 3001, 2))


class Weights:
    """A weight that grows with the row; none for every third row."""

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(rows % 3 == 0, 0.0, 1.0 + rows)


def test_weights_over_many_blocks_are_kept_to() -> None:
    count = 1000
    order = BatchOrder(EveryRow(count), None, 64, 0, WeightedRows(count, Weights()))
    drawn = np.bincount(np.concatenate([order.rows_of(step) for step in range(1600)]), minlength=count)
    expected = Weights()(np.arange(count)) / Weights()(np.arange(count)).sum() * drawn.sum()
    assert not drawn[::3].any()
    squares = ((drawn - expected) ** 2 / np.where(expected > 0, expected, 1)).sum()
    freedom = np.count_nonzero(expected) - 1
    assert abs(squares - freedom) < 5 * math.sqrt(2 * freedom)


def test_a_weighted_batch_depends_on_its_number_alone_also_in_another_process() -> None:
    order = BatchOrder(EveryRow(1000), None, 8, 3, WeightedRows(1000, Weights()))
    other = pickle.loads(pickle.dumps(order))
    walked = [order.rows_of(step) for step in range(130)]
    for step in (129, 0, 64, 63):
        assert np.array_equal(other.rows_of(step), walked[step])
