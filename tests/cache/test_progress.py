"""Progress on a terminal is one bar that goes when the work is done; elsewhere it is plain lines."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
WORK = """
    import sys, time
    from dptr.cache.progress import note, progress, set_quiet
    set_quiet("quiet" in sys.argv)
    with progress("reading", 40, "rows") as outer:
        for number in range(40):
            time.sleep(0.02)
            outer.advance(detail="loss 1.5")
            if number == 20:
                note("a [bold]note[/] meanwhile")
                with progress("checking", None, "words") as inner:
                    inner.advance(7)
            if number == 30 and "stuck" in sys.argv:
                note("stuck")
                time.sleep(60)
"""


def on_a_terminal(*arguments: str, interrupt: bool = False, **environment: str) -> str:
    """Run WORK with a pseudo-terminal for all its streams and return all that it wrote to it."""
    ours, theirs = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORK), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment},
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if interrupt and b"stuck" in written:
            interrupt = False
            time.sleep(0.2)
            started.send_signal(signal.SIGINT)
    os.close(ours)
    started.wait(timeout=60)
    return written.decode("utf-8")


def left_on_screen(written: str) -> list[str]:
    """Return the lines that a terminal shows in the end, of the few control sequences that bars use."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[1A":
            row -= 1
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif not piece.startswith("\x1b") and piece != "\r":
            lines[row] += piece
    return [line for line in lines if line.strip()]


def test_a_bar_shows_rate_time_left_and_memory() -> None:
    written = on_a_terminal()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert re.search(r"reading [━╸╺ ]+ \d+/40 rows, [\d,]+/s, 0:0\d left, [\d,]+ MB, loss 1\.5", plain)


def test_only_notes_and_last_embeddings_stay_on_the_screen() -> None:
    left = left_on_screen(on_a_terminal())
    assert len(left) == 3, left
    assert left[0] == "a [bold]note[/] meanwhile"
    assert left[1].startswith("checking: 7 words")
    assert left[2].startswith("reading: 40/40 rows")


@pytest.mark.usefixtures("signals_are_heard")
def test_ctrl_c_leaves_the_cursor_visible_and_no_bar() -> None:
    written = on_a_terminal("stuck", interrupt=True)
    assert "KeyboardInterrupt" in written
    assert HIDDEN in written
    assert written.rindex(SHOWN) > written.rindex(HIDDEN)
    assert not any("━" in line for line in left_on_screen(written))


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    written = on_a_terminal(TERM="dumb")
    assert "\x1b" not in written
    assert "reading: 40/40 rows" in written


def test_quiet_is_silent_on_a_terminal() -> None:
    assert on_a_terminal("quiet") == ""


def test_elsewhere_progress_is_plain_lines_without_rich() -> None:
    code = textwrap.dedent(WORK) + "\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert "\x1b" not in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "a [bold]note[/] meanwhile",
        "checking",
        "reading",
    ]
