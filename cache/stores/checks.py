"""Stored files are compared with their hashes when first used: readers of Arrow and Parquet detect no flipped bit.

Files that are read completely are checked first. Embeddings, which are mapped and may be larger than memory, are
checked by a background thread of the command's main process; training saves nothing, and no command succeeds, before
all used files are checked. A file is checked once per process, and again when its size, modification time or inode
changes. ``--no-check``, or ``DPTR_NO_CHECK=1``, turns this off.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dptr.cache.errors import DamagedStore
from dptr.cache.stores.files import CHANGED, problem_of, xxh3_of

_ADVICE = "Run `dptr verify` to list all damage, `dptr verify --repair` to recompute damaged shards"
_OFF = "DPTR_NO_CHECK"


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of a committed file, to detect damage, not forgery."""

    bytes: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a finished file."""
        return cls(path.stat().st_size, xxh3_of(path))

    def problem(self, path: Path) -> str | None:
        """Return the problem of the file at ``path``, None if it is as it was committed."""

        def compare() -> str | None:
            size = path.stat().st_size
            if size != self.bytes:
                return f"has {size} bytes, not {self.bytes}"
            return None if xxh3_of(path) == self.xxh3 else CHANGED

        return problem_of(path, compare)


_State = tuple[str, int, int, int]  # path, size, time of change, inode

#: Files that are checked or queued.
_checked: set[_State] = set()
_waiting: queue.Queue[tuple[Path, FileRecord, _State]] = queue.Queue()
_damage: list[str] = []


def turn_off(off: bool) -> None:
    """Disable checks in this process and in those it starts; False: enable them again."""
    os.environ[_OFF] = "1" if off else ""


def now(path: Path, record: FileRecord) -> Path:
    """Check a file that is about to be read as a whole; return its path.

    Raises:
        DamagedStore: it differs from what was committed.
    """
    if _is_new(path):
        if problem := record.problem(path):
            raise DamagedStore(f"{path} {problem}", _ADVICE)
        _checked.add(_state_of(path))
    return path


def soon(path: Path, record: FileRecord) -> None:
    """Check a file in the background; :func:`raise_found` and :func:`finish` report what was found."""
    if _is_new(path) and path.is_file():
        state = _state_of(path)
        _checked.add(state)
        _waiting.put((path, record, state))
        _start_thread()


@cache
def _start_thread() -> None:
    # A daemon: an interrupted command does not wait for it.
    threading.Thread(target=_check_what_waits, name="dptr-checks", daemon=True).start()


def _check_what_waits() -> None:
    while True:
        path, record, state = _waiting.get()
        if problem := record.problem(path):
            _damage.append(f"{path} {problem}")
            _checked.discard(state)
        _waiting.task_done()


def raise_found() -> None:
    """Raise :class:`DamagedStore` if a background check has found damage; does not wait."""
    if _damage:
        found = "; ".join(_damage)
        _damage.clear()
        raise DamagedStore(found, _ADVICE)


def finish() -> None:
    """Wait until all files that were used are checked.

    Raises:
        DamagedStore: one of them is damaged.
    """
    _waiting.join()
    raise_found()


@contextmanager
def before_ending() -> Iterator[None]:
    """Raise after a block if a file that it used is damaged, also if the block failed for that reason.

    Raises:
        DamagedStore: a file that the block used is damaged; takes precedence over other errors.
    """
    try:
        yield
    except Exception:
        finish()
        raise
    finish()


def _is_new(path: Path) -> bool:
    # Workers do not check: the process that started them checks the same files.
    if os.environ.get(_OFF) or multiprocessing.parent_process() is not None:
        return False
    return not path.is_file() or _state_of(path) not in _checked


def _state_of(path: Path) -> _State:
    state = path.stat()
    return str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino
