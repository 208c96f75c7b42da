from __future__ import annotations

import os
import signal

import pytest

from dptr.cache.errors import UserError
from dptr.trainer.training.loader import deaths_of_workers_told, load_batches


def killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(UserError, match="worker process was killed"), deaths_of_workers_told():
        list(load_batches(killed_at_two, range(8), workers=1))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), deaths_of_workers_told():
        raise RuntimeError("shapes do not fit")
