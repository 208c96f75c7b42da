"""A batch for each core rather than all cores on one batch.

A small model's operations are too short to be shared out: cores wait for each other at the end of every one, longest
where something else keeps one of them busy. Batches of their own never wait, and their numbers do not depend on how
many cores there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def batch_per_core(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool with a thread for each core, on which operations are not shared out; one thread for a GPU."""
    cores = torch.get_num_threads()
    workers = cores if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # New threads elsewhere would take over the workers' setting.
        torch.set_num_threads(cores)
