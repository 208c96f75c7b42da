"""Copies of a run's log lines for TensorBoard or Weights & Biases, with ``--track``.

The files in the run's folder stay the record; a tracker only shows them elsewhere while the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.trainer.choices import Tracker as Tracker

#: Takes a log line, which holds its ``step``.
Observer = Callable[[dict[str, Any]], None]


def observer(tracker: Tracker, folder: Path) -> Observer:
    """Return what shows log lines of the run in ``folder``.

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

    # The folder's name is the identity of a run here, so that one that goes on goes on there, too.
    run = wandb.init(project="dptr", id=folder.name, name=folder.name, dir=str(folder), resume="allow")

    def show(line: dict[str, Any]) -> None:
        run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    return show
