"""Batches by their number, made in this process or in workers: the same ones, in the same order."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from dptr.cache.errors import DptrError, UserError
from dptr.cache.processors import usable_processors
from dptr.cache.progress import note
from dptr.trainer.training.shared_memory import workers_and_ready

Batch = TypeVar("Batch")


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
        note(f"{workers} workers on {cores} cores: more than {cores} only wait for each other")
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
            "The same command goes on from the last checkpoint; with fewer workers it needs less memory",
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
