"""One training in several processes: each computes some of a step's micro-batches, and their gradients are averaged.

The micro-batch is the unit, not the row. Which rows it has, what is drawn for them and which numbers dropout draws
depend on its number alone, and batch norm gathers its statistics within it. So whoever computes it computes the same,
and a step of ``accumulate`` micro-batches comes to the same in one process, in two or in four, but for the order in
which floating-point numbers are added. Gradients are averaged by torch's DistributedDataParallel while the last
micro-batch of each process is still going back; gloo carries them between CPUs, NCCL between GPUs.

The first process writes: checkpoints, logs, the run's description. All of them read the same folders.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dptr.cache import launched
from dptr.cache.errors import UserError
from dptr.cache.interrupts import collected
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks
from dptr.trainer.training.settings import TrainingSettings

Batch = TypeVar("Batch")
Value = TypeVar("Value")
#: The others wait while the first one validates or mines neighbours.
_LONGEST_WAIT = timedelta(hours=6)


def join(settings: TrainingSettings, section: str) -> None:
    """Join the other processes that a launcher started for this training; alone, do nothing.

    Args:
        settings: of the training. section: of the recipe they stand in, for people.

    Raises:
        UserError: a step has fewer micro-batches than there are processes.
    """
    size = launched.size()
    if size == 1 or dist.is_initialized():
        return
    if settings.accumulate < size:
        rows = settings.batch_size * settings.accumulate
        raise UserError(
            f"{size} processes share out the micro-batches of a step, and {section}.accumulate is "
            f"{settings.accumulate}",
            f"For as many rows a step: --set {section}.accumulate={size} --set {section}.batch_size={-(-rows // size)}",
        )
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_LONGEST_WAIT)
    # A process that ends with its group open is sometimes aborted by the threads of gloo.
    atexit.register(_leave)
    if launched.rank():
        set_quiet(True)
        # The same files, which the first process checks.
        checks.turn_off(True)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Return whether this process writes; the only one does."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(micro_batches: int) -> range:
    """Return which of a step's micro-batches this process computes: neighbours, so that order is kept."""
    if not dist.is_initialized():
        return range(micro_batches)
    rank, size = dist.get_rank(), dist.get_world_size()
    return range(rank * micro_batches // size, (rank + 1) * micro_batches // size)


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process through a block before the others, who find what it made.

    Raises:
        UserError: in the others, where the block raised in the first one.
    """
    if not is_first() and _failures(0):
        raise _other_has_ended()
    try:
        yield
    except BaseException:
        if is_first():
            # Those that have ended themselves need not be told.
            with suppress(RuntimeError):
                _failures(1)
        raise
    if is_first():
        _failures(0)


def wait() -> None:
    """Wait until all processes are here."""
    # Not a barrier, for which NCCL would have to know the device.
    total(torch.zeros(1))


def _failures(own: int) -> int:
    """Wait until all processes are here; return how many of them have failed."""
    return int(total(torch.tensor(own)))


def by_first(work: Callable[[], Value]) -> Value:
    """Let the first process do some work, and give its result to all."""
    result: list[Any] = [None]
    with first_before_others():
        if is_first():
            result = [work()]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    value: Value = result[0]
    return value


def of_all(values: set[str]) -> set[str]:
    """Return the values of all processes."""
    if not dist.is_initialized():
        return values
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, values)
    return set().union(*gathered)


def total(value: Tensor) -> Tensor:
    """Return the sum of all processes' values."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


@contextmanager
def stopping_together() -> Iterator[Callable[[], None]]:
    """Let a signal to any process stop all of them behind the same step, at the call of what is yielded.

    Else one would wait for ever for the gradients of another, and each would save another step.

    Raises:
        KeyboardInterrupt: from that call.
    """
    if not dist.is_initialized():
        yield lambda: None
        return
    with collected() as signals:

        def stop() -> None:
            if total(torch.tensor(len(signals))) > 0:
                raise KeyboardInterrupt

        yield stop


@contextmanager
def deaths_of_others_told() -> Iterator[None]:
    """Say in one line that another process of this training has ended.

    Raises:
        UserError: one has.
    """
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not (dist.is_initialized() and of_network):
            raise
        raise _other_has_ended() from error


def _other_has_ended() -> UserError:
    return UserError(
        "another process of this training has ended",
        "See what it said; the same command goes on from the last checkpoint",
    )


class SharedLoss(Generic[Batch]):
    """A loss whose gradients, at the end of a step, are the mean over all processes.

    Args:
        model: what is trained. loss: batch -> scalar.

    Attributes:
        weight: with which losses are to be multiplied for their gradients to be the sum over all processes.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor]) -> None:
        self._model = model
        self._module = _LossModule(model, loss)
        self.weight = dist.get_world_size() if dist.is_initialized() else 1
        self._wrapped: DistributedDataParallel | None = None
        self._trained: list[bool] = []

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a micro-batch."""
        loss: Tensor = (self._wrapped or self._module)(batch)
        return loss

    def begin_step(self) -> None:
        """Take notice of which parameters are trained from now on."""
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if not dist.is_initialized() or trained == self._trained:
            return
        self._wrapped, self._trained = None, trained
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated")  # its successor is too new
            # Which parts of a model a batch goes through may depend on the batch, so all are looked for.
            self._wrapped = DistributedDataParallel(self._module, broadcast_buffers=False, find_unused_parameters=True)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the block that goes back through the ``last`` micro-batch of this process only."""
        return nullcontext() if last or self._wrapped is None else self._wrapped.no_sync()


class _LossModule(nn.Module):
    """A model's loss as a forward pass, which is the only method that DistributedDataParallel prepares for."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)


def share_statistics(model: nn.Module, before: list[Tensor], micro_batches: int) -> None:
    """Give batch norm the running statistics that one process would have after all micro-batches of a step.

    Each micro-batch turns a running value ``x`` into ``keep * x + new``, so this process's ``n`` of them turn it into
    ``keep ** n * x + c``, and ``c`` still shrinks by ``keep`` for every later micro-batch.

    Args:
        model: after its own micro-batches. before: its buffers as they were before the step.
        micro_batches: of the step, in all processes.
    """
    if not dist.is_initialized():
        return
    mine = share(micro_batches)
    known = dict(zip((id(buffer) for buffer in model.buffers()), before, strict=True))
    for norm in model.modules():
        if not (isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training and norm.track_running_stats):
            continue
        if norm.momentum is None:
            raise UserError("this encoder's batch norm averages over all steps", "Train it in one process")
        keep = 1 - norm.momentum
        for running in (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)):
            start = known[id(running)]
            added = (running - keep ** len(mine) * start) * keep ** (micro_batches - mine.stop)
            running.copy_(keep**micro_batches * start + total(added))
        counted = cast(Tensor, norm.num_batches_tracked)
        counted.copy_(known[id(counted)] + micro_batches)
