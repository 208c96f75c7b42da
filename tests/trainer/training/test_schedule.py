"""Learning-rate schedules: where they rise, stay and fall."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training.loop import rate_factor


def test_a_trapezoid_rises_stays_and_falls() -> None:
    settings = TrainingSettings(steps=100, schedule="trapezoid", warmup_share=0.1, decay_share=0.2)
    factors = [rate_factor(step, settings) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:81] == [1.0] * 71
    assert factors[81:] == pytest.approx([left / 20 for left in range(19, 0, -1)])


def test_a_longer_trapezoid_begins_as_a_shorter_one() -> None:
    short = TrainingSettings(steps=100, schedule="trapezoid", warmup_share=0.1)
    long = TrainingSettings(steps=200, schedule="trapezoid", warmup_share=0.05)
    assert [rate_factor(step, short) for step in range(80)] == [rate_factor(step, long) for step in range(80)]


def test_one_cycle_is_pytorchs() -> None:
    settings = TrainingSettings(steps=80, warmup_share=0.075, learning_rate=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, 80, pct_start=0.075, cycle_momentum=False, anneal_strategy="cos"
    )
    for step in range(79):
        assert rate_factor(step, settings) == pytest.approx(reference.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        reference.step()
