"""Atomic files: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    RUN_FILE,
    SAFETENSORS,
    STATE_FILE,
    WEIGHTS_FILE,
)

#: Problem of a file whose hash differs.
CHANGED = "is damaged: its contents have changed"
#: Suffix of unfinished files.
TEMPORARY_SUFFIX = ".writing"
_MODEL_SUFFIXES = (SAFETENSORS, ".onnx")


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name beside ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed processes; the caller must be the folder's only writer."""
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed and takes ``path``'s name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, path: Path) -> None:
    """Hard-link ``path`` to ``source``, or copy it if the file system does not allow links."""
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def flush(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def xxh3_of(path: Path) -> str:
    """Return the 128-bit XXH3 of a file's bytes, as hexadecimal: as fast as memory is read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def problem_of(path: Path, check: Callable[[], object]) -> str | None:
    """Return the problem that a check of the file at ``path`` returns or raises, phrased to follow the path."""
    try:
        found = check()
        return found if isinstance(found, str) else None
    except DamagedStore as error:
        return error.problem.removeprefix(f"{path} ")
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def begun_anew(path: Path) -> str:
    """Describe the loss of a file that records earlier runs."""
    return f"{path} is damaged or missing and starts empty: rejections of inputs that only earlier runs read are lost"


def require_replaceable(path: Path, as_model: bool = False) -> None:
    """Check that the output ``path`` is neither a store, a run or a model nor a file in one.

    A run's ``report.html`` may be replaced.

    Args:
        path: the output; symlinks are followed. as_model: it is an exported model and may replace another.

    Raises:
        UserError: it is.
    """
    place = path.resolve()
    if not place.exists():
        return
    is_exported = place.suffix in _MODEL_SUFFIXES and place.name != WEIGHTS_FILE
    if place.name == REPORT_FILE or (as_model and is_exported):
        return
    owners = map(_kind_of_folder, [place] if place.is_dir() else place.parents[:3])
    owner = next(filter(None, owners), "a model" if place.suffix in _MODEL_SUFFIXES else None)
    if owner is not None:
        raise UserError(f"{path} holds or is a file of {owner}", "Name another place with -o")


def _kind_of_folder(folder: Path) -> str | None:
    """Return what a folder holds, by the file that describes it: a store, a run, a model, or None."""
    if (folder / MANIFEST_FILE).is_file():
        return "a store"
    if (folder / RUN_FILE).is_file() or (folder / STATE_FILE).is_file():
        return "a run"
    described = (folder / RECIPE_FILE).is_file() or (folder / MODEL_CONFIG_FILE).is_file()
    return "a model" if described and (folder / WEIGHTS_FILE).is_file() else None
