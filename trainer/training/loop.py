"""The one training loop. It takes batches and a loss, of prompts and images alike.

A run is a pure function of its recipe, data and seed: batch ``i`` depends on ``i`` alone, the global generator is
seeded anew at every step, and the learning rate is computed from the step. So the whole state is the weights, the
optimiser's moments and a handful of numbers, and a run that was killed is resumed to the same bits. Timings vary
between runs and hence live in a file of their own.

Of several processes the first one writes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.cache.file_names import METRICS_FILE, TIMINGS_FILE
from dptr.cache.processes import deferred
from dptr.cache.progress import progress
from dptr.cache.stores import checks
from dptr.cache.stores.lock import locked
from dptr.trainer.model.folding import cpu_has_bfloat16
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.seeds import torch_seed
from dptr.trainer.training import processes, step_log
from dptr.trainer.training.checkpoint import checkpoint_folder, save_checkpoint
from dptr.trainer.training.loader import few_shapes, load_batches, worker_death_as_user_error
from dptr.trainer.training.state import CHECKPOINT_SECONDS, MovingAverage, TrainState, resume
from dptr.trainer.training.step_log import Observer

#: Compiled shapes of one loss: lengths by tokens, by the few numbers of reading orders that the shortest labels have.
_MOST_SHAPES = 128


class Sendable(Protocol):
    """Interface of batches: a number of rows, and a method to move to a device."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Any:
        """Return the batch on a device."""


Batch = TypeVar("Batch", bound=Sendable)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a factor on the learning rate; with 0 they are frozen."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0


@dataclass
class Task(Generic[Batch]):
    """A training task, which a stage passes to the loop.

    Attributes:
        model: whose weights are saved.
        batch: micro-batch number -> batch; a pure function, called in workers when there are any.
        loss: batch on the device -> scalar loss.
        validate: model -> metrics; ``score`` among them decides which checkpoint is best (higher is better).
        groups: parameters by learning rate.
        longest_label: characters of it, by which batches are padded to few shapes where the loss is compiled.
        observers: shown every log line, besides the files.
        notice: shown every batch before it is computed.
        require_finite: micro-batch number -> :class:`DamagedStore` where its inputs hold NaN or infinity; called where
            a loss does.
        fixed_statistics: whether batch norms keep their running statistics.
        starts_trained: whether the weights are validated before the first step, as a candidate for the best checkpoint.
    """

    model: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    groups: Sequence[ParameterGroup]
    longest_label: int = 0
    observers: Sequence[Observer] = ()
    notice: Callable[[Batch], None] = lambda batch: None
    require_finite: Callable[[int], None] = lambda number: None
    fixed_statistics: bool = False
    starts_trained: bool = False


def is_compiled(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether the loss is compiled in a run with these settings."""
    return settings.compile == "yes" or (settings.compile == "auto" and device.type == "cuda")


def is_halved(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether products are computed in bfloat16; weights and moments stay in single precision."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bfloat16()


def compiled(
    loss: Callable[[Batch], Tensor], backend: str | Callable[..., Any] = "inductor"
) -> Callable[[Batch], Tensor]:
    """Return a loss whose operations torch joins into few kernels, the first time it meets a shape.

    Compiling a shape takes seconds to minutes, so batches are padded to few. On a GPU a small model's step is otherwise
    mostly the time to launch its kernels; on a CPU it only takes longer.

    Raises:
        UserError: there is no compiler.
    """
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("torch compiles with a C++ compiler, and there is none", 'Install g++, or set compile to "no"')
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    made: Callable[[Batch], Tensor] = torch.compile(loss, dynamic=False, backend=backend)
    return made


def run(folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> TrainState:
    """Train until ``settings.steps``, from the last checkpoint in ``folder`` when there is one.

    Writes ``metrics.jsonl``, ``timings.jsonl``, ``checkpoints/last`` and ``checkpoints/best``.

    Raises:
        UserError: the loss is no longer finite, the disk is full, or another process trains into ``folder``.
        DamagedStore: the run has taken steps, and no checkpoint of it can be used; inputs hold NaN or infinity.
        KeyboardInterrupt: passed on once the state is saved.
    """
    with locked(folder), worker_death_as_user_error(), processes.process_death_as_user_error():
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
                _before_first_step(folder, state, task, settings)
            _after_step(folder, state, task, settings, interval)
            while not _is_done(state, settings):
                stop()
                loss = _gradients(state, task, shared, batches, settings, device, interval)
                with deferred():
                    state.take_step(loss, _update(state, settings))
                shown.advance(detail=f"loss {float(loss):.3f}" if state.step % 20 == 0 else "")
                _after_step(folder, state, task, settings, interval)
        except KeyboardInterrupt:
            if not (state.first_step_not_finite() or state.weight_not_finite()):
                state.forget_unfinished_step()
                _save(last, state)
            raise
    if settings.steps % settings.checkpoint_every or state.step < settings.steps:
        if processes.is_first():
            checks.finish()
        _save(last, state)
    processes.wait()  # what is there now, all may read
    return state


def _batches(step: int, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> Iterator[Batch]:
    """Return this process's batches from optimiser step ``step`` on."""
    batch = few_shapes(task.batch, task.longest_label) if is_compiled(settings, device) else task.batch
    each, mine = settings.accumulate, processes.share(settings.accumulate)
    numbers = (each * number + micro for number in range(step, settings.steps) for micro in mine)
    return load_batches(batch, numbers, settings.workers, for_gpu=device.type == "cuda")


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
    """Accumulate the gradients of the next step; return the mean loss of all its micro-batches, of shape ()."""
    state.model.train()
    state.buffers = [buffer.clone() for buffer in state.model.buffers()]
    _keep_statistics(state.model, of_all=task.fixed_statistics)
    total = torch.zeros((), device=device)
    mine = processes.share(settings.accumulate)
    for micro in mine:
        torch.manual_seed(torch_seed(settings.seed, "dropout", state.step, micro))
        waiting = time.perf_counter()
        batch = next(batches)
        interval.waited += time.perf_counter() - waiting
        interval.rows += len(batch) * settings.accumulate / len(mine)
        task.notice(batch)
        placed = batch.to(device)
        with shared.exchanging(last=micro == mine[-1]):
            with torch.autocast(device.type, torch.bfloat16, enabled=is_halved(settings, device)):
                loss = shared(placed)
            (loss * shared.weight / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / settings.accumulate
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


def _after_step(
    folder: Path, state: TrainState, task: Task[Any], settings: TrainingSettings, interval: Interval
) -> None:
    """Log, validate and save where their turn has come; repeated when an interrupt cut it off."""
    if state.unlogged is None:
        return
    checks.raise_found()
    final = state.step == settings.steps
    to_log = state.step % settings.log_every == 0 or final
    to_validate = state.step % settings.validate_every == 0 or final
    to_save = state.step % settings.checkpoint_every == 0
    if to_log or to_validate or to_save:
        _require_finite(state, task, settings)
    line: dict[str, Any] = {}
    if to_log:
        rate = settings.learning_rate * rate_factor(state.step - 1, settings)
        values = {name: float(value) for name, value in state.unlogged.items()}
        line = {"step": state.step, **values, "learning_rate": rate}
        _write(folder / TIMINGS_FILE, interval.summary(state.step))
        interval.reset()
    improved = False
    if to_validate:
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
        _save(checkpoint_folder(folder, "best"), state)
    state.unlogged = None
    if to_save:
        _save(checkpoint_folder(folder, "last"), state)


def _before_first_step(folder: Path, state: TrainState, task: Task[Any], settings: TrainingSettings) -> None:
    """Validate and save the weights that training starts from: the best checkpoint until a step is better."""
    _validate(state, task, settings)
    line = {"step": 0, **_named(state.metrics)}
    _write(folder / METRICS_FILE, line)
    for show in task.observers:
        show(line)
    _save(checkpoint_folder(folder, "best"), state)


def _validate(state: TrainState, task: Task[Any], settings: TrainingSettings) -> bool:
    """Validate; return whether the score is the highest so far."""
    torch.manual_seed(torch_seed(settings.seed, "validation", state.step))
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


def _require_finite(state: TrainState, task: Task[Any], settings: TrainingSettings) -> None:
    """Check that every step's loss and gradient so far and the weights are finite, so that no others are saved.

    Raises:
        DamagedStore: inputs of the first step that was not finite hold NaN or infinity.
        UserError: they do not, so it is the training that diverged.
    """
    if step := state.first_step_not_finite():
        for micro in range(settings.accumulate):
            task.require_finite(settings.accumulate * (step - 1) + micro)
        what = f"at step {step} the loss or its gradient is NaN or infinite"
    elif name := state.weight_not_finite():
        what = f"at step {state.step} the weight {name} holds NaN or infinity"
    else:
        return
    raise UserError(
        f"{what}, and the inputs are finite: training diverged",
        "Lower the learning rate or the clip norm; that starts another run",
    )


def _save(folder: Path, state: TrainState) -> None:
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
    """Timings since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.rows, self.waited, self.started = 0.0, 0.0, time.perf_counter()

    def summary(self, step: int) -> dict[str, float]:
        """Return the rows that all processes took in a second, and the share of time that this one waited for them."""
        seconds = time.perf_counter() - self.started
        return {"step": step, "rows_per_second": self.rows / seconds, "waiting_share": self.waited / seconds}


def rate_factor(step: int, settings: TrainingSettings) -> float:
    """Return what the peak learning rate is multiplied by at optimiser step ``step``, counted from 0.

    ``one-cycle`` rises by a cosine from 1/25 to 1 during the warm-up and falls by a cosine to almost nothing (PyTorch's
    OneCycleLR with its defaults); ``cosine`` rises linearly and falls to zero; ``constant`` rises linearly and stays;
    ``trapezoid`` rises linearly, stays, and falls linearly to zero in the last ``decay_share``, so that a run can be
    made longer without starting again (Hägele et al. 2024).
    """
    warmup = max(1, round(settings.warmup_share * settings.steps))
    if settings.schedule == "one-cycle":
        # OneCycleLR's phases end one step before the counts say.
        peak = max(settings.warmup_share * settings.steps - 1, 1e-9)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 25 / 1e4, (step - peak) / max(settings.steps - 1 - peak, 1e-9))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "trapezoid":
        left = settings.steps - step
        return min(1.0, left / max(settings.decay_share * settings.steps, 1))
    return _cosine(1.0, 0.0, (step - warmup) / max(settings.steps - warmup, 1))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
