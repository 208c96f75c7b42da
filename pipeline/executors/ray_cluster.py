"""Stage 1 on a Ray cluster, `--engine ray`: workers make a store's shards, which are committed here, in order.

Ray starts workers, transfers their inputs and restarts lost ones; a lost worker's current shard is computed again.
Shards have the same inputs as on one machine, and workers run the same function on them, so the hashes are equal.

This uses Ray's tasks and actors rather than its data sets, because the inputs of a shard depend on how many inputs of
earlier shards are usable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dptr.cache.errors import UserError
from dptr.pipeline.executors.executor import Work, Worker
from dptr.pipeline.executors.store_builder import ShardToMake

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

    def in_order(self, worker: Worker[Result], items: Iterable[Any]) -> Iterator[Result]:
        """See :class:`~dptr.pipeline.executors.executor.Executor`; items are taken as workers come free."""
        import ray

        # Workers reserve no CPU: none would be left for tasks that read ahead.
        kind: Any = ray.remote(
            max_restarts=-1, max_task_retries=-1, num_cpus=0, num_gpus=self._gpus, scheduling_strategy="SPREAD"
        )(_Worker)
        workers: list[Any] = [kind.remote(worker.make, worker.given) for _ in range(self.workers)]
        # Items are kept with their results' futures: a restarted worker needs them again.
        waiting: deque[tuple[Any, Any]] = deque()
        try:
            for number, item in enumerate(items):
                if isinstance(item, ShardToMake):
                    item = item._replace(payloads=list(item.payloads))
                waiting.append((item, workers[number % len(workers)].work.remote(item)))
                if len(waiting) > _IN_HAND * len(workers):
                    yield _result(waiting[0][1])
                    waiting.popleft()
            while waiting:
                yield _result(waiting[0][1])
                waiting.popleft()
        finally:
            for one in workers:
                ray.kill(one)

    def read_ahead(
        self, items: Iterable[Item], read: Callable[[Item], tuple[Result, Any]], workers: int
    ) -> Iterator[tuple[Item, Result, Any]]:
        """See :class:`~dptr.pipeline.executors.executor.Executor`; any CPU reads.

        The second result, which may be large, stays in the cluster until a worker fetches it (:func:`fetched`).
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


def device_of_worker() -> str:
    """Return the device that a worker has been given."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fetched(reference: Any) -> Any:
    """Return an object from the cluster or from this process; for workers."""
    return reference if isinstance(reference, list) else _result(reference)


def _call(read: Callable[[Any], Any], item: Any) -> Any:
    return read(item)


class _Worker:
    """A Ray actor in a separate process."""

    def __init__(self, make: Callable[..., Work[Any]], given: Sequence[Any]) -> None:
        self._work = make(*given)

    def work(self, item: Any) -> Any:
        return self._work(item)()


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
        hint = "It needs a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
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
