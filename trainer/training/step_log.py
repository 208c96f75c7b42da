"""A run's log: JSON lines, one a log step, and their copies in TensorBoard or Weights & Biases (``--track``).

A resumed run rewrites the steps that it takes again. The files in the run's folder are the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.file_names import METRICS_FILE, TIMINGS_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.trainer.choices import Tracker as Tracker
from dptr.trainer.training import processes

#: Takes a log line, which holds its ``step``.
Observer = Callable[[dict[str, Any]], None]


class Log:
    """The log of the run in a folder; of several processes, the first writes it."""

    def __init__(self, folder: Path, tracker: Tracker | None = None) -> None:
        self._folder, self._trackers = folder, observers(tracker, folder)

    def keep_up_to(self, step: int) -> None:
        """Drop the lines of later steps than ``step``."""
        if processes.is_first():
            for name in (METRICS_FILE, TIMINGS_FILE):
                keep_up_to(self._folder / name, step)

    def metrics(self, line: dict[str, Any]) -> None:
        """Add what the run's seed determines, and show it to the tracker."""
        if processes.is_first():
            append(self._folder / METRICS_FILE, line)
        for show in self._trackers:
            show(line)

    def timing(self, line: dict[str, Any]) -> None:
        """Add what differs from run to run."""
        if processes.is_first():
            append(self._folder / TIMINGS_FILE, line)


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
    lines, damaged = read(path)
    if damaged:
        note(f"{damaged} damaged lines skipped in {path}")
    with atomic_path(path) as temporary:
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        temporary.write_text("".join(kept), encoding="utf-8")


def last_step(path: Path, having: str = "step") -> int:
    """Return the latest step of the log's lines that have a key ``having``, 0 without one."""
    return max((line["step"] for line in read(path)[0] if having in line), default=0)


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return a log's lines, each with its ``step``, and how many before the last cannot be read.

    A killed process may leave half of the last line.
    """
    lines: list[dict[str, Any]] = []
    written = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    damaged = 0
    for number, text in enumerate(written, 1):
        try:
            line = json.loads(text)
            lines.append({**line, "step": int(line["step"])})
        except (ValueError, KeyError, TypeError):
            damaged += number < len(written)
    return lines, damaged


def observers(tracker: Tracker | None, folder: Path) -> list[Observer]:
    """Return what sends log lines of the run in ``folder`` to a tracker: of several processes, the first sends them.

    Raises:
        UserError: the tracker's package is not installed.
    """
    if tracker is None or not processes.is_first():
        return []
    try:
        return [_tensorboard(folder) if tracker == "tensorboard" else _wandb(folder)]
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
