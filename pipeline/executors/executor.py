"""Executors: in this process, in several, or on Ray (:mod:`.ray_cluster`).

A step passes items to an executor and gets the results in the same order, independent of the executor. An item has two
phases: a worker's function computes, and the function that it returns finishes, for example by writing a file. In this
process an item is finished while the next is computed.

`--part 3/16`: the third of sixteen parts of a command's work, which are made independently.

The numbers of a store's shards depend only on the inputs, so a part makes every sixteenth shard. It writes them into a
folder beside the store, from which `dptr merge` moves them.
"""

from __future__ import annotations

import multiprocessing
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dptr.cache.errors import UserError
from dptr.cache.processes import unheard_by_children

Item = TypeVar("Item")
Light = TypeVar("Light")
Result = TypeVar("Result")
#: Computes an item; the returned function finishes it.
Work = Callable[[Any], Callable[[], Result]]


@dataclass(frozen=True)
class Worker(Generic[Result]):
    """Function that works on items.

    Attributes:
        here: in this process. make: called once in each other worker; ``given`` -> the same function there.
    """

    here: Work[Result]
    make: Callable[..., Work[Result]]
    given: Sequence[Any]


class Executor(Protocol):
    """Runs work; results are in the order of the items."""

    def in_order(self, worker: Worker[Result], items: Iterable[Any]) -> Iterator[Result]:
        """Yield the workers' results for items.

        Raises:
            DptrError: what a worker raised.
        """

    def read_ahead(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Light, Any]], workers: int
    ) -> Iterator[tuple[Item, Light, Any]]:
        """Yield each item with the two results of ``read``; the second is only for workers."""


class InProcess:
    """Sequential work in this process."""

    def in_order(self, worker: Worker[Result], items: Iterable[Any]) -> Iterator[Result]:
        """See :class:`Executor`."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            finishing: Future[Result] | None = None
            for item in items:
                finish = worker.here(item)
                if finishing is not None:
                    yield finishing.result()
                finishing = pool.submit(finish)
            if finishing is not None:
                yield finishing.result()

    def read_ahead(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Light, Any]], workers: int
    ) -> Iterator[tuple[Item, Light, Any]]:
        """See :class:`Executor`; ``workers`` threads read."""
        for item, (light, heavy) in read_ahead(items, read, workers):
            yield item, light, heavy


class Processes(InProcess):
    """Several processes of this machine, for work without a model."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def in_order(self, worker: Worker[Result], items: Iterable[Any]) -> Iterator[Result]:
        """See :class:`Executor`."""
        # Spawned, because a fork would inherit the state of threads of the caller's libraries.
        with unheard_by_children():
            started = multiprocessing.get_context("spawn").Pool(self._workers, _set_work, (worker.make, worker.given))
        with started as pool:
            yield from pool.imap(_work_on, items)


_work: Work[Any]


def _set_work(make: Callable[..., Work[Any]], given: Sequence[Any]) -> None:
    global _work
    _work = make(*given)


def _work_on(item: Any) -> Any:
    return _work(item)()


IN_PROCESS = InProcess()


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result], workers: int) -> Iterator[tuple[Item, Result]]:
    """Yield every item with ``read`` of it, in order; ``workers`` threads are a few items ahead.

    Threads, not processes: Pillow, hashing and reading let other threads run, and nothing has to be copied.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > 4 * workers:
                    done, result = waiting.popleft()
                    yield done, result.result()
            while waiting:
                done, result = waiting.popleft()
                yield done, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


_MOST = 100_000


@dataclass(frozen=True)
class Part:
    """One of ``of`` parts, counted from 1; by default the only one."""

    number: int = 1
    of: int = 1

    @classmethod
    def named(cls, text: str | None) -> Part:
        """Read ``3/16``; None is the whole.

        Raises:
            UserError: it is no such text.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, of = (int(digits) for digits in match.groups()) if match else (0, 0)
        if not 1 <= number <= of <= _MOST:
            raise UserError(f"--part {text} is not a part", "Use NUMBER/TOTAL counted from 1, such as 3/16")
        return cls(number, of)

    @property
    def is_whole(self) -> bool:
        """Whether it is the only part."""
        return self.of == 1

    def has(self, number: int) -> bool:
        """Return whether this part makes item ``number``, counted from 0."""
        return number % self.of == self.number - 1

    def stretch(self, count: int) -> range:
        """Return this part's contiguous range of ``count`` items."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    def beside(self, out: Path, ending: str = "") -> Path:
        """Return the folder of this part of ``out``; ``out`` itself if it is the only part."""
        return out if self.is_whole else parts_folder(out) / f"{self}{ending}"

    def __str__(self) -> str:
        return f"{self.number:0{len(str(self.of))}}-of-{self.of}"


WHOLE = Part()


def parts_folder(out: Path) -> Path:
    """Return the folder that the parts of ``out`` lie in."""
    return out.with_name(f"{out.name}.parts")
