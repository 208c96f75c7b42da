"""The average of weights: young ones follow quickly, and running statistics belong to it."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dptr.trainer.training.averaging import moving_average


def test_an_early_average_forgets_the_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.999))
    average.update_parameters(model)
    model.weight.data.fill_(1.0)
    for _ in range(50):
        average.update_parameters(model)
    assert abs(float(average.module.weight.detach()) - 1.0) < 0.01


def test_running_statistics_are_averaged_like_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.9), use_buffers=True)
    average.update_parameters(model)
    model.running_mean.fill_(11.0)
    average.update_parameters(model)
    torch.testing.assert_close(average.module.running_mean, torch.tensor([9.0]))
