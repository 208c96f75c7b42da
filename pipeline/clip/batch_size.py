"""How much an encoder takes at once: what suits the device, and less where memory turns out short."""

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

#: Numbers that a layer holds for each number of a state: queries, keys, values, a feed-forward, and copies of them.
_HELD = 40
#: The share of a GPU's free memory that a batch is to take up at most; larger ones are no faster.
_SHARE = 0.1


def batch_for(model: Any, width: int, tokens: int, on_cpu: int) -> int:
    """Return how many items of so many ``tokens``, each ``width`` numbers wide, a model takes at once.

    ``on_cpu`` there, where few stay in its cache; on a GPU the power of two that fits into a share of its free memory.
    """
    if model.device.type != "cuda":
        return on_cpu
    import torch

    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = _SHARE * free / (_HELD * width * tokens * model.dtype.itemsize)
    return 1 << max(0, int(fitting).bit_length() - 1)


class Halving:
    """Does work in batches, and in half as large ones from the first that memory is too short for.

    Args:
        items: what they are called, for people.
    """

    def __init__(self, items: str) -> None:
        self._items = items
        self._most: int | None = None

    def run(self, work: Callable[[NDArray[Any]], Result], batch: NDArray[Any], size: int = 1) -> list[Result]:
        """Return what ``work`` makes of a batch, shape (items, ..), or of its parts in order.

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
        # Only here is what the failed attempt held set free.
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
    """Yield a pool with a thread for each core, on which operations are not shared out; one thread for a GPU.

    A small model's operations are too short to be shared out: cores wait for each other at the end of every one, and
    longest where something else keeps one of them busy. Batches of their own never wait, and their numbers do not
    depend on how many cores there are.
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
