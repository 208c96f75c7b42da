"""Stored files are compared with their hashes when first used: readers of Arrow and Parquet see no flipped bit.

What is read as a whole is checked before it is read. Embeddings, which are mapped and may be larger than memory, are
checked in the background by one thread, in the process that was started as the command; a training saves nothing, and
no command ends well, before all that was used is known to be whole. A file is checked once in a process, and again when
its size, its time or its inode is another. ``--no-check``, or ``DPTR_NO_CHECK=1``, turns this off.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dptr.cache.errors import DamagedStore

_ADVICE = "`dptr verify` lists all damage, `dptr verify --repair` recomputes what can be"
_OFF = "DPTR_NO_CHECK"

_Known = tuple[str, int, int, int]  # path, size, time of change, inode


class Record(Protocol):
    """What is known of a file, by which damage to it is found."""

    def problem(self, path: Path, fast: bool = False) -> str | None:
        """Return what is wrong with the file at ``path``, None when it is as it was written."""


class _Background:
    """The files that were checked or are to be, the thread that does it, and what it found."""

    def __init__(self) -> None:
        self.known: set[_Known] = set()
        self.waiting: queue.Queue[tuple[Path, Record]] = queue.Queue()
        self.damage: list[str] = []
        self.thread: threading.Thread | None = None

    def add(self, path: Path, record: Record) -> None:
        self.waiting.put((path, record))
        if self.thread is None:
            # A daemon: an interrupted command does not wait for it.
            self.thread = threading.Thread(target=self._work, name="dptr-checks", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        while True:
            path, record = self.waiting.get()
            if problem := record.problem(path, fast=True):
                self.damage.append(f"{path} {problem}")
            self.waiting.task_done()


_background = _Background()


def turn_off(off: bool) -> None:
    """Check nothing from now on, in this process and in those it starts; False: check again."""
    os.environ[_OFF] = "1" if off else ""


def now(path: Path, record: Record) -> Path:
    """Check a file that is about to be read as a whole; return its path.

    Raises:
        DamagedStore: it is not what was committed.
    """
    if _is_new(path):
        if problem := record.problem(path, fast=True):
            raise DamagedStore(f"{path} {problem}", _ADVICE)
        _background.known.add(_known(path))
    return path


def soon(path: Path, record: Record) -> None:
    """Check a file in the background; :func:`raise_found` and :func:`finish` report what was found."""
    if _is_new(path) and path.is_file():
        _background.known.add(_known(path))
        _background.add(path, record)


def raise_found() -> None:
    """Raise :class:`DamagedStore` when a check in the background has found damage; costs nothing."""
    if _background.damage:
        found, _background.damage = _background.damage, []
        _background.known = {known for known in _background.known if not any(known[0] in told for told in found)}
        raise DamagedStore("; ".join(found), _ADVICE)


def finish() -> None:
    """Wait until all files that were used are checked.

    Raises:
        DamagedStore: one of them is damaged.
    """
    _background.waiting.join()
    raise_found()


@contextmanager
def before_ending() -> Iterator[None]:
    """Let a block end well only when what it used is whole; when it fails, say so where damage may be the reason.

    Raises:
        DamagedStore: a file that the block used is damaged, whatever else went wrong.
    """
    try:
        yield
    except Exception:
        finish()
        raise
    finish()


def _is_new(path: Path) -> bool:
    # Workers leave it to the process that started them: it has the same files to check.
    if os.environ.get(_OFF) or multiprocessing.parent_process() is not None:
        return False
    return not path.is_file() or _known(path) not in _background.known


def _known(path: Path) -> _Known:
    state = path.stat()
    return str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino
