"""An exponential moving average of weights, short while training is young.

With a decay of 0.999, a thousand steps in a third of the average would still be random weights. So the decay grows with
the steps taken, up to the recipe's (as in TensorFlow's ``ExponentialMovingAverage``).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]
Update = Callable[[Tensors, Tensors, Tensor | int], None]


def moving_average(decay: float) -> Update:
    """Return what :class:`torch.optim.swa_utils.AveragedModel` takes as ``multi_avg_fn``: lists of tensors, in place.

    Update n, counted from 1, keeps ``min(decay, (1 + n) / (10 + n))`` of the average.
    """

    def update(averaged: Tensors, newest: Tensors, count: Tensor | int) -> None:
        grown = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(grown)(averaged, newest, count)  # type: ignore[no-untyped-call]

    return update
