"""Rows to results: each arm's mean and spread over seeds, and its paired difference to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore
from dptr.trainer.ablation.rows import Row
from dptr.trainer.ablation.statistics import Interval, mean_and_spread, paired_bootstrap, paired_t

#: Name of the line over all test sets, weighted by words.
ALL = "all"


@dataclass(frozen=True)
class Difference:
    """An arm less another, in shares of words, over the ``seeds`` that both have.

    Attributes:
        against: the other arm. mean: of the differences. over_seeds: 95 % interval by the paired t; None for one seed.
        over_images: 95 % interval by the paired bootstrap over test images, the seeds' readings averaged.
    """

    against: str
    seeds: int
    mean: float
    over_seeds: Interval | None
    over_images: Interval | None


@dataclass(frozen=True)
class Result:
    """One arm on one test set, or on all of them.

    Attributes:
        accuracy, one_minus_ned, steps, seconds, pretrain_seconds: means over seeds. spread: of the accuracy, the
            sample standard deviation over seeds; None for one seed. difference: None for an arm that is compared with
            none, and where the two have no seed in common.
    """

    arm: str
    test: str
    seeds: int
    words: int
    accuracy: float
    spread: float | None
    one_minus_ned: float
    steps: float
    seconds: float
    pretrain_seconds: float
    difference: Difference | None


def compare(rows: Sequence[Row], resamples: int = 10_000) -> list[Result]:
    """Return a result for each test set and arm, in the order of the rows; ``all`` last where there are several sets.

    Raises:
        DamagedStore: two rows of the same test set are not of the same images.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    tests = list(dict.fromkeys(row["test"] for row in rows))
    base = next((row["arm"] for row in rows if row["base"]), None)
    others = {row["arm"]: _against(row, base) for row in rows}
    groups = [(test, [test]) for test in tests] + ([(ALL, tests)] if len(tests) > 1 else [])
    return [
        _result(name, arm, others[arm], _by_seed(rows, arm, chosen), _by_seed(rows, others[arm], chosen), resamples)
        for name, chosen in groups
        for arm in arms
    ]


def figures(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return results as plain values."""
    return [asdict(result) for result in results]


def _against(row: Row, base: str | None) -> str | None:
    """Name of the arm that a row's arm is compared with."""
    named: str | None = base if row.get("against") is None else row["against"] or None
    return None if named == row["arm"] else named


def _by_seed(rows: Sequence[Row], arm: str | None, tests: list[str]) -> dict[int, list[Row]]:
    """Seed -> the arm's rows on the tests, in their order; a seed that misses one is left out."""
    found: dict[int, list[Row]] = {}
    for seed in dict.fromkeys(row["seed"] for row in rows if row["arm"] == arm):
        own = {row["test"]: row for row in rows if row["arm"] == arm and row["seed"] == seed}
        if all(test in own for test in tests):
            found[seed] = [own[test] for test in tests]
    return found


def _result(
    name: str,
    arm: str,
    against: str | None,
    ours: dict[int, list[Row]],
    theirs: dict[int, list[Row]],
    resamples: int,
) -> Result:
    accuracies = [_accuracy(own) for own in ours.values()]
    mean, spread = mean_and_spread(accuracies)
    first = next(iter(ours.values()))
    return Result(
        arm=arm,
        test=name,
        seeds=len(ours),
        words=sum(row["words"] for row in first),
        accuracy=mean,
        spread=spread,
        one_minus_ned=mean_and_spread([_weighted(own, "one_minus_ned") for own in ours.values()])[0],
        steps=mean_and_spread([own[0]["steps"] for own in ours.values()])[0],
        seconds=mean_and_spread([own[0]["seconds"] for own in ours.values()])[0],
        pretrain_seconds=mean_and_spread([own[0]["pretrain_seconds"] for own in ours.values()])[0],
        difference=None if against is None else _difference(against, ours, theirs, resamples),
    )


def _difference(
    against: str, ours: dict[int, list[Row]], theirs: dict[int, list[Row]], resamples: int
) -> Difference | None:
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    over_seeds = [_accuracy(ours[seed]) - _accuracy(theirs[seed]) for seed in seeds]
    images = [
        np.mean([_right(ours[seed][test]) - _right_of_same(theirs[seed][test], ours[seed][test]) for seed in seeds], 0)
        for test in range(len(ours[seeds[0]]))
    ]
    return Difference(
        against=against,
        seeds=len(seeds),
        mean=mean_and_spread(over_seeds)[0],
        over_seeds=paired_t(over_seeds),
        over_images=paired_bootstrap(images, resamples),
    )


def _accuracy(rows: list[Row]) -> float:
    return _weighted(rows, "accuracy")


def _weighted(rows: list[Row], column: str) -> float:
    return float(sum(row[column] * row["words"] for row in rows) / sum(row["words"] for row in rows))


def _right(row: Row) -> NDArray[np.float64]:
    return np.array(row["right"], np.float64)


def _right_of_same(row: Row, other: Row) -> NDArray[np.float64]:
    if row["test_sha256"] != other["test_sha256"] or row["images"] != other["images"]:
        raise DamagedStore(
            f"arms {other['arm']!r} and {row['arm']!r} were tested on different images of {row['test']!r}",
            "Run `dptr ablate` again with test data that does not change meanwhile",
        )
    return _right(row)
