"""Learning-rate schedules as pure functions of the step, so that nothing about them has to be saved."""

from __future__ import annotations

import math

from dptr.trainer.recipe import TrainingSettings


def rate_factor(step: int, settings: TrainingSettings) -> float:
    """Return what the peak learning rate is multiplied by at optimiser step ``step``, counted from 0.

    ``one-cycle`` rises by a cosine from 1/25 to 1 during the warm-up and falls by a cosine to almost nothing (PyTorch's
    OneCycleLR with its defaults); ``cosine`` rises linearly and falls to zero; ``constant`` rises linearly and stays;
    ``trapezoid`` rises linearly, stays, and falls linearly to zero in the last ``decay_share``, so that a run can be
    made longer without starting again (Hägele et al. 2024).
    """
    warmup = max(1, round(settings.warmup_share * settings.steps))
    if settings.schedule == "one-cycle":
        # OneCycleLR's phases end one step before the counts say.
        peak = max(settings.warmup_share * settings.steps - 1, 1e-9)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 25 / 1e4, (step - peak) / max(settings.steps - 1 - peak, 1e-9))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "trapezoid":
        left = settings.steps - step
        return min(1.0, left / max(settings.decay_share * settings.steps, 1))
    return _cosine(1.0, 0.0, (step - warmup) / max(settings.steps - warmup, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
