"""What happens between two steps: log, validate, save, each where its turn has come.

Of several processes the first one writes; what it finds in validation all of them are told, so that they stop together.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dptr.cache.errors import UserError
from dptr.cache.file_names import METRICS_FILE, TIMINGS_FILE
from dptr.cache.interrupts import deferred
from dptr.cache.stores import checks
from dptr.trainer.training import processes, step_log
from dptr.trainer.training.checkpoint import checkpoint_folder, save_checkpoint
from dptr.trainer.training.compilation import is_halved
from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings
from dptr.trainer.training.state import TrainState
from dptr.trainer.training.task import Task

#: In the timings: how long saving took; such a line also shows that a checkpoint was written.
CHECKPOINT_SECONDS = "checkpoint_seconds"


def after_step(
    folder: Path,
    state: TrainState,
    task: Task[Any],
    settings: TrainingSettings,
    interval: Interval,
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
        _write(folder / TIMINGS_FILE, interval.summary(state.step))
        interval.reset()
    improved = False
    if state.step % settings.validate_every == 0 or final:
        # Of this step already: an interrupt came before its checkpoint was whole.
        improved = _validate(state, task, settings) or state.best_step == state.step
        line = {"step": state.step, **line, **_named(state.metrics)}
        interval.reset()
    if line:
        _write(folder / METRICS_FILE, line)
        for show in task.observers:
            show(line)
    if improved or to_save:
        checks.finish()  # nothing is saved that damaged data may have gone into
    # The best comes first: once the last one names a best step, that checkpoint is there.
    if improved:
        save(checkpoint_folder(folder, "best"), state)
    state.unlogged = None
    if to_save:
        save(checkpoint_folder(folder, "last"), state)


def before_first_step(folder: Path, state: TrainState, task: Task[Any], settings: TrainingSettings) -> None:
    """Validate and save the weights that training starts from: the best checkpoint until a step is better."""
    _validate(state, task, settings)
    line = {"step": 0, **_named(state.metrics)}
    _write(folder / METRICS_FILE, line)
    for show in task.observers:
        show(line)
    save(checkpoint_folder(folder, "best"), state)


def _validate(state: TrainState, task: Task[Any], settings: TrainingSettings) -> bool:
    """Validate; return whether the score is the highest so far."""
    torch.manual_seed(hash((settings.seed, state.step)) & (2**63 - 1))
    # As training computes; on a CPU, reading a few rows in half precision gains nothing.
    halved = torch.cuda.is_available() and is_halved(settings, torch.device("cuda"))
    with torch.autocast("cuda", torch.bfloat16, enabled=halved):
        state.metrics = processes.by_first(lambda: task.validate(state.trained))
    improved = state.metrics["score"] > state.best_score
    if improved:
        state.best_score, state.best_step = state.metrics["score"], state.step
    return improved


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"validation_{key}": value for key, value in metrics.items()}


def save(folder: Path, state: TrainState) -> None:
    """Write a checkpoint; of several processes, which all have the same state, the first does."""
    if not processes.is_first():
        return
    started = time.perf_counter()
    with deferred():
        save_checkpoint(folder, state.tensors(), state.numbers())
        line = {"step": state.step, CHECKPOINT_SECONDS: time.perf_counter() - started}
        step_log.append(folder.parent.parent / TIMINGS_FILE, line)


def _write(path: Path, line: dict[str, Any]) -> None:
    if processes.is_first():
        step_log.append(path, line)


class Interval:
    """What happened since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.rows, self.waited, self.started = 0.0, 0.0, time.perf_counter()

    def summary(self, step: int) -> dict[str, float]:
        """Return the rows that all processes took in a second, and the share of time that this one waited for them."""
        seconds = time.perf_counter() - self.started
        return {"step": step, "rows_per_second": self.rows / seconds, "waiting_share": self.waited / seconds}
