"""The time to quality: what is kept of a curve, and where it ends."""

from __future__ import annotations

import importlib
from argparse import Namespace
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HELD_OUT = np.arange(2)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a clock that ticks once whenever it is read."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("time_to_quality")
    ticks = count()
    monkeypatch.setattr(module, "stopwatch", lambda _: lambda: float(next(ticks)))
    return module


class SlowLearner:
    """Reads one of two words more with every third step, and stops like a killed program at ``killed_at``."""

    def __init__(self, killed_at: int) -> None:
        self.taken, self._killed_at = 0, killed_at
        self.store = SimpleNamespace(labels_of=lambda _: ["red", "oak"])

    def step(self) -> int:
        self.taken += 1
        if self.taken == self._killed_at:
            raise KeyboardInterrupt
        return 4

    def read(self, _: Any) -> list[str]:
        return ["red" if self.taken >= 3 else "", "oak" if self.taken >= 6 else ""]


def test_what_was_read_before_a_kill_is_kept(benchmark: ModuleType) -> None:
    kept: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        benchmark.time_to_goal(SlowLearner(5), HELD_OUT, 0.0, Namespace(limit=9, every=1, goal=0.9), kept.append)
    assert [(point["seconds"], point["steps"], point["accuracy"]) for point in kept] == [(1, 1, 0.0), (3, 3, 0.5)]


def test_a_curve_ends_at_the_goal_or_at_the_limit(benchmark: ModuleType) -> None:
    for limit, reached in ((9, 7.0), (5, None)):
        kept: list[dict[str, Any]] = []
        given = Namespace(limit=limit, every=1, goal=0.9)
        assert benchmark.time_to_goal(SlowLearner(99), HELD_OUT, 0.0, given, kept.append) == reached
        assert kept[-1]["right"] == [True, reached is not None]
