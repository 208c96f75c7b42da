"""Signals that end a command without corrupting its output: Ctrl-C, SIGTERM and a lost terminal (SIGHUP).

Python raises :class:`KeyboardInterrupt` at every Ctrl-C, also while the first one is being handled by saving.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

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
