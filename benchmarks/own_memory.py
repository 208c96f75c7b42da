"""What a process holds of its own while it makes batches: its USS, which would be free again if it alone ended."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from torch.utils.data import get_worker_info


def own_megabytes() -> float:
    return float(psutil.Process().memory_full_info().uss) / 1e6


def megabytes_without_files() -> float:
    """What is left of it without the pages of mapped files, which the kernel takes back when it needs them."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 1e6


class OwnMemory:
    """Makes batches, and tells which worker made them and what it holds then."""

    def __init__(self, batches: Callable[[int], object]) -> None:
        self._batches = batches

    def __call__(self, number: int) -> tuple[int, float]:
        """Make batch ``number``; return the worker's number and its memory in MB."""
        self._batches(number)
        worker = get_worker_info()
        return (worker.id if worker else 0), own_megabytes()
