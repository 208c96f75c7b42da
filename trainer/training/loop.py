"""The one training loop. It takes batches and a loss, of prompts and images alike.

A run is a pure function of its recipe, data and seed: batch ``i`` depends on ``i`` alone, the global generator is
seeded anew at every step, and the learning rate is computed from the step. So the whole state is the weights, the
optimiser's moments and a handful of numbers, and a run that was killed goes on to the same bits. Timings vary between
runs and hence live in a file of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import METRICS_FILE, STATE_FILE, TIMINGS_FILE
from dptr.cache.interrupts import deferred
from dptr.cache.progress import note, progress
from dptr.cache.stores import checks
from dptr.cache.stores.lock import locked
from dptr.trainer.training import step_log
from dptr.trainer.training.averaging import moving_average
from dptr.trainer.training.checkpoint import CheckpointName, checkpoint_folder, find_checkpoint, save_checkpoint
from dptr.trainer.training.loader import deaths_of_workers_told, load_batches
from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings
from dptr.trainer.training.state import TrainState
from dptr.trainer.training.trackers import Observer

Batch = TypeVar("Batch")
#: In the timings: how long saving took; such a line also shows that a checkpoint was written.
_CHECKPOINT = "checkpoint_seconds"


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


def run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    """Train until ``settings.steps``, from the last checkpoint in ``folder`` when there is one.

    Writes ``metrics.jsonl``, ``timings.jsonl``, ``checkpoints/last`` and ``checkpoints/best``.

    Raises:
        UserError: the loss is no longer finite, the disk is full, or another process trains into ``folder``.
        DamagedStore: the run has taken steps, and no checkpoint of it can be used.
        KeyboardInterrupt: passed on once the state is saved.
    """
    with locked(folder), deaths_of_workers_told():
        return _run(folder, task, settings, device)


def _run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    state = _new_state(task, settings, device)
    _resume(folder, state)
    # The line of a step that an interrupt kept from being logged is written again.
    logged = state.step - (state.unlogged is not None)
    step_log.keep_up_to(folder / METRICS_FILE, logged)
    step_log.keep_up_to(folder / TIMINGS_FILE, logged)
    if _is_done(state, settings):
        return state
    last, interval = checkpoint_folder(folder, "last"), _Interval()
    first, after = state.step * settings.accumulate, settings.steps * settings.accumulate
    batches = load_batches(task.batch, first, after, settings.workers)
    with progress("training", settings.steps, "steps", state.step) as shown:
        try:
            _after_step(folder, state, task, settings, interval)
            while not _is_done(state, settings):
                loss = _gradients(state, task, batches, settings, device, interval)
                with deferred():
                    norm = _update(state, settings)
                    state.step, state.buffers = state.step + 1, []
                    state.unlogged = {"loss": loss, "gradient_norm": norm}
                shown.advance(detail=f"loss {float(loss):.3f}" if state.step % 20 == 0 else "")
                _after_step(folder, state, task, settings, interval)
        except KeyboardInterrupt:
            if state.is_finite():
                state.forget_unfinished_step()
                _save(last, state)
            raise
    if settings.steps % settings.checkpoint_every or state.step < settings.steps:
        checks.finish()
        _save(last, state)
    return state


def _resume(folder: Path, state: TrainState) -> None:
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
            note(f"{'; '.join(problems)}: goes on from {found}, at step {state.step}")
        return
    # Where no line says that one was saved, the run was killed before its first checkpoint.
    if kept := step_log.last_step(folder / TIMINGS_FILE, having=_CHECKPOINT):
        problems.append(f"{folder / TIMINGS_FILE} names a checkpoint of step {kept}, and there is none")
    if problems:
        advice = f"Restore it from a copy, or move {folder} away to train from the start"
        raise DamagedStore("; ".join(problems), advice)
    if logged := step_log.last_step(folder / METRICS_FILE):
        note(f"{folder} reached step {logged} and was cut off before its first checkpoint: it starts anew")


def _is_done(state: TrainState, settings: TrainingSettings) -> bool:
    if state.unlogged is not None:
        return False
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
    average = None
    if settings.ema_decay > 0:
        # Batch norm's statistics belong to the weights they were gathered with: both are averaged, or neither fits.
        average = AveragedModel(task.model, multi_avg_fn=moving_average(settings.ema_decay), use_buffers=True)
        average.requires_grad_(False)
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
    _keep_statistics_of_frozen_layers(state.model)
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
        state.average.update_parameters(state.model)
    return norm


def _keep_statistics_of_frozen_layers(model: nn.Module) -> None:
    """Batch norm moves its running statistics in every forward pass, whether or not its weights are trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()


def _after_step(
    folder: Path,
    state: TrainState,
    task: Task[Any],
    settings: TrainingSettings,
    interval: _Interval,
) -> None:
    """Log, validate and checkpoint where their turn has come; done over when an interrupt cut it off."""
    if state.unlogged is None:
        return
    checks.raise_found()
    final = state.step == settings.steps
    to_log = state.step % settings.log_every == 0 or final
    to_save = state.step % settings.checkpoint_every == 0
    if (to_log or to_save) and not state.is_finite():
        raise UserError(
            f"at step {state.step} the loss is {float(state.unlogged['loss'])} and the gradient's norm "
            f"{float(state.unlogged['gradient_norm'])}",
            "Lower the learning rate or the clip norm",
        )
    line: dict[str, Any] = {}
    if to_log:
        rate = settings.learning_rate * rate_factor(state.step - 1, settings)
        values = {name: float(value) for name, value in state.unlogged.items()}
        line = {"step": state.step, **values, "learning_rate": rate}
        step_log.append(folder / TIMINGS_FILE, interval.summary(state.step))
        interval.reset()
    improved = False
    if state.step % settings.validate_every == 0 or final:
        torch.manual_seed(hash((settings.seed, state.step)) & (2**63 - 1))
        state.metrics = task.validate(state.trained)
        line = {"step": state.step, **line, **{f"validation_{key}": value for key, value in state.metrics.items()}}
        # Of this step already: an interrupt came before its checkpoint was whole.
        improved = state.metrics["score"] > state.best_score or state.best_step == state.step
        if improved:
            state.best_score, state.best_step = state.metrics["score"], state.step
        interval.reset()
    if line:
        step_log.append(folder / METRICS_FILE, line)
        for show in task.observers:
            show(line)
    if improved or to_save:
        checks.finish()  # nothing is saved that damaged data may have gone into
    # The best comes first: once the last one names a best step, that checkpoint is there.
    if improved:
        _save(checkpoint_folder(folder, "best"), state)
    state.unlogged = None
    if to_save:
        _save(checkpoint_folder(folder, "last"), state)


def _save(folder: Path, state: TrainState) -> None:
    started = time.perf_counter()
    with deferred():
        save_checkpoint(folder, state.tensors(), state.numbers())
        line = {"step": state.step, _CHECKPOINT: time.perf_counter() - started}
        step_log.append(folder.parent.parent / TIMINGS_FILE, line)


class _Interval:
    """What happened since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rows, self.waited, self.started = 0, 0.0, time.perf_counter()

    def summary(self, step: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        return {"step": step, "rows_per_second": self.rows / seconds, "waiting_share": self.waited / seconds}
