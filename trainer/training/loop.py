"""The one training loop. It takes batches and a step function, and knows neither prompts nor images.

A run is a pure function of its recipe, data and seed: batch ``i`` depends on ``i`` alone, the global generator is
seeded anew at every step, and the learning rate is computed from the step. So the whole state is the weights, the
optimiser's moments and a handful of numbers, and a run that was killed goes on to the same bits. Timings vary between
runs and hence live in a file of their own.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.cache.interrupts import deferred
from dptr.cache.progress import progress
from dptr.cache.stores.lock import locked
from dptr.trainer.training import step_log
from dptr.trainer.training.checkpoint import MODEL, find_checkpoint, load_state, load_tensors, save_checkpoint
from dptr.trainer.training.loader import load_batches
from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings
from dptr.trainer.training.trackers import Observer

Batch = TypeVar("Batch")
METRICS_FILE, TIMINGS_FILE = "metrics.jsonl", "timings.jsonl"


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a factor on the learning rate; frozen before optimiser step ``frozen_until``."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    frozen_until: int = 0


@dataclass
class Task(Generic[Batch]):
    """What is trained, and on what.

    Attributes:
        model: whose weights are saved.
        batch: micro-batch number -> batch; a pure function, called in workers when there are any.
        loss: batch -> scalar loss.
        validate: model -> metrics; ``score`` among them decides which checkpoint is best (higher is better).
        rows: batch -> how many rows it has, for the rate shown.
        groups: parameters by learning rate.
        observers: shown every log line, besides the files.
    """

    model: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    rows: Callable[[Batch], int]
    groups: Sequence[ParameterGroup]
    observers: Sequence[Observer] = ()


@dataclass
class TrainState:
    """All that resuming needs, saved and restored as one.

    Attributes:
        step: optimiser steps done.
        best_score: highest validation score so far; best_step: where it was reached.
        metrics: the newest validation metrics.
        whole: whether weights, moments and log lines all belong to ``step``; only then is it worth saving.
        buffers: the model's buffers as they were before the step under way.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    whole: bool = True
    buffers: list[Tensor] = field(default_factory=list)

    def forget_unfinished_step(self) -> None:
        """Take back what the forward pass of an unfinished step did to running statistics, such as batch norm's."""
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=False):
            buffer.copy_(before)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Group all tensors by file name."""
        groups = {MODEL: self.model.state_dict(), "optimizer": {}}
        for index, moments in self.optimizer.state_dict()["state"].items():
            groups["optimizer"] |= {f"{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        return groups

    def numbers(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        best = None if math.isinf(self.best_score) else self.best_score
        return {"step": self.step, "best_score": best, "best_step": self.best_step, "metrics": self.metrics}

    def restore(self, folder: Path) -> None:
        """Load a checkpoint folder into this state."""
        numbers = load_state(folder)
        self.model.load_state_dict(load_tensors(folder, MODEL))
        if self.average is not None:
            self.average.load_state_dict(load_tensors(folder, "average"))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_tensors(folder, "optimizer").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step, self.best_step, self.metrics = numbers["step"], numbers["best_step"], numbers["metrics"]
        self.best_score = -math.inf if numbers["best_score"] is None else numbers["best_score"]


def run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    """Train until ``settings.steps``, from the last checkpoint in ``folder`` when there is one.

    Writes ``metrics.jsonl``, ``timings.jsonl``, ``checkpoints/last`` and ``checkpoints/best``.

    Raises:
        UserError: the loss is no longer finite, the disk is full, or another process trains into ``folder``.
        KeyboardInterrupt: passed on once the state is saved.
    """
    with locked(folder):
        return _run(folder, task, settings, device)


def _run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    state = _new_state(task, settings, device)
    last = folder / "checkpoints" / "last"
    found = find_checkpoint(last)
    if found is not None:
        state.restore(found)
    step_log.keep_up_to(folder / METRICS_FILE, state.step)
    step_log.keep_up_to(folder / TIMINGS_FILE, state.step)
    if _is_done(state, settings):
        return state
    interval = _Interval()
    first, after = state.step * settings.accumulate, settings.steps * settings.accumulate
    batches = load_batches(task.batch, first, after, settings.workers)
    with progress("training", settings.steps, "steps", state.step) as shown:
        try:
            while not _is_done(state, settings):
                loss = _gradients(state, task, batches, settings, device, interval)
                state.whole = False
                norm = _update(state, settings)
                state.step += 1
                shown.advance(detail=f"loss {float(loss):.3f}" if state.step % 20 == 0 else "")
                _after_step(folder, state, task, settings, loss, norm, interval)
                state.whole = True
        except KeyboardInterrupt:
            if state.whole:
                state.forget_unfinished_step()
                _save(last, state)
            raise
    if settings.steps % settings.checkpoint_every or state.step < settings.steps:
        _save(last, state)
    return state


def _is_done(state: TrainState, settings: TrainingSettings) -> bool:
    out_of_patience = settings.patience > 0 and state.step - state.best_step >= settings.patience
    return state.step >= settings.steps or (out_of_patience and bool(state.metrics))


def _new_state(task: Task[Any], settings: TrainingSettings, device: torch.device) -> TrainState:
    grouped = {id(parameter) for group in task.groups for parameter in group.parameters}
    forgotten = [name for name, parameter in task.model.named_parameters() if id(parameter) not in grouped]
    if forgotten:
        raise ValueError(f"in no parameter group, so never trained: {', '.join(forgotten)}")
    groups = [
        {"params": list(group.parameters), "lr_scale": group.lr_scale, "frozen_until": group.frozen_until}
        for group in task.groups
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    average = copy.deepcopy(task.model).requires_grad_(False) if settings.ema_decay > 0 else None
    return TrainState(task.model, optimizer, average)


def _gradients(
    state: TrainState,
    task: Task[Batch],
    batches: Iterator[Batch],
    settings: TrainingSettings,
    device: torch.device,
    interval: _Interval,
) -> Tensor:
    """Accumulate the gradients of the next step; return the mean loss."""
    state.model.train()
    state.buffers = [buffer.clone() for buffer in state.model.buffers()]
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(state.step >= group["frozen_until"])
    total = torch.zeros((), device=device)
    for micro in range(settings.accumulate):
        torch.manual_seed(hash((settings.seed, state.step, micro)) & (2**63 - 1))
        waiting = time.perf_counter()
        batch = next(batches)
        interval.waited += time.perf_counter() - waiting
        interval.rows += task.rows(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = task.loss(batch)
        (loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / settings.accumulate
    return total


def _update(state: TrainState, settings: TrainingSettings) -> Tensor:
    """Clip, take the optimiser's step and follow it with the average; return the gradient's norm before clipping."""
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * group["lr_scale"] * rate_factor(state.step, settings)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm or math.inf)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        with torch.no_grad():
            for kept, new in zip(state.average.parameters(), state.model.parameters(), strict=True):
                kept.lerp_(new, 1 - settings.ema_decay)
            for buffer, newest in zip(state.average.buffers(), state.model.buffers(), strict=True):
                buffer.copy_(newest)
    return norm


def _after_step(
    folder: Path,
    state: TrainState,
    task: Task[Any],
    settings: TrainingSettings,
    loss: Tensor,
    norm: Tensor,
    interval: _Interval,
) -> None:
    """Log, validate and checkpoint where their turn has come."""
    final = state.step == settings.steps
    to_log = state.step % settings.log_every == 0 or final
    to_save = state.step % settings.checkpoint_every == 0
    if (to_log or to_save) and not math.isfinite(float(loss) + float(norm)):
        raise UserError(
            f"at step {state.step} the loss is {float(loss)} and the gradient's norm {float(norm)}",
            "Lower the learning rate or the clip norm",
        )
    line: dict[str, Any] = {}
    if to_log:
        rate = settings.learning_rate * rate_factor(state.step - 1, settings)
        line = {"step": state.step, "loss": float(loss), "learning_rate": rate, "gradient_norm": float(norm)}
        step_log.append(folder / TIMINGS_FILE, interval.summary(state.step))
        interval.reset()
    improved = False
    if state.step % settings.validate_every == 0 or final:
        state.metrics = task.validate(state.model if state.average is None else state.average)
        line = {"step": state.step, **line, **{f"validation_{key}": value for key, value in state.metrics.items()}}
        improved = state.metrics["score"] > state.best_score
        if improved:
            state.best_score, state.best_step = state.metrics["score"], state.step
        interval.reset()
    if line:
        step_log.append(folder / METRICS_FILE, line)
        for show in task.observers:
            show(line)
    # The best comes first: once the last one names a best step, that checkpoint is there.
    if improved:
        _save(folder / "checkpoints" / "best", state)
    if to_save:
        _save(folder / "checkpoints" / "last", state)


def _save(folder: Path, state: TrainState) -> None:
    with deferred():
        save_checkpoint(folder, state.tensors(), state.numbers())


class _Interval:
    """What happened since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rows, self.waited, self.started = 0, 0.0, time.perf_counter()

    def summary(self, step: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        return {"step": step, "rows_per_second": self.rows / seconds, "waiting_share": self.waited / seconds}
