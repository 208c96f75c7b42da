"""How many processors this process may keep busy, so that no more threads are started than those.

A container with a CPU quota still shows all cores of its host. torch would start a thread for each, and threads that
wait for each other would spin the quota away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_OPENMP_THREADS = "OMP_NUM_THREADS"


def usable_processors(root: Path = Path("/")) -> int:
    """Return the cores that this process may run on, or fewer where its control groups grant less time: at least 1.

    ``root`` is where Linux's ``proc`` and ``sys`` lie.
    """
    # A thread without time of its own would hold up all others, so what is left of a core does not count.
    return max(1, min([_cores(), *(int(granted) for granted in _granted(root))]))


def start_no_more_threads_than_usable() -> None:
    """Tell OpenMP of a quota, which it does not look at; it reads this when torch is loaded. What is set stays."""
    usable = usable_processors()
    if usable < _cores():
        os.environ.setdefault(_OPENMP_THREADS, str(usable))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """Yield how many cores' time each control group (version 2) round this process grants, where it limits it."""
    top, groups = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    if not groups.exists():
        return
    path = groups.read_text(encoding="utf-8").rpartition("0::")[2].strip()
    # In a container the path may be the host's, and its own group lies at the top.
    inner = top / path.lstrip("/")
    for group in (inner, *inner.parents):
        if group.is_relative_to(top) and (group / "cpu.max").exists():
            # Microseconds of processor time in each period, and the period.
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
            if quota != "max":
                yield int(quota) / int(period)
