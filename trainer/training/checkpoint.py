"""Atomic checkpoints: weights as safetensors, everything else as JSON, every file hashed.

A checkpoint folder is written under another name and takes its own by two renames; between the two the previous one
still stands under a third name, and loading tries all three.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import CHECKPOINTS_FOLDER, SAFETENSORS, STATE_FILE
from dptr.cache.printing import json_problem
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import flush, sha256_of
from dptr.trainer.model.model_file import save_tensors

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
