"""How many batches workers may have ready: as many as fit where they are passed on, the system's shared memory.

A container has 64 MB of it unless it is told otherwise, and a worker that asks for more is killed. Four batches of 128
prompts with all of their 77 tokens are larger.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from dptr.cache.progress import note

#: Where Linux keeps memory that processes share; other systems set it no limit of its own.
_PLACE = Path("/dev/shm")
#: Batches that one worker has ready at most, so that a slow one is made up for.
_READY = 4
#: Beside those that are ready, the one in use and the one that is being passed on.
_IN_USE = 2
#: Batches differ in size, and others use shared memory, too.
_SHARE = 0.5


def workers_and_ready(workers: int, batch: Any) -> tuple[int, int]:
    """Return how many workers may make batches like ``batch``, and how many each may have ready at most.

    None at all where even one's would not fit: batches are then made in the training process.
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
