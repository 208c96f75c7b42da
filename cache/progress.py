"""Progress of long work on stderr: rate, time left, memory; a bar on a terminal, else lines."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from dptr.cache.printing import without_credentials

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_REDRAWS = 0.2
_BAR_WIDTH = 20
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notes (errors still appear)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether progress and notes are silenced."""
    return _quiet


def note(message: str) -> None:
    """Print one line for the user on stderr, above the progress bars if there are any."""
    if not _quiet:
        print(without_credentials(message), file=sys.stderr, flush=True)


def resident_megabytes() -> float:
    """Return this process's resident memory in MB, mapped file pages included."""
    return float(psutil.Process().memory_info().rss) / 1e6


class Progress:
    """Counts finished units of work and shows their rate; see :func:`progress`."""

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0) -> None:
        self.description = without_credentials(description)
        self.total = total
        self.unit = unit
        self.done = done
        self.detail = ""
        self._done_before = done
        self._started = time.monotonic()
        self._last_shown = self._started
        self._bar: int | None = None
        self._in_notebook = _in_notebook()

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units a second, not counting what was done before this run."""
        return (self.done - self._done_before) / max(self.seconds, 1e-9)

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Count ``units`` more; ``detail`` replaces the text after the figures."""
        self.done += units
        self.detail = detail or self.detail
        now = time.monotonic()
        redraws = self._in_notebook or self._bar is not None
        between = _SECONDS_BETWEEN_REDRAWS if redraws else _SECONDS_BETWEEN_LINES
        if _quiet or now - self._last_shown < between:
            return
        self._last_shown = now
        if self._bar is not None:
            _bars().update(self._bar, completed=self.done, figures=self._figures(), refresh=True)
        else:
            self._print(self.line())

    def line(self) -> str:
        """Return the present state as one line."""
        return f"{self.description}: {self._figures()}"

    def _figures(self) -> str:
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}", self._speed()]
        if self.total and self.rate > 0 and self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / self.rate)} left")
        parts += [f"{resident_megabytes():,.0f} MB", self.detail]
        return ", ".join(part for part in parts if part)

    def _speed(self) -> str:
        if 0 < self.rate < 1:
            return f"{1 / self.rate:,.1f} s a {self.unit.removesuffix('s')}"
        return f"{self.rate:,.0f}/s"

    def start(self) -> None:
        """Show a bar on a terminal that can redraw lines."""
        if not _quiet and _isatty(sys.stderr) and os.environ.get("TERM") not in (None, "", "dumb"):
            display = _bars()
            display.start()
            self._bar = display.add_task(
                self.description, total=self.total, completed=self.done, figures=self._figures()
            )

    def end(self) -> None:
        """Remove the bar and print the last state as a line."""
        if self._bar is not None:
            _bars().remove_task(self._bar)
            if not _bars().task_ids:
                _bars().stop()
        if not _quiet:
            self._print(f"{self.line()}, {self.seconds:.1f} s", end="\n")

    def _print(self, line: str, end: str | None = None) -> None:
        # A notebook redraws the line after a carriage return.
        before, after = ("\r", "") if self._in_notebook else ("", "\n")
        print(f"{before}{line}", file=sys.stderr, end=end or after, flush=True)


@contextmanager
def progress(description: str, total: int | None, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a block of work.

    Args:
        description: of the work, for people.
        total: units in all, or None when unknown.
        unit: what is counted, in the plural ("rows", "photos", "steps").
        done: units finished by an earlier run; they count for the fraction but not for the rate.
    """
    state = Progress(description, total, unit, done)
    try:
        state.start()
        yield state
    finally:
        state.end()


@cache
def _bars() -> Any:
    """Return rich's display of all current work; redrawn on updates, because threads do not survive a fork."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(stderr=True, force_terminal=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=_isatty(sys.stdout),
    )


def _isatty(stream: Any) -> bool:
    # A stream is None or closed where the shell closed it (``2>&-``).
    return stream is not None and not stream.closed and bool(stream.isatty())


def _in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


if _in_notebook():
    # tqdm warns with a path of this machine that widgets are missing; they are not used here.
    warnings.filterwarnings("ignore", "IProgress not found")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
