"""The one training loop. It takes batches and a loss, of prompts and images alike.

A run is a pure function of its recipe, data and seed: batch ``i`` depends on ``i`` alone, the global generator is
seeded anew at every step, and the learning rate is computed from the step. So the whole state is the weights, the
optimiser's moments and a handful of numbers, and a run that was killed is resumed to the same bits. Timings vary
between runs and hence live in a file of their own.

Of several processes the first one writes.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dptr.cache.errors import DptrError, UserError
from dptr.cache.processes import deferred
from dptr.cache.progress import progress
from dptr.cache.stores import checks
from dptr.cache.stores.lock import locked
from dptr.trainer.choices import Tracker
from dptr.trainer.model.folding import cpu_has_bfloat16
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.seeds import torch_seed
from dptr.trainer.training import processes, step_log
from dptr.trainer.training.checkpoint import (
    CHECKPOINT_SECONDS,
    CheckpointName,
    MovingAverage,
    TrainState,
    checkpoint_folder,
    resume,
    save_checkpoint,
)

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
        track: where else log lines are shown, besides the files.
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
    track: Tracker | None = None
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
        return _Training(folder, task, settings, device).run()


class _Training(Generic[Batch]):
    """A task in training: its state, its log, and the settings that all steps share."""

    def __init__(self, folder: Path, task: Task[Batch], settings: TrainingSettings, device: torch.device) -> None:
        if device.type == "cuda":
            # Products in TF32: an eighth of the time of full float32, and still more digits than bfloat16 has.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.folder, self.task, self.settings, self.device = folder, task, settings, device
        self.log = step_log.Log(folder, task.track)
        self.state = _new_state(task, settings)
        self._begin_interval()

    def _begin_interval(self) -> None:
        """Count anew the rows of all processes between log lines, and the seconds that this one waits for them."""
        self.rows, self.waited, self.since = 0.0, 0.0, time.perf_counter()

    def run(self) -> TrainState:
        """Train, or find that all is done."""
        state, settings = self.state, self.settings
        resume(self.folder, state)
        processes.wait()  # nothing is written before all have read
        # The line of a step that an interrupt kept from being logged is written again.
        self.log.keep_up_to(state.step - (state.unlogged is not None))
        if self._is_done():
            return state
        loss = compiled(self.task.loss) if is_compiled(settings, self.device) else self.task.loss
        shared, batches = processes.SharedLoss(self.task.model, loss), self._batches()
        self._begin_interval()
        with progress("training", settings.steps, "steps", state.step) as shown, processes.stopping_together() as stop:
            try:
                if self.task.starts_trained and not state.step and not state.metrics:
                    self._before_first_step()
                self._after_step()
                while not self._is_done():
                    stop()
                    value = self._gradients(shared, batches)
                    with deferred():
                        state.take_step(value, self._update())
                    shown.advance(detail=f"loss {float(value):.3f}" if state.step % 20 == 0 else "")
                    self._after_step()
            except KeyboardInterrupt:
                if not (state.first_step_not_finite() or state.weight_not_finite()):
                    state.forget_unfinished_step()
                    self._save("last")
                raise
        if settings.steps % settings.checkpoint_every or state.step < settings.steps:
            if processes.is_first():
                checks.finish()
            self._save("last")
        processes.wait()  # what is there now, all may read
        return state

    def _batches(self) -> Iterator[Batch]:
        """Return this process's batches from the next optimiser step on."""
        task, settings = self.task, self.settings
        batch = few_shapes(task.batch, task.longest_label) if is_compiled(settings, self.device) else task.batch
        each, mine = settings.accumulate, processes.share(settings.accumulate)
        numbers = (each * number + micro for number in range(self.state.step, settings.steps) for micro in mine)
        return load_batches(batch, numbers, settings.workers, for_gpu=self.device.type == "cuda")

    def _is_done(self) -> bool:
        state, patience = self.state, self.settings.patience
        if state.unlogged is not None:
            return False
        out_of_patience = patience > 0 and state.step - state.best_step >= patience
        return state.step >= self.settings.steps or (out_of_patience and bool(state.metrics))

    def _gradients(self, shared: processes.SharedLoss[Batch], batches: Iterator[Batch]) -> Tensor:
        """Accumulate the gradients of the next step; return the mean loss of all its micro-batches, of shape ()."""
        state, settings = self.state, self.settings
        state.model.train()
        state.buffers = [buffer.clone() for buffer in state.model.buffers()]
        _keep_statistics(state.model, of_all=self.task.fixed_statistics)
        total = torch.zeros((), device=self.device)
        mine = processes.share(settings.accumulate)
        for micro in mine:
            torch.manual_seed(torch_seed(settings.seed, "dropout", state.step, micro))
            waiting = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - waiting
            self.rows += len(batch) * settings.accumulate / len(mine)
            self.task.notice(batch)
            placed = batch.to(self.device)
            with shared.exchanging(last=micro == mine[-1]):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=is_halved(settings, self.device)):
                    loss = shared(placed)
                (loss * shared.weight / settings.accumulate).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / settings.accumulate
        return processes.total(total)

    def _update(self) -> Tensor:
        """Clip, take the optimiser's step and then the average; return the norm of the gradient before clipping."""
        state, settings = self.state, self.settings
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * group["lr_scale"] * rate_factor(state.step, settings)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm or math.inf)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update(state.model)
        return norm

    def _after_step(self) -> None:
        """Log, validate and save where their turn has come; repeated when an interrupt cut it off."""
        state, settings = self.state, self.settings
        if state.unlogged is None:
            return
        checks.raise_found()
        final = state.step == settings.steps
        to_log = state.step % settings.log_every == 0 or final
        to_validate = state.step % settings.validate_every == 0 or final
        to_save = state.step % settings.checkpoint_every == 0
        if to_log or to_validate or to_save:
            self._require_finite()
        line: dict[str, Any] = {}
        if to_log:
            rate = settings.learning_rate * rate_factor(state.step - 1, settings)
            values = {name: float(value) for name, value in state.unlogged.items()}
            line = {"step": state.step, **values, "learning_rate": rate}
            seconds = time.perf_counter() - self.since
            speed = {"rows_per_second": self.rows / seconds, "waiting_share": self.waited / seconds}
            self.log.timing({"step": state.step, **speed})
        improved = False
        if to_validate:
            # Of this step already: an interrupt came before its checkpoint was whole.
            improved = self._validate() or state.best_step == state.step
            line = {"step": state.step, **line, **_named(state.metrics)}
        if line:
            self._begin_interval()
            self.log.metrics(line)
        if improved or to_save:
            checks.finish()  # nothing is saved that damaged data may have gone into
        # The best comes first: once the last one names a best step, that checkpoint is there.
        if improved:
            self._save("best")
        state.unlogged = None
        if to_save:
            self._save("last")

    def _before_first_step(self) -> None:
        """Validate and save the weights that training starts from: the best checkpoint until a step is better."""
        self._validate()
        self.log.metrics({"step": 0, **_named(self.state.metrics)})
        self._save("best")

    def _validate(self) -> bool:
        """Validate; return whether the score is the highest so far."""
        state = self.state
        torch.manual_seed(torch_seed(self.settings.seed, "validation", state.step))
        # As training computes; on a CPU, reading a few rows in half precision gains nothing.
        halved = torch.cuda.is_available() and is_halved(self.settings, torch.device("cuda"))
        with torch.autocast("cuda", torch.bfloat16, enabled=halved):
            state.metrics = processes.by_first(lambda: self.task.validate(state.trained))
        improved = state.metrics["score"] > state.best_score
        if improved:
            state.best_score, state.best_step = state.metrics["score"], state.step
        return improved

    def _require_finite(self) -> None:
        """Check that every step's loss and gradient so far and the weights are finite, so that no others are saved.

        Raises:
            DamagedStore: inputs of the first step that was not finite hold NaN or infinity.
            UserError: they do not, so it is the training that diverged.
        """
        if step := self.state.first_step_not_finite():
            for micro in range(self.settings.accumulate):
                self.task.require_finite(self.settings.accumulate * (step - 1) + micro)
            what = f"at step {step} the loss or its gradient is NaN or infinite"
        elif name := self.state.weight_not_finite():
            what = f"at step {self.state.step} the weight {name} holds NaN or infinity"
        else:
            return
        raise UserError(
            f"{what}, and the inputs are finite: training diverged",
            "Lower the learning rate or the clip norm; that starts another run",
        )

    def _save(self, name: CheckpointName) -> None:
        """Write a checkpoint; of several processes, which all have the same state, the first does."""
        if not processes.is_first():
            return
        started = time.perf_counter()
        with deferred():
            save_checkpoint(checkpoint_folder(self.folder, name), self.state.tensors(), self.state.numbers())
            self.log.timing({"step": self.state.step, CHECKPOINT_SECONDS: time.perf_counter() - started})


def _new_state(task: Task[Any], settings: TrainingSettings) -> TrainState:
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


def _keep_statistics(model: nn.Module, of_all: bool) -> None:
    """Put frozen batch norms, or ``of_all``, into evaluation mode: in training mode they move their statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            is_trained = any(parameter.requires_grad for parameter in module.parameters())
            module.train(is_trained and not of_all)


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"validation_{key}": value for key, value in metrics.items()}


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


Loaded = TypeVar("Loaded")

#: Batches that one worker has ready at most, so that a slow one is made up for.
_READY = 4


def load_batches(
    batch: Callable[[int], Loaded], numbers: Iterable[int], workers: int, for_gpu: bool = False
) -> Iterator[Loaded]:
    """Return the batches of these numbers, in order, made by ``batch`` in ``workers`` processes (0: in this one).

    ``for_gpu`` moves those that have a method ``pin_memory`` into memory from which a GPU takes them while it computes.
    Torch's loader draws from the global generator here, not when the first batch is asked for: a caller that seeds the
    generator after this call gets the same numbers with and without workers.

    Raises:
        DptrError: what ``batch`` raised, in whatever process.
    """
    loader = DataLoader(
        _NumberedBatches(batch),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=_READY if workers else None,
        pin_memory=for_gpu,
        worker_init_fn=_leave_signals_to_training,
    )
    return map(_raise_errors, iter(loader))


def few_shapes(batches: Callable[[int], Any], longest_label: int) -> Callable[[int], Any]:
    """Pad batches, which have a method ``padded``, to few shapes, for a loss that is compiled once a shape."""
    return partial(_padded, batches, longest_label + 1)  # workers need what can be pickled


def _padded(batches: Callable[[int], Any], positions: int, number: int) -> Any:
    return batches(number).padded(positions)


@contextmanager
def worker_death_as_user_error() -> Iterator[None]:
    """Turn torch's error about a killed worker, raised wherever this process happens to be, into one line.

    Raises:
        UserError: a worker has died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a worker process was killed, probably because memory ran out",
            "Rerun the command with fewer workers to resume from the last checkpoint; in a container, batches need "
            "shared memory (--shm-size=1g)",
        ) from error


class _NumberedBatches(Dataset[Any]):
    """Lets a DataLoader's workers compute whole batches by their number."""

    def __init__(self, batch: Callable[[int], Any]) -> None:
        self._batch = batch

    def __getitem__(self, number: int) -> Any:
        try:
            return self._batch(number)
        except DptrError as error:
            # A worker's own errors would arrive with a traceback for a message.
            return error


def _raise_errors(made: Any) -> Any:
    if isinstance(made, DptrError):
        raise made
    return made


def _leave_signals_to_training(_: int) -> None:
    """Form a group of its own: terminals and launchers signal whole groups, and a step under way needs its batches."""
    os.setpgid(0, 0)


def _as_it_is(batch: Any) -> Any:
    return batch
