"""How pieces of work are carried out: in this process, in several, or by Ray (:mod:`.ray_cluster`).

A step gives an executor its pieces in order and gets the results in that order; it does not know which one it has.
A piece is worked on in two steps: the function that a worker has been given computes, and what it returns finishes,
such as by writing a file; in this process one piece is finished while the next is computed.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dptr.cache.interrupts import unheard_by_children

Item = TypeVar("Item")
Light = TypeVar("Light")
Result = TypeVar("Result")
#: Computes a piece; what it returns finishes it.
Work = Callable[[Any], Callable[[], Result]]


@dataclass(frozen=True)
class Worker(Generic[Result]):
    """What works on pieces.

    Attributes:
        here: in this process. make: called once in each worker elsewhere, ``given`` -> what does the same there.
    """

    here: Work[Result]
    make: Callable[..., Work[Result]]
    given: Sequence[Any]


class Executor(Protocol):
    """Carries out work; results come in the order of the items."""

    def in_order(self, worker: Worker[Result], items: Iterable[Any]) -> Iterator[Result]:
        """Yield what workers make of items.

        Raises:
            DptrError: what a worker raised.
        """

    def read_ahead(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Light, Any]], workers: int
    ) -> Iterator[tuple[Item, Light, Any]]:
        """Yield each item with the two parts of what ``read`` made of it; the second is for workers alone."""


class InProcess:
    """One piece after the other in this process."""

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
        # A fork would inherit whatever threads the caller's libraries run; a spawned process starts clean.
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
