"""One writer at a time: a store, a run or an output is locked while a command writes it.

The lock is the kernel's (``flock``), so it ends with the process that holds it, however that ended. A small file beside
it says who holds the lock; where the lock is free and that file is still there, its owner was killed.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dptr.cache import launched
from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.stores.files import remove_leftovers
from dptr.cache.visible import without_credentials

LOCK_FILE = ".lock"
_OWNER_SUFFIX = ".owner"
_COMMAND_CHARACTERS = 160
#: Long enough for another process that has just finished to be out of the way.
_SECONDS_TO_WAIT = 0.2


def this_process() -> str:
    """Describe this process: its number, its host, since when, and its command line."""
    program = Path(sys.argv[0]).name
    words = ["dptr" if program == "__main__.py" else program, *sys.argv[1:]]
    command = without_credentials(shlex.join(words))[:_COMMAND_CHARACTERS]
    since = datetime.now().isoformat(" ", "seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since} (`{command}`)"


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing, while a block writes into it.

    Whatever a killed writer left half written there is removed. Of several processes that work as one, the first holds
    it for all.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    if launched.rank():
        yield
        return
    made = not target.exists()
    try:
        with _hold(target / LOCK_FILE, target):
            remove_leftovers(target)
            yield
    finally:
        if made:
            with suppress(OSError):  # it holds something now
                target.rmdir()


@contextmanager
def locked_file(target: Path) -> Iterator[None]:
    """Hold the lock of one file while a block writes it; the lock lies beside it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    with _hold(target.with_name(f".{target.name}{LOCK_FILE}"), target):
        yield


@contextmanager
def _hold(path: Path, target: Path) -> Iterator[None]:
    owner = path.with_name(f"{path.name}{_OWNER_SUFFIX}")
    lock = FileLock(path, timeout=_SECONDS_TO_WAIT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        killed = _told(owner)
        owner.write_text(this_process(), encoding="utf-8", errors="replace")
    except Timeout as error:
        problem = f"{target} is being written by {_told(owner) or 'another process'}"
        raise UserError(problem, "Wait until it is done, or stop it") from error
    except OSError as error:
        problem = f"cannot write to {target}: {error.strerror}"
        raise UserError(problem, "Choose another folder, or fix its permissions") from error
    if killed:
        note(f"{target}: {killed} was killed while writing: lock taken over")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        # Removed while it is still held: a process that has opened it meanwhile finds it gone, and makes a new one.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _told(owner: Path) -> str:
    """Return what an owner's file says; nothing where there is none."""
    return owner.read_text(encoding="utf-8", errors="replace") if owner.is_file() else ""
