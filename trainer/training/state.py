"""State of a run between two steps: everything needed to resume, saved and restored together."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import METRICS_FILE, STATE_FILE, TIMINGS_FILE
from dptr.cache.progress import note
from dptr.trainer.training import step_log
from dptr.trainer.training.checkpoint import (
    AVERAGE,
    MODEL,
    OPTIMIZER,
    CheckpointName,
    checkpoint_folder,
    find_checkpoint,
    load_state,
    load_tensors,
)

#: In the timings: how long saving took; such a line also shows that a checkpoint was written.
CHECKPOINT_SECONDS = "checkpoint_seconds"


class MovingAverage:
    """An exponential moving average of a model's weights and of its buffers: batch norm's statistics fit no others.

    With a decay of 0.999, a thousand steps in a third of the average would still be random weights. So the decay grows
    with the steps taken, up to the recipe's (as in TensorFlow's ``ExponentialMovingAverage``). The steps are counted
    here: torch's ``AveragedModel`` counts them in a tensor, for which a GPU would have to finish all that is queued.

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


@dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: optimiser steps done.
        best_score: highest validation score so far; best_step: where it was reached.
        metrics: the newest validation metrics.
        unlogged: loss and gradient norm of the newest step while it is not yet logged and validated.
        not_finite_at: the first step whose loss or gradient was NaN or infinite, a tensor () on the loss's device; 0:
            none. Reading it synchronises with the GPU.
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
    not_finite_at: Tensor | None = None
    buffers: list[Tensor] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """The model to validate and to use: the averaged one where an average is kept."""
        return self.model if self.average is None else self.average.module

    def take_step(self, loss: Tensor, norm: Tensor) -> None:
        """Count an optimiser step with its loss and gradient norm, both of shape ()."""
        self.step, self.buffers = self.step + 1, []
        self.unlogged = {"loss": loss, "gradient_norm": norm}
        before = torch.zeros_like(loss, dtype=torch.int64) if self.not_finite_at is None else self.not_finite_at
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.not_finite_at = torch.where((before == 0) & ~finite, self.step, before)

    def first_step_not_finite(self) -> int:
        """Return the first step whose loss or gradient was NaN or infinite, 0 without one."""
        return 0 if self.not_finite_at is None else int(self.not_finite_at)

    @torch.no_grad()
    def weight_not_finite(self) -> str | None:
        """Return the name of a weight, of the model or of its average, that holds NaN or infinity; None without one."""
        for model in dict.fromkeys((self.model, self.trained)):
            named = [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]
            finite = torch.stack([torch.isfinite(value).all() for _, value in named]).tolist() if named else []
            wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
            if wrong:
                return wrong[0]
        return None

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


def resume(folder: Path, state: TrainState) -> None:
    """Restore the last checkpoint, or the best one where the last is damaged; a new run stays as it is.

    Raises:
        DamagedStore: the run has taken steps, and no checkpoint of it can be used.
    """
    problems: list[str] = []
    names: tuple[CheckpointName, ...] = ("last", "best")
    for name in names:
        checkpoint = checkpoint_folder(folder, name)
        found = find_checkpoint(checkpoint)
        if found is None:
            if checkpoint.exists():
                problems.append(f"{checkpoint / STATE_FILE} is missing")
            continue
        try:
            state.restore(found)
        except DamagedStore as error:
            problems.append(error.problem)
            continue
        if problems:
            note(f"{'; '.join(problems)}: resuming from {found}, at step {state.step}")
        return
    # Without a line about a saved checkpoint, the run was killed before its first one.
    if saved := step_log.last_step(folder / TIMINGS_FILE, having=CHECKPOINT_SECONDS):
        problems.append(f"{folder / TIMINGS_FILE} names a checkpoint of step {saved}, and there is none")
    if problems:
        advice = f"Restore it from a copy, or move {folder} away to train from the start"
        raise DamagedStore("; ".join(problems), advice)
    if logged := step_log.last_step(folder / METRICS_FILE):
        note(f"{folder} was interrupted at step {logged}, before its first checkpoint: training starts over")
