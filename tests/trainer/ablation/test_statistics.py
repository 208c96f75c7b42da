"""Intervals against cases that were worked by hand or by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dptr.cache.errors import DamagedStore
from dptr.trainer.ablation import table
from dptr.trainer.ablation.comparison import compare
from dptr.trainer.ablation.rows import Row
from dptr.trainer.ablation.statistics import mean_and_spread, paired_bootstrap, paired_t, student_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (10, 2.228), (29, 2.045), (100, 1.984)]
)
def test_students_quantiles_are_those_of_printed_tables(degrees: int, expected: float) -> None:
    assert student_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_paired_t_as_worked_by_hand() -> None:
    # Mean 2, deviations -1, 0, 1: spread 1, standard error 1 / sqrt 3.
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    interval = paired_t([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert paired_t([4.0]) is None
    assert paired_t([0.5, 0.5]) == (0.5, 0.5)


def test_the_bootstrap_agrees_with_all_resamples_of_few_images() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0, -1.0, 1.0])
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))]
    expected = np.quantile(means, [0.025, 0.975])
    assert paired_bootstrap([values], resamples=40_000) == pytest.approx(tuple(expected), abs=1e-9)


def test_the_bootstrap_repeats_and_resamples_each_test_set_by_itself() -> None:
    generator = np.random.default_rng(0)
    values = generator.choice([-1.0, 0.0, 1.0], 500)
    assert paired_bootstrap([values], seed=4) == paired_bootstrap([values], seed=4)
    # Sets that each say one thing only leave nothing to chance, however they differ.
    assert paired_bootstrap([np.ones(10), -np.ones(30)]) == (-0.5, -0.5)
    assert paired_bootstrap([]) is None


def row(arm: str, seed: int, right: list[bool], test: str = "signs", **changes: object) -> Row:
    return {
        "arm": arm,
        "seed": seed,
        "base": arm == "plain",
        "test": test,
        "test_sha256": "t",
        "words": len(right),
        "accuracy": sum(right) / len(right),
        "one_minus_ned": 0.5,
        "steps": 10,
        "seconds": 2.0,
        "pretrain_seconds": 0.0,
        "images": [str(number) for number in range(len(right))],
        "right": right,
    } | changes


def test_a_comparison_as_worked_by_hand() -> None:
    yes, no = True, False
    rows = [
        row("plain", 1, [yes, no, no, no]),
        row("plain", 2, [yes, yes, no, no]),
        row("better", 1, [yes, yes, no, no]),
        row("better", 2, [yes, yes, yes, yes]),
        row("better", 3, [no, no, no, no]),
    ]
    plain, better = compare(rows)
    assert (plain.accuracy, plain.difference) == (0.375, None)
    assert plain.spread == pytest.approx(0.125 * 2**0.5)
    assert (better.seeds, better.accuracy) == (3, 0.5)
    assert better.difference is not None
    # Only the two seeds that both arms have are paired: +1/4 and +2/4.
    assert (better.difference.seeds, better.difference.mean) == (2, 0.375)
    half = 12.706 * 0.25 / 2
    assert better.difference.over_seeds == pytest.approx((0.375 - half, 0.375 + half), abs=1e-3)
    # Per image, over seeds: 0, 1/2, 1/2, 1/2.
    assert better.difference.over_images is not None
    assert 0.1 <= better.difference.over_images[0] < 0.375 < better.difference.over_images[1] == 0.5
    shown = table.as_text([plain, better])
    assert "37.50 ± 17.68" in shown
    assert "+37.50" in shown


def test_an_arm_is_compared_with_the_one_it_names() -> None:
    rows = [
        row("plain", 1, [False, False], against=""),
        row("few", 1, [True, False], against=""),
        row("few, pre-trained", 1, [True, True], against="few"),
        row("more", 1, [True, True], against="plain"),
    ]
    found = {result.arm: result.difference for result in compare(rows)}
    assert [found[arm] for arm in ("plain", "few")] == [None, None]
    paired, more = found["few, pre-trained"], found["more"]
    assert paired is not None
    assert more is not None
    assert (paired.against, paired.mean) == ("few", 0.5)
    assert (more.against, more.mean) == ("plain", 1.0)


def test_all_sets_together_are_weighted_by_words() -> None:
    rows = [
        *(row("plain", 1, [True], "one"), row("plain", 1, [False] * 3, "two")),
        *(row("better", 1, [True], "one"), row("better", 1, [True, True, False], "two")),
    ]
    found = {(result.test, result.arm): result for result in compare(rows)}
    assert (found["all", "plain"].accuracy, found["all", "better"].accuracy) == (0.25, 0.75)
    difference = found["all", "better"].difference
    assert difference is not None
    assert (difference.mean, difference.over_seeds) == (0.5, None)


def test_rows_of_other_test_images_are_not_compared() -> None:
    with pytest.raises(DamagedStore, match="different images"):
        compare([row("plain", 1, [True]), row("better", 1, [True], test_sha256="other")])
