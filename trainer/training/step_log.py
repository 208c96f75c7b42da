"""A run's log: JSON lines, one a log step, and their copies in TensorBoard or Weights & Biases (``--track``).

A resumed run rewrites the steps that it takes again. The files in the run's folder are the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.trainer.choices import Tracker as Tracker

#: Takes a log line, which holds its ``step``.
Observer = Callable[[dict[str, Any]], None]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, which holds its ``step``.

    Raises:
        UserError: the disk is full or not writable.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror}",
            "Free some space or fix the permissions, then rerun the command: it resumes from the last checkpoint",
        ) from error


def keep_up_to(path: Path, step: int) -> None:
    """Drop the lines of later steps than ``step``; a missing file stays missing."""
    if not path.is_file():
        return
    lines = _lines(path)
    damaged = sum(logged is None for _, logged in lines[:-1])
    if damaged:
        note(f"{damaged} damaged lines skipped in {path}")
    with atomic_path(path) as temporary:
        kept = [f"{line}\n" for line, logged in lines if logged is not None and logged <= step]
        temporary.write_text("".join(kept), encoding="utf-8")


def last_step(path: Path, having: str = "step") -> int:
    """Return the latest step of the log's lines that have a key ``having``, 0 without one."""
    if not path.is_file():
        return 0
    return max((step for line, step in _lines(path) if step is not None and having in json.loads(line)), default=0)


def _lines(path: Path) -> list[tuple[str, int | None]]:
    """Return each line with its step; None where it cannot be read (a killed process may leave half a line)."""
    return [(line, _step_of(line)) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def observer(tracker: Tracker, folder: Path) -> Observer:
    """Return what sends log lines of the run in ``folder`` to a tracker.

    Raises:
        UserError: the tracker's package is not installed.
    """
    try:
        return _tensorboard(folder) if tracker == "tensorboard" else _wandb(folder)
    except ModuleNotFoundError as error:
        raise UserError(f"--track {tracker} needs the package {tracker}", f"pip install {tracker}") from error


def _tensorboard(folder: Path) -> Observer:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard")

    def show(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return show


def _wandb(folder: Path) -> Observer:
    import wandb

    # The folder's name identifies a run here, so that a resumed one is resumed there, too.
    run = wandb.init(project="dptr", id=folder.name, name=folder.name, dir=str(folder), resume="allow")

    def show(line: dict[str, Any]) -> None:
        run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    return show
