"""Ctrl-C, SIGTERM and a lost terminal: what was asked to be saved is saved, however often they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dptr.cache.interrupts import deferred, interruptible, stop_once

LONG_QUERY = "select count(*) from range(10000000000) a, range(100000) b"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_and_later_ones_leave_its_saving_alone(number: signal.Signals) -> None:
    saved = False
    with pytest.raises(KeyboardInterrupt), stop_once():
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except KeyboardInterrupt:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            saved = True
            raise
    assert saved


def test_a_signal_during_saving_takes_effect_behind_it() -> None:
    saved = False
    with pytest.raises(KeyboardInterrupt), stop_once():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            saved = True
        pytest.fail("the signal was lost")
    assert saved


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_once(), deferred():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_long_work_is_told_to_stop() -> None:
    told: list[str] = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while not told:
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), stop_once():
        interruptible(work, lambda: told.append("stop"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_query_that_takes_for_ever_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"kind": "pretrain"}')
    command = [sys.executable, "-m", "dptr", "sql", LONG_QUERY, "--workspace", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert said.startswith("error: interrupted")
