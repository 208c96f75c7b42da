"""Stage 1 on a Ray cluster, `--engine ray`: workers make a store's shards, which are committed here, in order.

Ray starts them, moves what they need, and starts again what is lost: a worker that dies costs the shard that it had in
hand. Shards are cut here, behind as many usable inputs as on one machine, and handed out as they are cut; the workers
run the same function on them as one machine does. So hashes are equal, too.

Ray's tasks and actors do that, rather than its data sets: which inputs make a shard is known only when those of the
shards before it are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from dptr.cache.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
#: So that a worker never waits for the next piece of work.
_IN_HAND = 2


class Cluster:
    """The workers of a Ray cluster that this process has joined; see :func:`joined`."""

    def __init__(self, workers: int | None, with_gpus: bool) -> None:
        resources = _resources()
        gpus = int(resources.get("GPU", 0)) if with_gpus else 0
        self._gpus = 1 if gpus else 0
        self.workers = workers or gpus or max(1, int(resources.get("CPU", 1)))

    def crew(self, make: Callable[..., Callable[[Item], Result]], given: Sequence[Any]) -> Crew[Item, Result]:
        """Start the workers.

        Args:
            make: called in each worker when it starts: ``given`` -> what turns an item into a result.
            given: what the workers are made with.
        """
        import ray

        # No CPU is set aside for workers: they would leave none to tasks that read ahead.
        kind = ray.remote(
            max_restarts=-1, max_task_retries=-1, num_cpus=0, num_gpus=self._gpus, scheduling_strategy="SPREAD"
        )(_Worker)
        return Crew([kind.remote(make, given) for _ in range(self.workers)])

    def in_order(
        self, make: Callable[..., Callable[[Item], Result]], given: Sequence[Any], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield what workers make of items, in the items' order; items are taken as workers come free.

        Raises:
            DptrError: what a worker raised.
        """
        with self.crew(make, given) as crew:
            for item in items:
                yield from crew.give(item)
            yield from crew.finish()

    def read_ahead(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Result, Any]]
    ) -> Iterator[tuple[Item, Result, Any]]:
        """Yield each item with the two parts of what ``read`` made of it on some CPU, in order.

        The second part, which may be large, stays in the cluster until a worker takes it (:func:`fetched`).
        """
        import ray

        shared, waiting = ray.put(read), deque[Any]()
        task = ray.remote(num_returns=2, max_retries=-1, scheduling_strategy="SPREAD")(_call)
        ahead = 4 * max(1, int(_resources().get("CPU", 1)))
        for item in items:
            parts: Any = task.remote(shared, item)
            waiting.append((item, *parts))
            if len(waiting) > ahead:
                done, first, second = waiting.popleft()
                yield done, _result(first), second
        for done, first, second in waiting:
            yield done, _result(first), second


class Crew(Generic[Item, Result]):
    """Workers that were started alike; leaving the block that it is used in ends them."""

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self._given = 0
        # Items are kept with what will come of them: a worker that is started again needs them again.
        self._waiting: deque[tuple[Item, Any]] = deque()

    def give(self, item: Item) -> Iterator[Result]:
        """Hand out an item; yield results that are due, those of the oldest items, and wait for them."""
        worker = self._workers[self._given % len(self._workers)]
        self._waiting.append((item, worker.work.remote(item)))
        self._given += 1
        if len(self._waiting) > _IN_HAND * len(self._workers):
            yield _result(self._waiting[0][1])
            self._waiting.popleft()

    def finish(self) -> Iterator[Result]:
        """Yield the results that are left."""
        while self._waiting:
            yield _result(self._waiting[0][1])
            self._waiting.popleft()

    def __enter__(self) -> Crew[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for worker in self._workers:
            ray.kill(worker)


def device_of_worker() -> str:
    """Return the device that a worker has been given."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fetched(reference: Any) -> Any:
    """Return what stayed in the cluster; for workers."""
    return _result(reference)


def _call(read: Callable[[Any], Any], item: Any) -> Any:
    return read(item)


class _Worker:
    """Lives in a process of its own, somewhere in the cluster."""

    def __init__(self, make: Callable[..., Callable[[Any], Any]], given: Sequence[Any]) -> None:
        self._work = make(*given)

    def work(self, item: Any) -> Any:
        return self._work(item)


@contextmanager
def joined(address: str | None, workers: int | None = None, with_gpus: bool = True) -> Iterator[Cluster]:
    """Join a Ray cluster, or start one on this machine while a block runs.

    Args:
        address: of the cluster; None starts one. workers: how many; by default one for each GPU, or else for each CPU.
        with_gpus: whether workers may have GPUs.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--engine ray needs the package ray", "pip install 'dptr[ray]'") from error
    try:
        ray.init(address or "local", include_dashboard=None if address else False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        asks = "AuthenticationError" in str(error)
        hint = "It asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        said = str(error).partition("\n")[0]
        raise UserError(
            f"no Ray cluster can be joined at {address}: {said}", hint if asks else "`ray status` shows yours"
        ) from error
    try:
        yield Cluster(workers, with_gpus)
    finally:
        ray.shutdown()


def _resources() -> dict[str, float]:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
