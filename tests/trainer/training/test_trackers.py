"""Trackers show what the run's own log holds."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dptr.cache.errors import UserError
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training import loop
from dptr.trainer.training.step_log import Observer, observers

SETTINGS = TrainingSettings(steps=4, batch_size=2, log_every=1, validate_every=2, checkpoint_every=2)


def train(folder: Path, shown: list[Observer]) -> list[dict[str, Any]]:
    model = nn.Linear(2, 1)
    task = loop.Task(
        model=model,
        batch=lambda number: torch.full((2, 2), float(number)),
        loss=lambda rows: model(rows).square().mean(),
        validate=lambda network: {"score": 0.5},
        groups=[loop.ParameterGroup(list(model.parameters()))],
        observers=shown,
    )
    loop.run(folder, task, SETTINGS, torch.device("cpu"))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_holds_every_line(tmp_path: Path) -> None:
    lines = train(tmp_path, observers("tensorboard", tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "learning_rate", "validation_score"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_wandb_is_told_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    started: list[dict[str, Any]] = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)))
    fake = types.SimpleNamespace(init=lambda **arguments: started.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    lines = train(tmp_path, observers("wandb", tmp_path))
    assert [{"step": step, **values} for step, values in told] == lines
    assert started[0]["id"] == tmp_path.name


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        observers("wandb", tmp_path)
