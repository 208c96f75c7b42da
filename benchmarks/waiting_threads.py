"""What torch's threads cost while they wait for each other, alone and beside other programs.

Between two pieces of work a thread of libgomp spins for a while before it sleeps. Where other programs want the same
cores it spins in their way, and they in its. What the OpenMP library is told is read from the environment when torch
is loaded, so each setting has a process of its own; the processes take turns, a slice of seconds each.

pretrain   steps of the recipe's decoder on made-up text states
finetune   steps of its recogniser on made-up pictures
read       batches of pictures read

--busy is how many programs that never rest run beside it: one line of figures for each setting and number. Steps a
second are all steps by all seconds; the slowest slice and the processor's milliseconds a step stand beside them, and
the median of the ratio to the first setting's slice of the same turn.

Smallest size: --settings OMP_NUM_THREADS=1 --busy 1 --slices 1 --seconds 0.01 --batch 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from charset_size import runs_of
from judged import at_least

from dptr.cache.errors import run_script
from dptr.trainer.recipe import load_recipe

WAYS = ("pretrain", "finetune", "read")
SETTINGS = ("default", "GOMP_SPINCOUNT=10000", "OMP_WAIT_POLICY=passive", "OMP_NUM_THREADS=1")
#: What the OpenMP libraries that torch is built with read.
_READ_BY_OPENMP = ("OMP_", "GOMP_", "KMP_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings", type=setting, nargs="+", default=list(SETTINGS), help="`default` or NAME=VALUE[,NAME=VALUE]"
    )
    parser.add_argument("--busy", type=at_least(0), nargs="+", default=[0, 2])
    parser.add_argument("--slices", type=at_least(1), default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one slice")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.recipe, arguments.batch)
        return
    load_recipe(arguments.recipe)
    print(f"recipe {arguments.recipe}, batch {arguments.batch}, {os.cpu_count()} cores\n")
    print(f"{'busy':>4}  {'':10}{'setting':34}{'steps/s':>9}{'slowest':>9}{'CPU ms':>9}{'to first':>10}")
    with contextlib.ExitStack() as stack:
        asked = ["--recipe", arguments.recipe, "--batch", str(arguments.batch)]
        workers = {setting: stack.enter_context(Worker(setting, asked)) for setting in arguments.settings}
        for busy in arguments.busy:
            with programs_that_never_rest(busy):
                for way in arguments.ways:
                    compare(busy, way, workers, arguments.slices, arguments.seconds)


def setting(text: str) -> str:
    """Return what was given for ``--settings`` if it can be set."""
    if text != "default" and not all(part.partition("=")[0] and "=" in part for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is neither `default` nor NAME=VALUE")
    return text


def compare(busy: int, way: str, workers: dict[str, Worker], slices: int, seconds: float) -> None:
    """Let the settings take turns, and print a line for each."""
    turns = [{setting: worker.slice(way, seconds) for setting, worker in workers.items()} for _ in range(slices)]
    first = next(iter(workers))
    for setting in workers:
        steps, walls, cpus = zip(*(turn[setting] for turn in turns), strict=True)
        rates = [count / wall for count, wall in zip(steps, walls, strict=True)]
        ratios = [rate * turn[first][1] / turn[first][0] for rate, turn in zip(rates, turns, strict=True)]
        print(f"{busy:4}  {way:10}{setting:34}{sum(steps) / sum(walls):9.2f}{min(rates):9.2f}", end="")
        print(f"{1000 * sum(cpus) / sum(steps):9.1f}{statistics.median(ratios):10.2f}", flush=True)


class Worker:
    """A process with one setting, which works when it is told to."""

    def __init__(self, setting: str, asked: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_READ_BY_OPENMP)}
        if setting != "default":
            environment |= dict(part.split("=", 1) for part in setting.split(","))
        command = [sys.executable, __file__, "--work", *asked]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def slice(self, way: str, seconds: float) -> tuple[int, float, float]:
        """Work for that long; return steps done, seconds by the clock and seconds of processor time."""
        if self._process.stdin is None:
            raise ValueError("the worker takes no orders")
        self._process.stdin.write(f"{way} {seconds}\n")
        self._process.stdin.flush()
        steps, wall, cpu = json.loads(self._answer())
        return steps, wall, cpu

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("a worker ended before its work; what it said stands above")
        return line

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def work(recipe: str, batch: int) -> None:
    """Do what standard input orders, slice by slice, and answer each on standard output."""
    runs = runs_of(94, load_recipe(recipe, [], {}), batch, "fp32", torch.device("cpu"))
    for way in WAYS:
        runs[way]()  # the first one is slow
    print("ready", flush=True)
    for order in sys.stdin:
        way, seconds = order.split()
        steps, started, used = 0, time.perf_counter(), time.process_time()
        while not steps or time.perf_counter() - started < float(seconds):
            runs[way]()
            steps += 1
        print(json.dumps((steps, time.perf_counter() - started, time.process_time() - used)), flush=True)


@contextlib.contextmanager
def programs_that_never_rest(count: int) -> Iterator[None]:
    """Keep that many cores busy meanwhile."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    run_script(main)
