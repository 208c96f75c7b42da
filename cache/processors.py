"""Number of processors that this process may use, as a limit for threads.

A container with a CPU quota still sees all cores of its host. torch would start a thread for each, and their spinning
would use up the quota.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_OPENMP_THREADS = "OMP_NUM_THREADS"


def usable_processors(root: Path = Path("/")) -> int:
    """Return the number of usable cores, fewer if control groups limit CPU time: at least 1.

    ``root`` is the folder of Linux's ``proc`` and ``sys``.
    """
    # A thread with part of a core would delay all others, so fractions do not count.
    return max(1, min([_cores(), *(int(granted) for granted in _granted(root))]))


def start_no_more_threads_than_usable() -> None:
    """Limit OpenMP's threads, set before torch is loaded, to the CPU quota; keep a value that is set."""
    usable = usable_processors()
    if usable < _cores():
        os.environ.setdefault(_OPENMP_THREADS, str(usable))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """Yield the CPU limits, in cores, of this process's control groups (version 2)."""
    top, groups = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    if not groups.exists():
        return
    path = groups.read_text(encoding="utf-8").rpartition("0::")[2].strip()
    # In a container the path may be the host's, with the container's own group as root.
    inner = top / path.lstrip("/")
    for group in (inner, *inner.parents):
        if group.is_relative_to(top) and (group / "cpu.max").exists():
            # Microseconds of processor time in each period, and the period.
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
            if quota != "max":
                yield int(quota) / int(period)
