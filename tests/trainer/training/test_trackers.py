"""Trackers show what the run's own log holds."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dptr.cache.errors import UserError
from dptr.trainer.training.step_log import observers


def train(training: Any, folder: Path, name: Any) -> list[dict[str, Any]]:
    task = training.task()
    task.track = name
    training.run(folder, task=task)
    return [json.loads(line) for line in training.saved(folder)[1]]


def test_tensorboard_holds_every_line(tmp_path: Path, training: Any) -> None:
    lines = train(training, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "learning_rate", "validation_score"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_wandb_receives_every_line(tmp_path: Path, training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict[str, Any]]] = []
    started: list[dict[str, Any]] = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)))
    fake = types.SimpleNamespace(init=lambda **arguments: started.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    lines = train(training, tmp_path, "wandb")
    assert [{"step": step, **values} for step, values in told] == lines
    assert started[0]["id"] == tmp_path.name


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        observers("wandb", tmp_path)
