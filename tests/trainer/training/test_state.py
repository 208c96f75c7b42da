"""The optimiser's moments of a resumed run belong to the same weights, however these lie in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dptr.trainer.training.checkpoint import save_checkpoint
from dptr.trainer.training.state import MovingAverage, TrainState


def fresh() -> TrainState:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), None)


def take_step(state: TrainState) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
    state.model(images).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def test_weights_in_another_memory_format_go_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = fresh()
    take_step(whole)
    save_checkpoint(tmp_path / "last", whole.tensors(), whole.numbers())
    take_step(whole)
    resumed = fresh()
    resumed.restore(tmp_path / "last")
    take_step(resumed)
    assert torch.equal(resumed.model.weight, whole.model.weight)  # type: ignore[arg-type]


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
