"""Files that are either whole or absent: written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

import xxhash

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    CHECKPOINTS_FOLDER,
    IMAGE_PROCESSOR_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    MODEL_CONFIG_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    PREDICTIONS_FOLDER,
    PREFIX_FILE,
    QUARANTINE_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    RUN_FILE,
    TIMINGS_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
)

#: What is wrong with a file whose hash is another.
CHANGED = "is damaged: its contents have changed"
#: Ends the names of what is not finished yet.
TEMPORARY_SUFFIX = ".writing"
#: Stands in temporary names: processes of other machines that share a disk are not to be taken for ended ones.
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_swept: set[tuple[int, Path]] = set()

#: Names and patterns of a store's files.
_STORE_FILES = (
    MANIFEST_FILE,
    QUARANTINE_FILE,
    PREFIX_FILE,
    ROWS_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    INDEX_FILE,
    "part-*.arrow",
    "part-*.parquet",
)
_RUN_FILES = (RUN_FILE, RECIPE_FILE, METRICS_FILE, TIMINGS_FILE, QUARANTINE_FILE)
_RUN_FOLDERS = (CHECKPOINTS_FOLDER, PREDICTIONS_FOLDER)
_MODEL_FILES = (RECIPE_FILE, MODEL_CONFIG_FILE, IMAGE_PROCESSOR_FILE, *TOKENIZER_FILES, WEIGHTS_FILE)
_MODEL_SUFFIXES = (".safetensors", ".onnx")


def temporary_beside(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process uses."""
    return path.with_name(f".{path.name}.{_this_process()}{TEMPORARY_SUFFIX}")


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder for temporary files; those that killed processes of this machine left are removed."""
    _remove_dead(Path(tempfile.gettempdir()), rf"dptr-({_HOST}-\d+)-\w+")
    return tempfile.TemporaryDirectory(prefix=f"dptr-{_this_process()}-")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written; the caller must be the folder's only writer."""
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        _remove(left)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed and takes ``path``'s name.

    Raises:
        UserError: the folder is a symlink in the place of one that belongs to a run.
    """
    require_no_link(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(path.parent, rf"\..*\.({_HOST}-\d+){re.escape(TEMPORARY_SUFFIX)}")
    temporary = temporary_beside(path)
    # It may be a symlink that somebody else put there.
    _remove(temporary)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _this_process() -> str:
    return f"{_HOST}-{os.getpid()}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_dead(folder: Path, pattern: str) -> None:
    """Remove what processes of this machine that were killed left in a folder; once in a process for each folder."""
    if (os.getpid(), folder) in _swept:
        return
    _swept.add((os.getpid(), folder))
    for entry in os.scandir(folder):
        found = re.fullmatch(pattern, entry.name)
        if found is not None and not _is_running(int(found[1].rpartition("-")[2])):
            with suppress(OSError):  # another user's
                _remove(Path(entry.path))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def require_no_link(folder: Path) -> None:
    """Check that a folder which belongs to a run is no symlink: what is written there would land elsewhere.

    Raises:
        UserError: it is one.
    """
    if folder.name in _RUN_FOLDERS and folder.is_symlink():
        raise UserError(
            f"{folder} is a link to another folder", "Replace it by a folder: links inside stores are not followed"
        )


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading bytes; other than ``open`` it never waits for what a FIFO or a device will give.

    Raises:
        DamagedStore: it is no plain file. OSError: it cannot be opened.
    """
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise DamagedStore(f"{path} is not a regular file", "Restore it from a copy, or make its store or run again")
    return stream


def open_to_append(path: Path) -> TextIO:
    """Open a text file, which is made where it is missing, to append to it; no symlink is followed.

    Raises:
        OSError: it is a symlink or a FIFO, or cannot be written.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(path, "a", encoding="utf-8", opener=lambda name, given: os.open(name, given | flags, 0o666))


def link_or_copy(source: Path, path: Path) -> None:
    """Let ``path`` be the same file as ``source``, or a copy where the disk is another, or takes no links."""
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


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def xxh3_of(path: Path) -> str:
    """Return the 128-bit XXH3 of a file's bytes, as hexadecimal: it finds damage as fast as memory is read."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def problem_of(path: Path, check: Callable[[], str | None]) -> str | None:
    """Return what a check of the file at ``path`` returns; where it raises, the error in words that follow the path."""
    try:
        return check()
    except DamagedStore as error:
        return error.problem.removeprefix(f"{path} ")
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def begun_anew(path: Path) -> str:
    """Say what the loss of a file that records earlier runs means."""
    return (
        f"{path} is damaged or missing, and starts empty: what this run reads is judged again, "
        "what only earlier runs read is no longer known"
    )


def require_replaceable(path: Path, as_model: bool = False) -> None:
    """Check that writing the output ``path``, a file or a folder, replaces no file of a store, a run or a model.

    A run's ``report.html`` is no such file; neither is a new file beside those of a store, a run or a model.

    Args:
        path: what is to be written; symlinks are followed. as_model: it is an exported model, and may replace another.

    Raises:
        UserError: it would.
    """
    for place in dict.fromkeys((path.absolute(), path.resolve())):
        if place.is_dir():
            owner = _kind_of_folder(place)
            if owner is not None or _is_file_of_run(place):
                raise UserError(f"{path} holds files of {owner or 'a run'}", "Name another folder with -o")
            continue
        owner = _owner_of(place)
        if owner is None and not as_model and place.suffix in _MODEL_SUFFIXES and place.is_file():
            owner = "a model"
        if owner is not None:
            raise UserError(f"{path} is a file of {owner}", "Name another file with -o")


def _kind_of_folder(folder: Path) -> str | None:
    """Return what a folder holds, by the file that describes it: a store, a run, a model, or None."""
    if (folder / MANIFEST_FILE).is_file():
        return "a store"
    if (folder / RUN_FILE).is_file():
        return "a run"
    described = (folder / RECIPE_FILE).is_file() or (folder / MODEL_CONFIG_FILE).is_file()
    return "a model" if described and (folder / WEIGHTS_FILE).is_file() else None


def _owner_of(file: Path) -> str | None:
    """Return what a file, which need not exist, belongs to; None where it is nobody's."""
    owner = _kind_of_folder(file.parent)
    files = {"a store": _STORE_FILES, "a run": _RUN_FILES, "a model": _MODEL_FILES}.get(owner or "", ())
    if any(fnmatchcase(file.name, name) for name in files):
        return owner
    return "a run" if _is_file_of_run(file) else None


def _is_file_of_run(path: Path) -> bool:
    """Return whether a path is in, or is, one of the folders that a run keeps below its own."""
    places = (path, *path.parents)[:3]
    return any(place.name in _RUN_FOLDERS and (place.parent / RUN_FILE).is_file() for place in places)
