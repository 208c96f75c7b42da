"""Ctrl-C, SIGTERM and a lost terminal: what was asked to be saved is saved, however often they come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dptr.cache.processes import deferred, stop_once
from dptr.cache.stores import checksummed
from dptr.trainer.training.checkpoint import load_state

pytestmark = pytest.mark.usefixtures("signals_are_heard")
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_query_that_takes_for_ever_ends_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    checksummed.write_json(run / "run.json", {"kind": "pretrain"})
    command = [sys.executable, "-m", "dptr", "sql", LONG_QUERY, "--workspace", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # Starting takes less than that; the rest is the query's.
        while process.poll() is None and psutil.Process(process.pid).cpu_times().user < 1.5:
            time.sleep(0.1)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert said.startswith("error: interrupted")


SMALL = ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1", "pretrain.batch_size=4"]
SELDOM = ["pretrain.log_every=1", "pretrain.validate_every=100000", "pretrain.checkpoint_every=100000"]


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_close_to_each_other_leave_a_training_its_last_step(
    stores: Path, tmp_path: Path, first: signal.Signals, forked_python: str
) -> None:
    run = tmp_path / "run"
    changes = [f"--set={change}" for change in SMALL + SELDOM]
    command = [forked_python, "-m", "dptr", "pretrain", "--steps", "100000", *changes, "-o", str(run)]
    command += ["--workspace", str(stores), "--device", "cpu", "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        waited_until = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < waited_until:
            time.sleep(0.05)
        process.send_signal(first)
        time.sleep(0.03)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("error: interrupted; rerun the command to resume")
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    kept = load_state(run / "checkpoints" / "last")["step"]
    assert 0 < logged <= kept <= logged + 1, "nothing is lost"
