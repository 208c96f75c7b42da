"""A run that was cut goes on to the same bits, from the last whole checkpoint."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dptr.cache.errors import DamagedStore, UserError
from dptr.trainer.training import checkpoint, loop, step_log
from dptr.trainer.training.checkpoint import load_state


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    tmp_path: Path, cut: int, error: type[BaseException], training: Any, whole: Any
) -> None:
    with pytest.raises(error):
        training.run(tmp_path / "cut", task=training.task(training.cut_at(cut, error)))
    training.run(tmp_path / "cut")
    assert training.is_as(tmp_path / "cut", whole)


def test_an_interrupted_run_keeps_its_last_whole_step(tmp_path: Path, training: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "run", task=training.task(training.cut_at(7, KeyboardInterrupt)))
    # Batch 7 is waited for inside step 8, of which nothing has been applied.
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 7


def interrupted_once(function: Callable[[nn.Module], dict[str, float]]) -> Callable[[nn.Module], dict[str, float]]:
    calls = itertools.count()

    def interrupted(network: nn.Module) -> dict[str, float]:
        if next(calls) == 0:
            raise KeyboardInterrupt
        return function(network)

    return interrupted


def test_an_interrupt_during_validation_loses_no_log_line(tmp_path: Path, training: Any, whole: Any) -> None:
    task = training.task()
    task.validate = interrupted_once(task.validate)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "cut", task=task)
    assert load_state(tmp_path / "cut" / "checkpoints" / "last")["step"] == 4, "no step is lost"
    assert not (tmp_path / "cut" / "checkpoints" / "best").exists(), "what was validated is step 4, and it was cut off"
    training.run(tmp_path / "cut")
    assert training.is_as(tmp_path / "cut", whole)


def test_the_best_checkpoint_is_there_once_the_last_one_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any
) -> None:
    save = loop.save_checkpoint

    def dies_at_the_second(folder: Path, *rest: Any) -> None:
        if (folder.parent / "best").exists() or (folder.parent / "last").exists():
            raise SystemExit
        save(folder, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", dies_at_the_second)
    with pytest.raises(SystemExit):
        training.run(tmp_path / "run", training.settings(checkpoint_every=4))
    monkeypatch.undo()
    training.run(tmp_path / "run", training.settings(checkpoint_every=4))
    state = load_state(tmp_path / "run" / "checkpoints" / "last")
    assert load_state(tmp_path / "run" / "checkpoints" / "best")["step"] == state["best_step"]


def test_an_interrupt_while_the_best_checkpoint_is_written_still_leaves_a_best_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any
) -> None:
    save, calls = loop.save_checkpoint, itertools.count()

    def interrupted(folder: Path, *rest: Any) -> None:
        if folder.name == "best" and next(calls) == 0:
            raise KeyboardInterrupt
        save(folder, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "cut")
    task = training.task()
    task.validate = lambda network: {"score": -1e9}
    training.run(tmp_path / "cut", training.settings(steps=12), task)
    assert load_state(tmp_path / "cut" / "checkpoints" / "best")["step"] == 4


def test_a_finished_run_takes_no_further_step(tmp_path: Path, training: Any) -> None:
    training.run(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last" / "state.json").stat().st_mtime_ns
    state = training.run(tmp_path / "run", task=training.task(training.cut_at(0, AssertionError)))
    assert state.step == 12
    assert (tmp_path / "run" / "checkpoints" / "last" / "state.json").stat().st_mtime_ns == before


def test_a_last_checkpoint_without_its_state_gives_way_to_the_best(
    tmp_path: Path, capsys: Any, training: Any, whole: Any
) -> None:
    with pytest.raises(RuntimeError):
        training.run(tmp_path / "cut", task=training.task(training.cut_at(10, RuntimeError)))
    (tmp_path / "cut" / "checkpoints" / "last" / "state.json").unlink()
    best = load_state(tmp_path / "cut" / "checkpoints" / "best")["step"]
    training.run(tmp_path / "cut")
    assert "state.json is missing" in (said := capsys.readouterr().err)
    assert f"at step {best}" in said
    assert training.is_as(tmp_path / "cut", whole)


def test_a_run_without_any_checkpoint_never_silently_starts_anew(tmp_path: Path, training: Any) -> None:
    training.run(tmp_path / "run")
    for name in ("last", "best"):
        (tmp_path / "run" / "checkpoints" / name / "state.json").unlink()
    with pytest.raises(DamagedStore, match=r"last/state\.json is missing"):
        training.run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(DamagedStore, match=r"timings\.jsonl names a checkpoint of step 12"):
        training.run(tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_anew_however_often_it_saves_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], training: Any, whole: Any
) -> None:
    with pytest.raises(RuntimeError):
        training.run(
            tmp_path / "cut",
            training.settings(validate_every=12, checkpoint_every=12),
            training.task(training.cut_at(8, RuntimeError)),
        )
    assert step_log.last_step(tmp_path / "cut" / "metrics.jsonl") == 8
    training.run(tmp_path / "cut")
    assert "interrupted at step 8, before its first checkpoint" in capsys.readouterr().err
    assert training.is_as(tmp_path / "cut", whole)


_YEAR = 365 * 86400


def test_a_clock_that_is_set_back_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any, whole: Any
) -> None:
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "cut", task=training.task(training.cut_at(7, KeyboardInterrupt)))
    now = time.time()
    for path in (tmp_path / "cut").rglob("*"):
        os.utime(path, (now + _YEAR, now + _YEAR))
    monkeypatch.setattr(time, "time", lambda: now - _YEAR)
    training.run(tmp_path / "cut")
    assert training.is_as(tmp_path / "cut", whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_rejects_during_training_is_one_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: Any, whole: Any, number: int
) -> None:
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
    assert not list((tmp_path / "rejected" / "checkpoints").glob(".*")), "no half of a checkpoint stays"
    training.run(tmp_path / "rejected")
    assert training.is_as(tmp_path / "rejected", whole)
