"""What a run is between two steps: all that resuming needs, saved and restored as one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptr.trainer.training.averaging import MovingAverage
from dptr.trainer.training.checkpoint import AVERAGE, MODEL, OPTIMIZER, load_state, load_tensors


@dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: optimiser steps done.
        best_score: highest validation score so far; best_step: where it was reached.
        metrics: the newest validation metrics.
        unlogged: loss and gradient norm of the newest step while it is not yet logged and validated.
        buffers: the model's buffers as they were before the step under way.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    unlogged: dict[str, Tensor] | None = None
    buffers: list[Tensor] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """The model to validate and to use: the averaged one where an average is kept."""
        return self.model if self.average is None else self.average.module

    def is_finite(self) -> bool:
        """Return whether the newest step's loss and gradient were finite; True once they are logged."""
        return all(math.isfinite(float(value)) for value in (self.unlogged or {}).values())

    def forget_unfinished_step(self) -> None:
        """Take back what the forward pass of an unfinished step did to running statistics, such as batch norm's."""
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=False):
            buffer.copy_(before)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Group all tensors by file name."""
        groups = {MODEL: self.model.state_dict(), OPTIMIZER: {}}
        for index, moments in self.optimizer.state_dict()["state"].items():
            groups[OPTIMIZER] |= {f"{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        if self.average is not None:
            groups[AVERAGE] = self.trained.state_dict()
        return groups

    def numbers(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        return {
            "step": self.step,
            "best_score": None if math.isinf(self.best_score) else self.best_score,
            "best_step": self.best_step,
            "metrics": self.metrics,
            "unlogged": self.unlogged and {name: float(value) for name, value in self.unlogged.items()},
        }

    def restore(self, folder: Path) -> None:
        """Load a checkpoint folder into this state.

        Raises:
            DamagedStore: a file of it is missing or damaged; this state is as it was.
        """
        numbers = load_state(folder)
        self.model.load_state_dict(load_tensors(folder, MODEL))
        if self.average is not None:
            self.trained.load_state_dict(load_tensors(folder, AVERAGE))
            self.average.count = numbers["step"]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_tensors(folder, OPTIMIZER).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for parameter, moments_of in self.optimizer.state.items():
            for name, value in moments_of.items():
                if value.shape == parameter.shape:
                    # The fused optimiser pairs elements as they lie in memory, in a file they lie row by row.
                    moments_of[name] = torch.empty_like(parameter).copy_(value)
        self.step, self.best_step, self.metrics = numbers["step"], numbers["best_step"], numbers["metrics"]
        self.best_score = -math.inf if numbers["best_score"] is None else numbers["best_score"]
        unlogged = numbers.get("unlogged")
        self.unlogged = unlogged and {name: torch.tensor(value) for name, value in unlogged.items()}
