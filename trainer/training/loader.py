"""Batches by their number, made in this process or in workers: the same ones, in the same order."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dptr.cache.errors import DptrError, UserError
from dptr.cache.processors import usable_processors
from dptr.cache.progress import note

Batch = TypeVar("Batch")

#: Where Linux keeps memory that processes share; other systems set it no limit of its own.
_PLACE = Path("/dev/shm")
#: Batches that one worker has ready at most, so that a slow one is made up for.
_READY = 4
#: Beside those that are ready, the one in use and the one that is being passed on.
_IN_USE = 2
#: Batches differ in size, and others use shared memory, too.
_SHARE = 0.5


def load_batches(
    batch: Callable[[int], Batch], numbers: Iterable[int], workers: int, for_gpu: bool = False
) -> Iterator[Batch]:
    """Return the batches of these numbers, in order, made by ``batch`` in ``workers`` processes (0: in this one).

    ``for_gpu`` moves those that know how (``pin_memory``) into memory from which a GPU takes them while it computes.

    Torch's loader draws from the global generator when it starts, which is at once, not when the first batch is asked
    for: a caller that seeds the generator after this call gets the same numbers with and without workers.

    Fewer workers make them, or none, where batches would not fit into the system's shared memory.

    Raises:
        DptrError: what ``batch`` raised, in whatever process.
    """
    cores = usable_processors()
    if workers > cores:
        note(f"{workers} workers on {cores} cores: more than {cores} do not help")
    ready = None
    if workers:
        numbers = iter(numbers)
        first = next(numbers, None)
        if first is None:
            return iter(())
        numbers = chain([first], numbers)
        workers, ready = workers_and_ready(workers, _NumberedBatches(batch)[first])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # reported by the error itself
        loader = DataLoader(
            _NumberedBatches(batch),
            sampler=numbers,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=ready if workers else None,
            pin_memory=for_gpu,
            worker_init_fn=_leave_signals_to_training,
        )
        return map(_raise_errors, iter(loader))


@contextmanager
def deaths_of_workers_told() -> Iterator[None]:
    """Say in one line that a worker was killed; torch raises it wherever this process happens to be.

    Raises:
        UserError: a worker has died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a worker process was killed, as systems do when memory is short",
            "Rerun the command to resume from the last checkpoint; fewer workers need less memory",
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


def workers_and_ready(workers: int, batch: Any) -> tuple[int, int]:
    """Return how many workers may make batches like ``batch``, and how many each may have ready at most.

    None at all where even one's would not fit: batches are then made in the training process. A container has 64 MB of
    shared memory by default, and a worker that asks for more is killed; four batches of 128 prompts with all of their
    77 tokens are larger.
    """
    size, free = bytes_of(batch), _free()
    room = int(_SHARE * free / max(size, 1)) - _IN_USE
    ready = min(_READY, room // workers)
    if ready > 0:
        return workers, ready
    fewer = max(room, 0)
    note(
        f"batches of {size / 2**20:.0f} MB for {workers} workers do not fit into the {free / 2**20:.0f} MB of shared "
        f"memory that are free ({_PLACE}): {fewer or 'no'} workers make them; more with a container's --shm-size=1g"
    )
    return fewer, 1


def _free() -> float:
    """Return how many bytes of shared memory are free."""
    return shutil.disk_usage(_PLACE).free if _PLACE.is_dir() else float("inf")


def bytes_of(value: Any) -> int:
    """Return how many bytes a batch's tensors take up."""
    if isinstance(value, Tensor):
        return value.nbytes
    if dataclasses.is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0
