"""One writer at a time: a store, a run or an output is locked while a command writes it.

The lock is the kernel's (``flock``), which releases it when the owner ends for any reason. A small file names the
owner; if the lock is free and the file exists, its owner was killed.
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

from dptr.cache import processes
from dptr.cache.errors import UserError
from dptr.cache.printing import without_credentials
from dptr.cache.progress import note
from dptr.cache.stores.files import remove_leftovers

LOCK_FILE = ".lock"
_OWNER_SUFFIX = ".owner"
_COMMAND_CHARACTERS = 160
#: Long enough for a process that is about to end to release the lock.
_SECONDS_TO_WAIT = 0.2


def this_process() -> str:
    """Describe this process: id, host, start time and command line."""
    program = Path(sys.argv[0]).name
    words = ["dptr" if program == "__main__.py" else program, *sys.argv[1:]]
    command = without_credentials(shlex.join(words))[:_COMMAND_CHARACTERS]
    since = datetime.now().isoformat(" ", "seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since} (`{command}`)"


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing, while a block writes into it.

    Unfinished files of a killed writer are removed. Of several processes of one training, rank 0 holds the lock.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    if processes.rank():
        yield
        return
    made = not target.exists()
    try:
        with _hold(target / LOCK_FILE, target):
            remove_leftovers(target)
            yield
    finally:
        if made:
            with suppress(OSError):  # the folder is not empty any more
                target.rmdir()


@contextmanager
def locked_file(target: Path) -> Iterator[None]:
    """Hold the lock of one file, in a file beside it, while a block writes it.

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
        killed = _content_of(owner)
        owner.write_text(this_process(), encoding="utf-8", errors="replace")
    except Timeout as error:
        problem = f"{target} is being written by {_content_of(owner) or 'another process'}"
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
        # Removed while the lock is held: a process that has opened it meanwhile detects this and makes a new one.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _content_of(owner: Path) -> str:
    """Return the content of an owner's file; empty if there is none."""
    return owner.read_text(encoding="utf-8", errors="replace") if owner.is_file() else ""
