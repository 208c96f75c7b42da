"""Batches come from workers as from this process."""

from __future__ import annotations

import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dptr.cache.errors import UserError
from dptr.trainer.training import loader
from dptr.trainer.training.loader import deaths_of_workers_told, load_batches


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = list(load_batches(functools.partial(torch.full, (2,)), range(3, 6), workers=1))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert [batch.tolist() for batch in batches] == [[3, 3], [4, 4], [5, 5]]


@dataclass(frozen=True)
class Megabytes:
    """A batch that says who made it."""

    values: torch.Tensor
    made_by: int


def megabytes(number: int) -> Megabytes:
    return Megabytes(torch.full((2**20,), number, dtype=torch.uint8), os.getpid())


@pytest.mark.parametrize(
    ("free", "expected"),
    [(1000, (3, 4)), (23, (3, 3)), (17, (3, 2)), (11, (3, 1)), (9, (2, 1)), (7, (1, 1)), (5, (0, 1)), (0, (0, 1))],
)
def test_workers_have_as_many_batches_ready_as_shared_memory_holds(
    free: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "_free", lambda: free * 2**20)
    # Half of it for what is ready and two more.
    assert loader.workers_and_ready(3, megabytes(0)) == expected
    said = capsys.readouterr().err
    assert ("shared memory" in said) == (expected[0] < 3)


def test_batches_that_do_not_fit_are_made_in_the_training_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "_free", lambda: 2**20)
    batches = list(load_batches(megabytes, range(3, 6), workers=1))
    assert [int(batch.values[0]) for batch in batches] == [3, 4, 5]
    assert {batch.made_by for batch in batches} == {os.getpid()}
    assert "batches of 1 MB for 1 workers do not fit into the 1 MB of shared memory" in capsys.readouterr().err


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
