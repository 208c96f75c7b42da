"""How sure a difference between two arms is: over seeds by Student's t, over test images by the bootstrap.

The two measure different things. Over seeds: would training again come out the same way? Over images: would other
crops of the same kind? Both are paired: the same seed drew the same data, the same image was read by both arms, and
what is common to the pair falls out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
CONFIDENCE = 0.95


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the sample standard deviation where there are two values or more."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_t(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the mean of paired differences; None for fewer than two pairs."""
    mean, spread = mean_and_spread(differences)
    if spread is None:
        return None
    half = student_quantile(len(differences) - 1) * spread / math.sqrt(len(differences))
    return mean - half, mean + half


def paired_bootstrap(
    differences: Sequence[NDArray[np.float64]], resamples: int = 10_000, seed: int = 0
) -> Interval | None:
    """Return the 95 % percentile interval of the mean difference over images; each test set is resampled by itself.

    An image's difference takes few values (right or wrong, averaged over seeds), so that drawing images with
    replacement is the same as drawing how often each value comes: one multinomial draw a resample.

    Args:
        differences: one array for each test set: its images' differences, shape (images,).
        resamples: how many. seed: of the draws.
    """
    total = sum(len(values) for values in differences)
    if total == 0:
        return None
    generator = np.random.default_rng((seed, 11))
    sums = np.zeros(resamples)
    for values in differences:
        if len(values):
            distinct, counts = np.unique(values, return_counts=True)
            sums += generator.multinomial(len(values), counts / len(values), size=resamples) @ distinct
    low, high = np.quantile(sums / total, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def student_quantile(degrees: int) -> float:
    """Return t such that Student's variable of whole ``degrees`` lies within -t and t with :data:`CONFIDENCE`.

    Raises:
        ValueError: no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _share_within(middle, degrees) < CONFIDENCE else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _share_within(angle: float, degrees: int) -> float:
    """The share of Student's distribution within the angle: Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 if not odd else 3, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
