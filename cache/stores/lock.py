"""One writer at a time: a store, a run or an output is locked while a command writes it.

The lock is the kernel's (``flock``), so it ends with the process that holds it, however that ended. A small file beside
it says who holds the lock, for the line that the second process gets; where the lock is free and that file is still
there, its owner was killed.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from dptr.cache import launched
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import CHECKPOINTS_FOLDER, PREDICTIONS_FOLDER
from dptr.cache.progress import note
from dptr.cache.stores.files import open_regular, remove_leftovers, require_no_link
from dptr.cache.visible import without_credentials

LOCK_FILE = ".lock"
_OWNER_SUFFIX = ".owner.json"
_COMMAND_CHARACTERS = 160
#: Long enough for another process that has just finished to be out of the way.
_SECONDS_TO_WAIT = 0.2


@dataclass(frozen=True)
class Owner:
    """Who writes: process id, host, since when (local time, ISO 8601), and its command line."""

    pid: int
    host: str
    since: str
    command: str

    @classmethod
    def this_process(cls) -> Owner:
        """Describe this process."""
        program = Path(sys.argv[0]).name
        words = ["dptr" if program == "__main__.py" else program, *sys.argv[1:]]
        # What came from a terminal in another encoding must not fail here.
        command = (
            without_credentials(shlex.join(words)).encode("utf-8", "replace").decode("utf-8")[:_COMMAND_CHARACTERS]
        )
        return cls(os.getpid(), socket.gethostname(), datetime.now().isoformat(" ", "seconds"), command)

    def __str__(self) -> str:
        ended = self.host == socket.gethostname() and not psutil.pid_exists(self.pid)
        state = ", which has ended while its worker processes have not" if ended else ""
        return f"process {self.pid} on {self.host} since {self.since} (`{self.command}`{state})"


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
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(target, error) from error
    try:
        with _hold(target / LOCK_FILE, target):
            remove_leftovers(target)
            for folder in (CHECKPOINTS_FOLDER, PREDICTIONS_FOLDER):
                require_no_link(target / folder)
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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(target, error) from error
    with _hold(target.with_name(f".{target.name}{LOCK_FILE}"), target):
        yield


@contextmanager
def _hold(path: Path, target: Path) -> Iterator[None]:
    described = path.with_name(f"{path.name}{_OWNER_SUFFIX}")
    lock = FileLock(path, timeout=_SECONDS_TO_WAIT)
    try:
        lock.acquire()
    except Timeout as error:
        owner = _read_owner(described)
        raise UserError(
            f"{target} is being written by {owner or 'another process'}", "Wait until it is done, or stop it"
        ) from error
    except OSError as error:
        raise _not_writable(target, error) from error
    try:
        killed = _read_owner(described)
        if killed is not None:
            note(f"{target}: process {killed.pid} on {killed.host} was killed while writing: lock taken over")
        # Anew: a file that is there may be a symlink that leads elsewhere.
        described.unlink(missing_ok=True)
        with described.open("x", encoding="utf-8") as stream:
            json.dump(asdict(Owner.this_process()), stream)
        yield
    finally:
        described.unlink(missing_ok=True)
        # Removed while it is still held: a process that has opened it meanwhile finds it gone, and makes a new one.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> Owner | None:
    try:
        with open_regular(path) as stream:
            return Owner(**json.load(stream))
    except (OSError, DamagedStore, ValueError, TypeError):
        return None  # none there, or one that is being written just now


def _not_writable(target: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {target}: {error.strerror}", "Choose another folder, or fix its permissions")
