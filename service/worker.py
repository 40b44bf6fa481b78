"""One thread that does the work, and a bounded number of requests that wait for it.

Decoding, the model and the making of an answer all run here, so the event loop stays free for
/healthz and for reading other bodies, and one request at a time unpacks its upload.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar, final

from service.errors import BusyError

T = TypeVar("T")


@final
class Worker:
    """A bounded queue in front of one thread. Use it from one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self._max_places = max_waiting + 1
        self._taken = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue, from before the body is read until the answer is there.

        `BusyError` if there is none: a body that nobody can work on is not taken into memory.
        """
        if self._taken >= self._max_places:
            raise BusyError(f"{self._taken} requests are being worked on or wait; try again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in the thread after what was asked for before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let what is asked for end; nothing more can be asked for."""
        self._thread.shutdown(wait=True)
