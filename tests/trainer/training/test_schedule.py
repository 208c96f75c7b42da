"""Learning-rate schedules: where they rise, stay and fall."""

from __future__ import annotations

import pytest

from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings


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
