"""Training in several processes started by torchrun, with torch's DistributedDataParallel.

Each process computes some of a step's micro-batches. Rows, noise and dropout of a micro-batch depend on its number
alone, so that a step's loss does not depend on how many processes compute it, but for rounding. Batch norm normalises
within a micro-batch, as in one process; its running statistics are those of the first process's micro-batches.

The first process writes: checkpoints, logs, the run's description. All of them read the same folders.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dptr.cache import processes
from dptr.cache.errors import UserError
from dptr.cache.processes import collected
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks
from dptr.trainer.recipe import TrainingSettings

Batch = TypeVar("Batch")
Value = TypeVar("Value")
#: The others wait while the first one validates or mines neighbours.
_LONGEST_WAIT = timedelta(hours=6)


def join(settings: TrainingSettings, section: str) -> None:
    """Join the other processes that torchrun started for this training; alone, do nothing.

    Args:
        settings: of the training. section: of the recipe they stand in, for people.

    Raises:
        UserError: a step has fewer micro-batches than there are processes.
    """
    size = processes.size()
    if size == 1 or dist.is_initialized():
        return
    if settings.accumulate < size:
        rows = settings.batch_size * settings.accumulate
        raise UserError(
            f"{size} processes split the micro-batches of a step, and {section}.accumulate is {settings.accumulate}",
            f"For as many rows a step: --set {section}.accumulate={size} --set {section}.batch_size={-(-rows // size)}",
        )
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_LONGEST_WAIT)
    # A process that ends with its group open is sometimes aborted by the threads of gloo.
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    if processes.rank():
        set_quiet(True)
        checks.turn_off(True)  # the first process checks the same files


def is_first() -> bool:
    """Return whether this process writes; the only one does."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(micro_batches: int) -> range:
    """Return which of a step's micro-batches this process computes: neighbours, so that order is kept."""
    if not dist.is_initialized():
        return range(micro_batches)
    rank, size = dist.get_rank(), dist.get_world_size()
    return range(rank * micro_batches // size, (rank + 1) * micro_batches // size)


def total(value: Tensor) -> Tensor:
    """Return the sum of all processes' values."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def wait() -> None:
    """Wait until all processes are here.

    Raises:
        UserError: one has ended.
    """
    with process_death_as_user_error():
        total(torch.zeros(1))  # NCCL's barrier would need the device


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process through a block before the others, which find what it made; they end where it fails."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def by_first(work: Callable[[], Value]) -> Value:
    """Let the first process do some work, and give its result to all."""
    result = [work() if is_first() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(result)
    value: Any = result[0]
    return value  # type: ignore[no-any-return]


def of_all(values: set[str]) -> set[str]:
    """Return the values of all processes."""
    gathered: list[Any] = [values]
    if dist.is_initialized():
        gathered *= dist.get_world_size()
        dist.all_gather_object(gathered, values)
    return set().union(*gathered)


@contextmanager
def stopping_together() -> Iterator[Callable[[], None]]:
    """Yield what raises :class:`KeyboardInterrupt` in all processes after the same step when one got a signal.

    Otherwise the others would wait for its gradients, and each would save another step.
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
def process_death_as_user_error() -> Iterator[None]:
    """Turn network errors into a :class:`UserError`: another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            "another process of this training has ended",
            "Check its output, then rerun the command to resume from the last checkpoint",
        ) from error


class SharedLoss(Generic[Batch]):
    """A loss whose gradients, at the end of a step, are the mean over all processes.

    Attributes:
        weight: by which losses are multiplied so that their gradients become the sum over all processes.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor]) -> None:
        self.weight = dist.get_world_size() if dist.is_initialized() else 1
        self._module: nn.Module = _LossModule(model, loss)
        if dist.is_initialized():
            # Which parts of a model a batch goes through may depend on the batch.
            self._module = DistributedDataParallel(self._module, find_unused_parameters=True)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a micro-batch, of shape ()."""
        loss: Tensor = self._module(batch)
        return loss

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the block that goes back through the ``last`` micro-batch of this process only."""
        if last or not isinstance(self._module, DistributedDataParallel):
            return nullcontext()
        return self._module.no_sync()


class _LossModule(nn.Module):
    """A model's loss as a forward pass, which is the only method that DistributedDataParallel prepares for."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)
