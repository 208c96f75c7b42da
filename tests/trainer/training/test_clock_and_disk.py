"""What a machine may do to a training from outside: its clock is set back, its disk rejects."""

from __future__ import annotations

import errno
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dptr.cache.errors import UserError
from dptr.trainer.training import checkpoint

_YEAR = 365 * 86400


def test_a_clock_that_is_set_back_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any
) -> None:
    training.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "cut", task=training.task(training.cut_at(7, KeyboardInterrupt)))
    now = time.time()
    for path in (tmp_path / "cut").rglob("*"):
        os.utime(path, (now + _YEAR, now + _YEAR))
    monkeypatch.setattr(time, "time", lambda: now - _YEAR)
    training.run(tmp_path / "cut")
    (weights, lines), (expected, expected_lines) = (training.saved(tmp_path / name) for name in ("cut", "whole"))
    assert lines == expected_lines
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_rejects_during_training_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any, number: int
) -> None:
    training.run(tmp_path / "whole")
    save, calls = checkpoint.save_tensors, itertools.count()

    def rejects(*arguments: Any) -> None:
        if next(calls) >= 10:
            raise OSError(number, os.strerror(number))
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_tensors", rejects)
    with pytest.raises(UserError, match=os.strerror(number)):
        training.run(tmp_path / "rejected")
    monkeypatch.undo()
    assert 0 < checkpoint.load_state(tmp_path / "rejected" / "checkpoints" / "last")["step"] < 12
    training.run(tmp_path / "rejected")
    assert training.saved(tmp_path / "rejected")[1] == training.saved(tmp_path / "whole")[1]
