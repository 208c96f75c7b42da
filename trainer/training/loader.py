"""Batches by their number, made in this process or in workers: the same ones, in the same order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from dptr.cache.errors import DptrError, UserError

Batch = TypeVar("Batch")

#: Batches that one worker has ready at most, so that a slow one is made up for.
_READY = 4


def load_batches(
    batch: Callable[[int], Batch], numbers: Iterable[int], workers: int, for_gpu: bool = False
) -> Iterator[Batch]:
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
