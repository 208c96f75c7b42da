"""Errors for users: problem, place, fix, and exit code.

Any other exception of a command is a bug and exits with 1.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from subprocess import CalledProcessError
from typing import TYPE_CHECKING

from dptr.cache.printing import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.exceptions import TyperException

_NOT_THERE = "Name a place where a file or folder can be written"
#: Out-of-memory messages of torch's allocator, the system, CUDA, oneDNN and Python's threads.
_OUT_OF_MEMORY = (
    "allocate memory",
    "ALLOC_FAILED",
    "could not create a primitive",
    "can't start new thread",
)
#: Errors of a disk by errno, with advice; the user can fix them, so the exit code is 2.
OF_THE_DISK = {
    errno.ENOSPC: "Free some space, then rerun the command",
    errno.EDQUOT: "Free some space, then rerun the command",
    errno.EFBIG: "Use a file system that holds larger files",
    errno.EROFS: "Name a place that can be written",
    errno.EACCES: "Fix the permissions, or name another place",
    errno.EPERM: "Fix the permissions, or name another place",
    errno.EEXIST: _NOT_THERE,
    errno.EISDIR: _NOT_THERE,
    errno.ENOTDIR: _NOT_THERE,
    errno.ENOENT: _NOT_THERE,
    errno.ENOTEMPTY: _NOT_THERE,
    errno.ENAMETOOLONG: "Use a shorter name",
    errno.EMFILE: "Allow more open files: ulimit -n 4096",
}


class DptrError(Exception):
    """An expected failure. ``str(error)`` is one line: the problem, its place, and the fix."""

    exit_code = 1

    def __init__(self, problem: str, advice: str = "") -> None:
        # Messages of libraries and contents of files may have several lines.
        problem = without_credentials(" ".join(problem.splitlines()))
        self.problem = problem
        self.advice = advice
        super().__init__(f"{problem.rstrip('.')}. {advice}" if advice else problem)


class UserError(DptrError):
    """Bad usage, configuration or input."""

    exit_code = 2


class DamagedStore(DptrError):
    """Stored data is damaged, or two stores do not belong together."""

    exit_code = 3


class TooManyRejected(DptrError):
    """More inputs were rejected than the caller allowed."""

    exit_code = 4


def disk_error(error: Exception) -> OSError | None:
    """Return the error of a disk, also from libraries in Rust, which give only its text; None for other errors."""
    if isinstance(error, OSError):
        return error if error.errno in OF_THE_DISK else None
    code = re.search(r"\(os error (\d+)\)", str(error))
    if code is None or int(code[1]) not in OF_THE_DISK:
        return None
    path = re.search(r'at path "(.*)"', str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), path[1] if path else "writing")


def disk_problem(error: OSError) -> str:
    """Describe a disk error and its path in one line."""
    if error.filename is None:  # a file that was open already
        return f"writing: {error.strerror}" if error.strerror else str(error)
    # Of two names the second is the destination.
    name = error.filename2 if error.filename2 is not None else error.filename
    return f"{name}: {error.strerror}"


#: What other programs call commands -> those of dptr.
_OTHER_NAMES = {
    "train": "'finetune' (on labelled crops) or 'pretrain' (on text)",
    "predict": "'read'",
    "test": "'evaluate'",
}


def usage_problem(error: TyperException) -> str:
    """Describe a usage error, and name the command whose help to read."""
    context = getattr(error, "ctx", None)
    command = f"dptr {context.info_name}" if context is not None and context.parent else "dptr"
    said = error.format_message().rstrip(".")
    for typed, meant in _OTHER_NAMES.items():
        if said.startswith(f"No such command '{typed}'"):
            said = f"No such command '{typed}'. Did you mean {meant}?"
    return f"{said}{'' if said.endswith('?') else '.'} See `{command} --help`"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory of the CPU or a GPU is exhausted."""
    # On the CPU torch has no error class for it; a GPU's is recognised by name, as torch is not imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(message in str(error) for message in _OUT_OF_MEMORY)


def run_script(main: Callable[[], object]) -> None:
    """Run the ``main`` of a script: input errors exit with one line, bugs keep their traceback."""
    try:
        main()
    except DptrError as error:
        code, problem = error.exit_code, str(error)
    except CalledProcessError as error:
        # That process has printed it.
        sys.exit(error.returncode)
    except OSError as error:
        if error.filename is None:
            raise
        code, problem = 2, disk_problem(error)
    else:
        return
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(code)


def require_at_least(least: int, **settings: int | None) -> None:
    """Check that every setting is ``least`` or more; None means that it is not set.

    Raises:
        UserError: one is smaller; the message names its command-line option.
    """
    for name, value in settings.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}", f"Give {least} or more")
