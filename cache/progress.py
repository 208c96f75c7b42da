"""Progress of long work: rate, time left and memory; a bar on a terminal, plain lines elsewhere, always on stderr.

In a notebook it is a line with a bar below the cell, redrawn in place.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import psutil

from dptr.cache.notebook_line import NotebookLine, in_notebook

if TYPE_CHECKING:
    from rich.progress import TaskID

    from dptr.cache.terminal_bars import TerminalBars

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_CELL_LINES = 0.5
_SECONDS_BETWEEN_DRAWINGS = 0.1
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notes (errors still appear)."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether progress and notes are silenced."""
    return _quiet


def note(message: str) -> None:
    """Print one line for the user on stderr; it stands above the bars where there are some."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def resident_megabytes() -> float:
    """Return this process's resident memory in MB, mapped file pages included."""
    return float(psutil.Process().memory_info().rss) / 1e6


class Progress:
    """Counts finished units of work and shows how fast they come; see :func:`progress`."""

    def __init__(self, description: str, total: int | None, unit: str, done: int = 0) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = done
        self.detail = ""
        self._done_before = done
        self._started = time.monotonic()
        self._last_shown = self._started
        self._bar: TaskID | None = None
        self._cell: NotebookLine | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units a second, not counting what was done before this run."""
        return (self.done - self._done_before) / max(self.seconds, 1e-9)

    def advance(self, units: int = 1, detail: str = "") -> None:
        """Count ``units`` more; ``detail`` replaces the text behind the figures."""
        self.done += units
        if detail:
            self.detail = detail
        now = time.monotonic()
        if not _quiet and now - self._last_shown >= self._seconds_between():
            self._last_shown = now
            if self._cell is not None:
                self._cell.update(self.line(), self.done, self.total)
            elif self._bar is None:
                print(self.line(), file=sys.stderr, flush=True)
            else:
                _terminal_bars().update(self._bar, self.done, self.detail)

    def _seconds_between(self) -> float:
        if self._cell is not None:
            return _SECONDS_BETWEEN_CELL_LINES
        return _SECONDS_BETWEEN_LINES if self._bar is None else _SECONDS_BETWEEN_DRAWINGS

    def line(self) -> str:
        """Return the present state as one line."""
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}", f"{self.rate:,.0f}/s"]
        if self.total and self.rate > 0 and self.done < self.total:
            parts.append(f"{_clock((self.total - self.done) / self.rate)} left")
        parts.append(f"{resident_megabytes():,.0f} MB")
        return f"{self.description}: " + ", ".join(parts) + (f", {self.detail}" if self.detail else "")

    def start(self) -> None:
        """Show a bar where there is a terminal that can redraw its lines, or a notebook."""
        if not _quiet and in_notebook():
            self._cell = NotebookLine(self.line(), self.done, self.total)
        elif not _quiet and sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb"):
            self._bar = _terminal_bars().add(self.description, self.total, self.unit, self.done)

    def end(self) -> None:
        """Take the bar away and print the last state as a line."""
        if self._bar is not None:
            _terminal_bars().remove(self._bar)
        last = f"{self.line()}, {self.seconds:.1f} s"
        if self._cell is not None:
            self._cell.update(last, self.done, self.total)
        elif not _quiet:
            print(last, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, total: int | None, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a block of work.

    Args:
        description: what is being done, in plain words.
        total: units in all, or None when unknown.
        unit: what is counted, in the plural ("rows", "photos", "steps").
        done: units finished by an earlier run; they count for the share but not for the rate.
    """
    state = Progress(description, total, unit, done)
    try:
        state.start()
        yield state
    finally:
        state.end()


@cache
def _terminal_bars() -> TerminalBars:
    from dptr.cache.terminal_bars import TerminalBars

    return TerminalBars(resident_megabytes)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
