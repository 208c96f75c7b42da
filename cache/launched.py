"""Rank and world size of this process under a launcher such as ``torchrun``; without a launcher, 0 of 1.

Launchers set ``RANK`` and ``WORLD_SIZE`` in the environment, so no library needs to be imported.
"""

from __future__ import annotations

import os

from dptr.cache.errors import UserError


def rank() -> int:
    """Return this process's number, counted from 0: rank 0 writes and prints."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """Return the number of processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def hush_torch() -> None:
    """Silence warnings of torch's C++ code, which every process would print; call it before torch is imported."""
    if size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def require_alone(command: str) -> None:
    """Raise :class:`UserError` if a launcher started several processes for a single-process command."""
    if size() > 1:
        raise UserError(
            f"{size()} processes were started, and dptr {command} works in one",
            "Start it without torchrun; for stage 1 use `--part`; only pretrain and finetune run in several processes",
        )
