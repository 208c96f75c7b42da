"""Bars on a terminal, one line for each piece of work under way; what is printed meanwhile stands above them."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_BAR_WIDTH = 20


class TerminalBars:
    """The bars of one terminal, drawn by rich; they are gone when the last piece of work is done.

    They are drawn anew when work advances and not by a thread, as processes may be forked meanwhile.
    """

    def __init__(self, resident_megabytes: Callable[[], float]) -> None:
        self._resident_megabytes = resident_megabytes
        self._display: Progress | None = None

    def add(self, description: str, total: int | None, unit: str, done: int) -> TaskID:
        """Show a bar below those that are there."""
        if self._display is None:
            self._display = self._new_display()
        try:
            self._display.start()
            task = self._display.add_task(description, total=total, completed=done, unit=unit, detail="")
            self._display.refresh()
        except BaseException:  # interrupted before the caller has the bar to remove
            self._stop()
            raise
        return task

    def update(self, task: TaskID, done: int, detail: str) -> None:
        """Draw a bar as it stands now."""
        if self._display is not None:
            self._display.update(task, completed=done, detail=detail, refresh=True)

    def remove(self, task: TaskID) -> None:
        """Take a bar away; with the last one the cursor is shown again."""
        if self._display is None:
            return
        self._display.remove_task(task)
        if self._display.task_ids:
            self._display.refresh()
        else:
            self._stop()

    def _stop(self) -> None:
        display, self._display = self._display, None
        if display is not None:
            display.stop()

    def _new_display(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(_BAR_WIDTH),
            _CountColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            _MemoryColumn(self._resident_megabytes),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True, force_terminal=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f"/{task.total:,.0f}" if task.total is not None else ""
        return Text(f"{task.completed:,.0f}{total} {task.fields['unit']}", style="progress.download")


class _RateColumn(ProgressColumn):
    """Units a second over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class _MemoryColumn(ProgressColumn):
    """Resident memory of this process in MB."""

    def __init__(self, resident_megabytes: Callable[[], float]) -> None:
        super().__init__()
        self._resident_megabytes = resident_megabytes

    def render(self, task: Task) -> Text:
        return Text(f"{self._resident_megabytes():,.0f} MB", style="progress.filesize")
