"""Batch sizes of encoders by device, halved when memory is exhausted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from dptr.cache.errors import is_out_of_memory
from dptr.cache.progress import note

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

#: Values that a layer holds for each value of an embedding: queries, keys, values, feed-forward, and copies.
_HELD = 40
#: Maximum fraction of a GPU's free memory for a batch; larger batches are no faster.
_SHARE = 0.1


def batch_for(model: Any, width: int, tokens: int, on_cpu: int) -> int:
    """Return the batch size for items of ``tokens`` embeddings, each ``width`` values wide.

    On a CPU ``on_cpu``, which fits its cache; on a GPU the largest power of two that fits a fraction of free memory.
    """
    if model.device.type != "cuda":
        return on_cpu
    import torch

    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = _SHARE * free / (_HELD * width * tokens * model.dtype.itemsize)
    return 1 << max(0, int(fitting).bit_length() - 1)


class Halving:
    """Runs work in batches, and halves the batch size when memory is exhausted.

    Args:
        items: their name, for messages.
    """

    def __init__(self, items: str) -> None:
        self._items = items
        self._most: int | None = None

    def run(self, work: Callable[[NDArray[Any]], Result], batch: NDArray[Any], size: int = 1) -> list[Result]:
        """Return the result of ``work`` for a batch, shape (items, ..), or for its parts in order.

        Args:
            size: of each item, of which a batch may have so many in all.

        Raises:
            MemoryError, RuntimeError: memory is too short for one item.
        """
        if self._most is not None and len(batch) > 1 and len(batch) * size > self._most:
            return self._in_halves(work, batch, size)
        try:
            return [work(batch)]
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        # The memory of the failed attempt is free only here.
        _give_back()
        half = len(batch) // 2
        self._most = half * size
        note(f"too little memory for {len(batch) * size} {self._items} per batch: reduced to {self._most}")
        return self._in_halves(work, batch, size)

    def _in_halves(self, work: Callable[[NDArray[Any]], Result], batch: NDArray[Any], size: int) -> list[Result]:
        middle = (len(batch) + 1) // 2
        return [*self.run(work, batch[:middle], size), *self.run(work, batch[middle:], size)]


def _give_back() -> None:
    import torch

    torch.cuda.empty_cache()


@contextmanager
def batch_per_core(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with one single-threaded worker a core; one worker for a GPU.

    Operations of a small model are too short for several threads: cores wait for each other after every one, especially
    if another program uses one of them. Separate batches never wait, and their results do not depend on the number of
    cores.
    """
    import torch

    cores = torch.get_num_threads()
    workers = cores if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # New threads elsewhere would take over the workers' setting.
        torch.set_num_threads(cores)
