"""State of a run between two steps: everything needed to resume, saved and restored together.

Checkpoints are atomic: weights are safetensors, everything else JSON, every file hashed. A folder is
written under another name and takes its own by two renames; between the two the previous one still stands under a third
name, and loading tries all three.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import CHECKPOINTS_FOLDER, METRICS_FILE, SAFETENSORS, STATE_FILE, TIMINGS_FILE
from dptr.cache.printing import json_problem
from dptr.cache.progress import note
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import flush, sha256_of
from dptr.trainer.model.model_file import save_tensors
from dptr.trainer.training import step_log

#: Groups of tensors, a file each.
MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"
_ADVICE = "Use the other checkpoint of the run, or train again"
CheckpointName = Literal["last", "best", "untrained"]


def checkpoint_folder(run: Path, name: CheckpointName) -> Path:
    """Return where a run's folder holds a checkpoint."""
    return run / CHECKPOINTS_FOLDER / name


def save_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write a file for each group of tensors and :data:`STATE_FILE`, then swap the folder into place.

    Raises:
        UserError: the disk is full or not writable; the checkpoint that was there before is untouched.
    """
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, group in tensors.items():
            path = new / file_of(name)
            save_tensors({key: value.detach().contiguous() for key, value in group.items()}, path)
            flush(path)
        hashes = {path.name: sha256_of(path) for path in sorted(new.iterdir())}
        checksummed.write_json(new / STATE_FILE, {**state, "files": hashes})
        flush(new)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise UserError(
            f"could not write the checkpoint {folder}: {error}",
            "Free some space or fix the permissions, then rerun the command; it resumes from the last checkpoint",
        ) from error


def find_checkpoint(folder: Path) -> Path | None:
    """Return the folder that holds the newest whole checkpoint of this name, or None."""
    for candidate in (folder, folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")):
        if (candidate / STATE_FILE).is_file():
            return candidate
    return None


def load_state(folder: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """Read :data:`STATE_FILE` and check the hashes of the groups of tensors in ``only``; None checks every file.

    Raises:
        DamagedStore: a file is missing or changed. UserError: it is of a newer format.
    """
    state = checksummed.read_json(folder / STATE_FILE)
    try:
        files = dict(state["files"])
        needed = files if only is None else {name: files[name] for name in map(file_of, only)}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStore(f"{folder / STATE_FILE} is damaged: {json_problem(error)}", _ADVICE) from error
    for name, digest in needed.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise DamagedStore(f"{folder / name} is missing or damaged", _ADVICE)
    return state


def file_of(group: str) -> str:
    """Return the name of the file that holds a group of tensors."""
    return f"{group}{SAFETENSORS}"


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read one group of tensors, on the CPU, in the shapes that were saved.

    Raises:
        DamagedStore: the file cannot be read.
    """
    try:
        tensors: dict[str, Tensor] = load_file(folder / file_of(name))
        return tensors
    except (SafetensorError, OSError) as error:
        raise DamagedStore(f"{folder / file_of(name)} cannot be read ({error})", _ADVICE) from error


#: In the timings: how long saving took; such a line also shows that a checkpoint was written.
CHECKPOINT_SECONDS = "checkpoint_seconds"


class MovingAverage:
    """An exponential moving average of a model's weights and of its buffers: batch norm's statistics fit no others.

    With a decay of 0.999, a thousand steps in a third of the average would still be random weights. So the decay grows
    with the steps taken, up to the recipe's (as in TensorFlow's ``ExponentialMovingAverage``). The steps are counted
    here: torch's ``AveragedModel`` counts them in a tensor, for which a GPU would have to finish all that is queued.

    Attributes:
        module: the averaged model. count: updates so far; the first one copies.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.count = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards a model: update n, counted from 0, keeps ``min(decay, (1 + n) / (10 + n))`` of the average."""
        kept = 0.0 if self.count == 0 else min(self._decay, (1 + self.count) / (10 + self.count))
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        for floating in (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == floating]
            if chosen:
                averaged, newest = map(list, zip(*chosen, strict=True))
                get_ema_multi_avg_fn(kept)(averaged, newest, self.count)  # type: ignore[no-untyped-call]
        self.count += 1


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())


@dataclass
class TrainState:
    """The state of a run.

    Attributes:
        step: optimiser steps done.
        best_score: highest validation score so far; best_step: where it was reached.
        metrics: the newest validation metrics.
        unlogged: loss and gradient norm of the newest step while it is not yet logged and validated.
        not_finite_at: the first step whose loss or gradient was NaN or infinite, a tensor () on the loss's device; 0:
            none. Reading it synchronises with the GPU.
        buffers: the model's buffers as they were before the step under way.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    unlogged: dict[str, Tensor] | None = None
    not_finite_at: Tensor | None = None
    buffers: list[Tensor] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """The model to validate and to use: the averaged one where an average is kept."""
        return self.model if self.average is None else self.average.module

    def take_step(self, loss: Tensor, norm: Tensor) -> None:
        """Count an optimiser step with its loss and gradient norm, both of shape ()."""
        self.step, self.buffers = self.step + 1, []
        self.unlogged = {"loss": loss, "gradient_norm": norm}
        before = torch.zeros_like(loss, dtype=torch.int64) if self.not_finite_at is None else self.not_finite_at
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.not_finite_at = torch.where((before == 0) & ~finite, self.step, before)

    def first_step_not_finite(self) -> int:
        """Return the first step whose loss or gradient was NaN or infinite, 0 without one."""
        return 0 if self.not_finite_at is None else int(self.not_finite_at)

    @torch.no_grad()
    def weight_not_finite(self) -> str | None:
        """Return the name of a weight, of the model or of its average, that holds NaN or infinity; None without one."""
        for model in dict.fromkeys((self.model, self.trained)):
            named = [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]
            finite = torch.stack([torch.isfinite(value).all() for _, value in named]).tolist() if named else []
            wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
            if wrong:
                return wrong[0]
        return None

    def forget_unfinished_step(self) -> None:
        """Take back what the forward pass of an unfinished step did to running statistics, such as batch norm's."""
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=False):
            buffer.copy_(before)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Group all tensors by file name."""
        groups = {MODEL: self.model.state_dict(), OPTIMIZER: {}}
        for index, moments in self.optimizer.state_dict()["state"].items():
            groups[OPTIMIZER] |= {f"{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        if self.average is not None:
            groups[AVERAGE] = self.trained.state_dict()
        return groups

    def numbers(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        return {
            "step": self.step,
            "best_score": None if math.isinf(self.best_score) else self.best_score,
            "best_step": self.best_step,
            "metrics": self.metrics,
            "unlogged": self.unlogged and {name: float(value) for name, value in self.unlogged.items()},
        }

    def restore(self, folder: Path) -> None:
        """Load a checkpoint folder into this state.

        Raises:
            DamagedStore: a file of it is missing or damaged; this state is as it was.
        """
        numbers = load_state(folder)
        self.model.load_state_dict(load_tensors(folder, MODEL))
        if self.average is not None:
            self.trained.load_state_dict(load_tensors(folder, AVERAGE))
            self.average.count = numbers["step"]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_tensors(folder, OPTIMIZER).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for parameter, moments_of in self.optimizer.state.items():
            for name, value in moments_of.items():
                if value.shape == parameter.shape:
                    # The fused optimiser pairs elements as they lie in memory, in a file they lie row by row.
                    moments_of[name] = torch.empty_like(parameter).copy_(value)
        self.step, self.best_step, self.metrics = numbers["step"], numbers["best_step"], numbers["metrics"]
        self.best_score = -math.inf if numbers["best_score"] is None else numbers["best_score"]
        unlogged = numbers.get("unlogged")
        self.unlogged = unlogged and {name: torch.tensor(value) for name, value in unlogged.items()}


def resume(folder: Path, state: TrainState) -> None:
    """Restore the last checkpoint, or the best one where the last is damaged; a new run stays as it is.

    Raises:
        DamagedStore: the run has taken steps, and no checkpoint of it can be used.
    """
    problems: list[str] = []
    names: tuple[CheckpointName, ...] = ("last", "best")
    for name in names:
        checkpoint = checkpoint_folder(folder, name)
        found = find_checkpoint(checkpoint)
        if found is None:
            if checkpoint.exists():
                problems.append(f"{checkpoint / STATE_FILE} is missing")
            continue
        try:
            state.restore(found)
        except DamagedStore as error:
            problems.append(error.problem)
            continue
        if problems:
            note(f"{'; '.join(problems)}: resuming from {found}, at step {state.step}")
        return
    # Without a line about a saved checkpoint, the run was killed before its first one.
    if saved := step_log.last_step(folder / TIMINGS_FILE, having=CHECKPOINT_SECONDS):
        problems.append(f"{folder / TIMINGS_FILE} names a checkpoint of step {saved}, and there is none")
    if problems:
        advice = f"Restore it from a copy, or move {folder} away to train from the start"
        raise DamagedStore("; ".join(problems), advice)
    if logged := step_log.last_step(folder / METRICS_FILE):
        note(f"{folder} was interrupted at step {logged}, before its first checkpoint: training starts over")
