"""An exponential moving average of weights, short while training is young.

With a decay of 0.999, a thousand steps in a third of the average would still be random weights. So the decay grows with
the steps taken, up to the recipe's (as in TensorFlow's ``ExponentialMovingAverage``).

The steps are counted here: torch's ``AveragedModel`` counts them in a tensor, and a GPU would have to finish all it was
given before that could be looked at.
"""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """An average of a model's weights and of its buffers: batch norm's statistics fit no other weights.

    Attributes:
        module: the averaged model. count: updates so far; the first one copies.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.count = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards a model: update n, counted from 0, keeps ``min(decay, (1 + n) / (10 + n))`` of the average."""
        kept = 0.0 if self.count == 0 else min(self._decay, (1 + self.count) / (10 + self.count))
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        for floating in (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == floating]
            if chosen:
                averaged, newest = map(list, zip(*chosen, strict=True))
                get_ema_multi_avg_fn(kept)(averaged, newest, self.count)  # type: ignore[no-untyped-call]
        self.count += 1


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
