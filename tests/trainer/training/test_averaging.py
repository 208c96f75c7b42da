"""The average of weights: young ones follow quickly, and running statistics belong to it."""

from __future__ import annotations

import torch
from torch import nn

from dptr.trainer.training.state import MovingAverage


def test_an_early_average_forgets_the_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    average = MovingAverage(model, 0.999)
    average.update(model)
    model.weight.data.fill_(1.0)
    for _ in range(50):
        average.update(model)
    assert abs(float(average.module.weight.detach()) - 1.0) < 0.01


def test_running_statistics_are_averaged_like_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = MovingAverage(model, 0.9)
    average.update(model)
    model.running_mean.fill_(11.0)
    average.update(model)
    torch.testing.assert_close(average.module.running_mean, torch.tensor([9.0]))
