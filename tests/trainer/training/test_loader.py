"""Batches come from workers as from this process."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest
import torch

from dptr.cache.errors import UserError
from dptr.trainer.training.loader import load_batches, worker_death_as_user_error


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = list(load_batches(functools.partial(torch.full, (2,)), range(3, 6), workers=1))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert [batch.tolist() for batch in batches] == [[3, 3], [4, 4], [5, 5]]


def killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(UserError, match="worker process was killed"), worker_death_as_user_error():
        list(load_batches(killed_at_two, range(8), workers=1))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), worker_death_as_user_error():
        raise RuntimeError("shapes do not fit")
