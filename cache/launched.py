"""Which of the processes that a launcher such as ``torchrun`` started this one is; a process started plainly is alone.

Launchers say it in the environment (``RANK`` and ``WORLD_SIZE``), so that it is known before any library is imported.
"""

from __future__ import annotations

import os

from dptr.cache.errors import UserError


def rank() -> int:
    """Return this process's number, counted from 0: the first one writes and speaks for all."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """Return how many processes were started to work as one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def hush_torch() -> None:
    """Keep warnings of torch's C++, which every process would print, off the terminal; before torch is imported."""
    if size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def require_alone(command: str) -> None:
    """Raise :class:`UserError` where a launcher started several processes for a command that works in one."""
    if size() > 1:
        raise UserError(
            f"{size()} processes were started, and dptr {command} works in one",
            "Start it without torchrun; for stage 1 use `--part`; only pretrain and finetune run in several processes",
        )
