"""Joins what concurrent requests ask of the model into batches, for one thread.

Nobody waits for a batch to fill: the thread takes what is there when it is free, so batches grow
with the load and a single request goes at once. A request of many patches is worked on a batch at a
time, others in between.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Array = npt.NDArray[np.float32]


class Items(Protocol):
    """Something of which slices can be taken, along the axis of its items."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Array: ...


RowWise = Callable[[Array], Array]
"""From N items to N rows, each of which depends on its own item alone."""


@final
@dataclass(eq=False)
class _Job:
    work: Callable[[Any], Any]
    items: Any
    observe: Callable[[int], None]
    """Is told how many items, of all jobs that were joined, were worked on at a time."""
    future: "Future[list[Any]]" = field(default_factory=Future)
    begun: int = 0
    rows: list[Any] = field(default_factory=list)


@final
class Batcher:
    """A queue in front of one thread. It has no bound: who asks has a place (`Engine.upload`)."""

    def __init__(
        self,
        max_batch: int,
        observe: Callable[[int], None] = lambda _: None,
        observe_call: Callable[[], None] = lambda: None,
    ) -> None:
        """`observe` is told the size of each batch, `observe_call` that other work was done."""
        self._max_batch = max_batch
        self._observe = observe
        self._observe_call = observe_call
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def rows(self, work: RowWise, items: Items) -> Array:
        """`work(items)`, where items that others ask the same `work` for go in one call."""
        return np.stack(await self._ask(_Job(work, items, self._observe)))

    async def call(self, work: Callable[[], T]) -> T:
        """The result of `work`, which cannot be joined with others."""
        job = _Job(lambda _: (work(),), np.zeros(1), lambda _: self._observe_call())
        result: T = (await self._ask(job))[0]
        return result

    def close(self) -> None:
        """Let what is asked for end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    async def _ask(self, job: _Job) -> list[Any]:
        with self._changed:
            if self._closed:
                raise RuntimeError("nothing more can be asked of a closed batcher")
            self._jobs.append(job)
            self._changed.notify()
        # Cancelled with who waits for it; the thread leaves it out then.
        return await asyncio.wrap_future(job.future)

    def _run(self) -> None:
        while batch := self._next_batch():
            _compute(batch)
            batch[0][0].observe(sum(stop - start for _, start, stop in batch))

    def _next_batch(self) -> list[tuple[_Job, int, int]]:
        """Jobs with the parts of their items that go in the next call; none: it is over."""
        with self._changed:
            batch: list[tuple[_Job, int, int]] = []
            while not batch:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return []
                batch = self._take()
            return batch

    def _take(self) -> list[tuple[_Job, int, int]]:
        """The first job, and others of its kind as far as there is room. What is not finished with
        this goes to the end of the queue; what is given up, or has failed in part, goes away."""
        batch, others, unfinished = [], [], []
        room = self._max_batch
        jobs = [job for job in self._jobs if not job.future.done()]
        for job in jobs:
            if not room or job.work != jobs[0].work:
                others.append(job)
                continue
            start, job.begun = job.begun, min(len(job.items), job.begun + room)
            room -= job.begun - start
            batch.append((job, start, job.begun))
            if job.begun < len(job.items):
                unfinished.append(job)
        self._jobs = deque(others + unfinished)
        return batch


def _compute(batch: list[tuple[_Job, int, int]]) -> None:
    """One call for all parts; a failure is that of all of them."""
    try:
        parts = [job.items[start:stop] for job, start, stop in batch]
        rows = batch[0][0].work(parts[0] if len(parts) == 1 else np.concatenate(parts))
    except Exception as error:  # noqa: BLE001  it belongs to those who asked
        for job, _, _ in batch:
            with suppress(InvalidStateError):
                job.future.set_exception(error)
        return
    at = 0
    for job, start, stop in batch:
        job.rows.extend(rows[at : at + stop - start])
        at += stop - start
        if len(job.rows) == len(job.items):
            # Cancelled in the meantime: nobody wants it.
            with suppress(InvalidStateError):
                job.future.set_result(job.rows)
