"""Where tasks run: threads of this process, processes on this machine, or any Dask cluster."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from s2pairs.errors import S2PairsError

if TYPE_CHECKING:
    from distributed import Client

WORKER_MEMORY = 2 * 2**30
"""Bytes that a worker process may take before it is ended and its tasks are given to another."""

Progress = Callable[[int, int], None]
"""Called with the parts done and the parts in all."""
Announce = Callable[[str], None]
"""Told where a cluster shows what it does."""


@dataclass(frozen=True)
class Threads:
    """Threads of this process: what decodes, compresses and hashes lets the others run."""

    count: int


@dataclass(frozen=True)
class Processes:
    """A Dask cluster of processes on this machine, one thread each. Needs crossmi[cluster].

    One that is killed is started anew, and its tasks are repeated.
    """

    count: int
    announce: Announce


@dataclass(frozen=True)
class Scheduler:
    """A Dask cluster that stands elsewhere. Its workers see the same paths and URLs as we do."""

    address: str
    announce: Announce


Workers = Threads | Processes | Scheduler


class Task(Protocol):
    """Something to do that can be sent to another process; doing it twice does no harm."""

    @property
    def parts(self) -> int:
        """What it counts for in the progress."""
        ...


AnyTask = TypeVar("AnyTask", bound=Task)
Result = TypeVar("Result")


def run_all(
    do: Callable[[AnyTask], Result], tasks: Sequence[AnyTask], workers: Workers, progress: Progress
) -> list[Result]:
    """The results of `do(task)` in the order in which they come, reporting as each one ends.

    Returns or raises, on Ctrl-C too, when no task runs any more in this process or on this
    machine; on a cluster elsewhere what had begun may still end.
    """
    total = sum(task.parts for task in tasks)
    done = 0
    results = []
    progress(0, total)
    for task, result in _finished(do, tasks, workers):
        done += task.parts
        results.append(result)
        progress(done, total)
    return results


def _finished(
    do: Callable[[AnyTask], Result], tasks: Sequence[AnyTask], workers: Workers
) -> Iterator[tuple[AnyTask, Result]]:
    if isinstance(workers, Threads):
        yield from _by_threads(do, tasks, workers.count)
    else:
        with _client(workers) as client:
            yield from _by_cluster(do, tasks, client)


def _by_threads(
    do: Callable[[AnyTask], Result], tasks: Sequence[AnyTask], count: int
) -> Iterator[tuple[AnyTask, Result]]:
    with ThreadPoolExecutor(count) as pool:
        futures = {pool.submit(do, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # leaving the pool waits for the tasks that run
            pool.shutdown(wait=False, cancel_futures=True)


def _by_cluster(
    do: Callable[[AnyTask], Result], tasks: Sequence[AnyTask], client: "Client"
) -> Iterator[tuple[AnyTask, Result]]:
    from distributed import CancelledError, KilledWorker
    from distributed import as_completed as completed

    futures = {client.submit(do, task, pure=False): task for task in tasks}
    try:
        for future in completed(futures):
            yield futures[future], future.result()
    except KilledWorker as error:
        raise S2PairsError(
            f"several workers died of the same task ({error.task}); each may take "
            f"{WORKER_MEMORY // 2**30} GiB: try fewer --workers, or look into their logs. What is "
            "built stays, and the same command resumes it"
        ) from error
    except CancelledError as error:
        raise S2PairsError(
            "the Dask scheduler went away; what is built stays, and the same command resumes it"
        ) from error
    finally:
        client.cancel(list(futures))


@contextmanager
def _client(workers: Processes | Scheduler) -> Iterator["Client"]:
    from distributed import Client, LocalCluster

    if isinstance(workers, Scheduler):
        try:
            client = Client(workers.address, timeout=20)
        except (OSError, ValueError) as error:
            raise S2PairsError(
                f"no Dask scheduler answers at {workers.address}: {error}; start one with `dask "
                "scheduler`, or leave --scheduler out"
            ) from error
        with client:
            workers.announce(f"dashboard: {client.dashboard_link}")
            yield client
        return
    with (
        LocalCluster(
            n_workers=workers.count,
            threads_per_worker=1,
            memory_limit=WORKER_MEMORY,
            # any free port, and of this machine alone
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        workers.announce(f"dashboard: {client.dashboard_link}")
        yield client
