"""How much a process has worked, whatever else the machine does (Linux)."""

from __future__ import annotations

import time


def worked_seconds(process: int) -> float:
    """Return the CPU time that a process that has not been waited for has used so far."""
    return time.clock_gettime((~process << 3) | 2)  # clock_getcpuclockid(3)
