"""Work in order, one after another in this process or several at once in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from dptr.cache.errors import DptrError
from dptr.cache.processors import usable_processors
from dptr.cache.progress import set_quiet

Task = TypeVar("Task")
Result = TypeVar("Result")
_SECONDS_TO_SAVE = 60


def run_all(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | DptrError]]:
    """Yield each task with its result, or with the error that it is known to fail with, as they are finished.

    Args:
        work: what to do; with more than one job it is sent to other processes, as are tasks and results.
        tasks: what to do it on. jobs: how many at once; the cores are shared out among them.
    """
    if jobs > 1:
        yield from _in_processes(work, tasks, jobs)
        return
    for task in tasks:
        yield task, _attempt(work, task)


def _attempt(work: Callable[[Task], Result], task: Task) -> Result | DptrError:
    try:
        return work(task)
    except DptrError as error:
        return error


def _in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | DptrError]]:
    context = multiprocessing.get_context("spawn")
    threads = max(1, usable_processors() // jobs)
    waiting, running = list(tasks), dict[Connection, tuple[Task, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                answer, ours = context.Pipe(duplex=False)
                started = context.Process(target=_worker, args=(ours, work, task, threads))
                started.start()
                ours.close()
                running[answer] = (task, started)
            for ready in wait(list(running)):
                if isinstance(ready, Connection):
                    task, process = running.pop(ready)
                    yield task, _answer(ready, process)
    finally:
        # Each saves the state of its training before it ends.
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(_SECONDS_TO_SAVE)


def _answer(answer: Connection, process: BaseProcess) -> Any:
    try:
        result = answer.recv()
    except EOFError:
        result = None
    process.join()
    if result is None:
        raise RuntimeError(f"a worker process ended with exit code {process.exitcode}")
    kind, value = result
    if kind == "unexpected":
        raise RuntimeError(value)
    return value


def _worker(answer: Connection, work: Callable[[Any], Any], task: Any, threads: int) -> None:
    import torch

    signal.signal(signal.SIGTERM, _interrupt)
    set_quiet(True)
    torch.set_num_threads(threads)
    try:
        answer.send(("done", _attempt(work, task)))
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        answer.send(("unexpected", f"{type(error).__name__}: {error}"))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
