"""This process: the processors it may use, its rank among several, and the signals that end it.

A container with a CPU quota still sees all cores of its host. torch would start a thread for each, and their spinning
would use up the quota.

Launchers set ``RANK`` and ``WORLD_SIZE`` in the environment, so no library needs to be imported.

Python raises :class:`KeyboardInterrupt` at every Ctrl-C, also while the first one is being handled by saving.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dptr.cache.errors import UserError

_OPENMP_THREADS = "OMP_NUM_THREADS"


def usable_processors(root: Path = Path("/")) -> int:
    """Return the number of usable cores, fewer if control groups limit CPU time: at least 1.

    ``root`` is the folder of Linux's ``proc`` and ``sys``.
    """
    # A thread with part of a core would delay all others, so fractions do not count.
    return max(1, min([_cores(), *(int(granted) for granted in _granted(root))]))


def start_no_more_threads_than_usable() -> None:
    """Limit OpenMP's threads, set before torch is loaded, to the CPU quota; keep a value that is set."""
    usable = usable_processors()
    if usable < _cores():
        os.environ.setdefault(_OPENMP_THREADS, str(usable))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """Yield the CPU limits, in cores, of this process's control groups (version 2)."""
    top, groups = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    if not groups.exists():
        return
    path = groups.read_text(encoding="utf-8").rpartition("0::")[2].strip()
    # In a container the path may be the host's, with the container's own group as root.
    inner = top / path.lstrip("/")
    for group in (inner, *inner.parents):
        if group.is_relative_to(top) and (group / "cpu.max").exists():
            # Microseconds of processor time in each period, and the period.
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
            if quota != "max":
                yield int(quota) / int(period)


def rank() -> int:
    """Return this process's number, counted from 0: rank 0 writes and prints."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """Return the number of processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def hush_torch() -> None:
    """Silence warnings of torch's C++ code, which every process would print; call it before torch is imported."""
    if size() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def require_alone(command: str) -> None:
    """Check that a single-process command is alone.

    Raises:
        UserError: a launcher started several.
    """
    if size() > 1:
        raise UserError(
            f"{size()} processes were started, and dptr {command} works in one",
            "Start it without torchrun; for stage 1 use `--part`; only pretrain and finetune run in several processes",
        )


_Result = TypeVar("_Result")
_Handler = Callable[[int, Any], Any]
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stop_once(ending: bool = False) -> Iterator[None]:
    """Raise :class:`KeyboardInterrupt` at the first signal and ignore later ones, so that saving completes.

    With ``ending`` the process ends after the block: later signals are ignored there, too.
    """
    stopping = False

    def stop(*_: Any) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    with _handled_by(stop, keep=lambda: ending and stopping):
        yield


def ignore_from_now_on() -> None:
    """Ignore signals while the process ends: Python would restore the system's handlers, which change the exit code."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def collected() -> Iterator[list[int]]:
    """Yield a list to which signals are added while a block runs, for polling."""
    came: list[int] = []
    with _handled_by(lambda number, _: came.append(number)):
        yield came


@contextmanager
def deferred() -> Iterator[None]:
    """Let a block finish, such as one that saves; a signal that arrives meanwhile takes effect after it."""
    with collected() as came:
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Make a block's child processes ignore Ctrl-C, which a terminal also sends to them: the parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interruptible(work: Callable[[], _Result], stop: Callable[[], None]) -> _Result:
    """Run what stays outside Python for long, where Python handles no signal; on one call ``stop``, re-raise."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(work)
        try:
            return running.result()
        except KeyboardInterrupt:
            stop()
            raise


@contextmanager
def _handled_by(handler: _Handler, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Set ``handler`` for the signals, except those that this process was started to ignore (``nohup``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: known for number, known in before.items() if known not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items() if not keep() else ():
            signal.signal(number, known)
