"""The one training loop. It takes batches and a loss, of prompts and images alike.

A run is a pure function of its recipe, data and seed: batch ``i`` depends on ``i`` alone, the global generator is
seeded anew at every step, and the learning rate is computed from the step. So the whole state is the weights, the
optimiser's moments and a handful of numbers, and a run that was killed goes on to the same bits. Timings vary between
runs and hence live in a file of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dptr.cache.file_names import METRICS_FILE, TIMINGS_FILE
from dptr.cache.interrupts import deferred
from dptr.cache.progress import progress
from dptr.cache.stores import checks
from dptr.cache.stores.lock import locked
from dptr.trainer.training import processes, step_log
from dptr.trainer.training.averaging import MovingAverage
from dptr.trainer.training.checkpoint import checkpoint_folder
from dptr.trainer.training.compilation import compiled, is_compiled, is_halved
from dptr.trainer.training.loader import deaths_of_workers_told, load_batches
from dptr.trainer.training.recording import Interval, after_step, before_first_step, save
from dptr.trainer.training.resuming import resume
from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings
from dptr.trainer.training.state import TrainState
from dptr.trainer.training.task import ParameterGroup as ParameterGroup
from dptr.trainer.training.task import Sendable
from dptr.trainer.training.task import Task as Task

Batch = TypeVar("Batch", bound=Sendable)


def run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    """Train until ``settings.steps``, from the last checkpoint in ``folder`` when there is one.

    Writes ``metrics.jsonl``, ``timings.jsonl``, ``checkpoints/last`` and ``checkpoints/best``.

    Raises:
        UserError: the loss is no longer finite, the disk is full, or another process trains into ``folder``.
        DamagedStore: the run has taken steps, and no checkpoint of it can be used.
        KeyboardInterrupt: passed on once the state is saved.
    """
    with locked(folder), deaths_of_workers_told(), processes.deaths_of_others_told():
        return _run(folder, task, settings, device)


def _run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    if device.type == "cuda":
        # Products in TF32: an eighth of the time of full float32, and still more digits than bfloat16 has.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    state = _new_state(task, settings, device)
    resume(folder, state)
    processes.wait()  # nothing is written before all have read
    if processes.is_first():
        # The line of a step that an interrupt kept from being logged is written again.
        logged = state.step - (state.unlogged is not None)
        step_log.keep_up_to(folder / METRICS_FILE, logged)
        step_log.keep_up_to(folder / TIMINGS_FILE, logged)
    if _is_done(state, settings):
        return state
    last, interval = checkpoint_folder(folder, "last"), Interval()
    loss_of = compiled(task.loss) if is_compiled(settings, device) else task.loss
    shared, batches = processes.SharedLoss(task.model, loss_of), _batches(state.step, task, settings, device)
    with progress("training", settings.steps, "steps", state.step) as shown, processes.stopping_together() as stop:
        try:
            if task.starts_trained and not state.step and not state.metrics:
                before_first_step(folder, state, task, settings)
            after_step(folder, state, task, settings, interval)
            while not _is_done(state, settings):
                stop()
                loss = _gradients(state, task, shared, batches, settings, device, interval)
                with deferred():
                    norm = _update(state, settings)
                    state.step, state.buffers = state.step + 1, []
                    state.unlogged = {"loss": loss, "gradient_norm": norm}
                shown.advance(detail=f"loss {float(loss):.3f}" if state.step % 20 == 0 else "")
                after_step(folder, state, task, settings, interval)
        except KeyboardInterrupt:
            if state.is_finite():
                state.forget_unfinished_step()
                save(last, state)
            raise
    if settings.steps % settings.checkpoint_every or state.step < settings.steps:
        if processes.is_first():
            checks.finish()
        save(last, state)
    processes.wait()  # what is there now, all may read
    return state


def _batches(step: int, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> Iterator[Batch]:
    """Return this process's batches from optimiser step ``step`` on."""
    each, mine = settings.accumulate, processes.share(settings.accumulate)
    numbers = (each * number + micro for number in range(step, settings.steps) for micro in mine)
    return load_batches(task.batch, numbers, settings.workers, for_gpu=device.type == "cuda")


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
    groups = [{"params": list(group.parameters), "lr_scale": group.lr_scale} for group in task.groups]
    for group in task.groups:
        for parameter in group.parameters:
            parameter.requires_grad_(group.lr_scale > 0)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    average = MovingAverage(task.model, settings.ema_decay) if settings.ema_decay > 0 else None
    return TrainState(task.model, optimizer, average)


def _gradients(
    state: TrainState,
    task: Task[Batch],
    shared: processes.SharedLoss[Batch],
    batches: Iterator[Batch],
    settings: TrainingSettings,
    device: torch.device,
    interval: Interval,
) -> Tensor:
    """Accumulate the gradients of the next step; return the mean loss of all its micro-batches."""
    state.model.train()
    state.buffers = [buffer.clone() for buffer in state.model.buffers()]
    _keep_statistics(state.model, of_all=task.fixed_statistics)
    shared.begin_step()
    total = torch.zeros((), device=device)
    mine = processes.share(settings.accumulate)
    for micro in mine:
        torch.manual_seed(hash((settings.seed, state.step, micro)) & (2**63 - 1))
        waiting = time.perf_counter()
        batch = next(batches)
        interval.waited += time.perf_counter() - waiting
        interval.rows += task.rows(batch) * settings.accumulate / len(mine)
        task.notice(batch)
        placed = batch.to(device)
        with shared.exchanging(last=micro == mine[-1]):
            with torch.autocast(device.type, torch.bfloat16, enabled=is_halved(settings, device)):
                loss = shared(placed)
            (loss * shared.weight / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / settings.accumulate
    processes.share_statistics(state.model, state.buffers, settings.accumulate)
    return processes.total(total)


def _update(state: TrainState, settings: TrainingSettings) -> Tensor:
    """Clip, take the optimiser's step and follow it with the average; return the gradient's norm before clipping."""
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * group["lr_scale"] * rate_factor(state.step, settings)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm or math.inf)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.update(state.model)
    return norm


def _keep_statistics(model: nn.Module, of_all: bool) -> None:
    """Put frozen batch norms, or ``of_all``, into evaluation mode: in training mode they move their statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            is_trained = any(parameter.requires_grad for parameter in module.parameters())
            module.train(is_trained and not of_all)
