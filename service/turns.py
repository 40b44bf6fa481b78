"""Turns on the event loop, so that many requests at once do not hold it against the next one."""

import asyncio
from collections import deque
from typing import final

_A_ROUND = 2


@final
class Turns:
    """Lets two coroutines go on in each round of the event loop, in the order in which they came.

    A batch that is done wakes all who waited for it, and their clients ask again at once. Whoever
    comes then, such as a supervisor that asks for /healthz, would wait until each of them has had
    its milliseconds; between two rounds the loop takes what is new.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._going = False

    async def mine(self) -> None:
        """Return when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._going:
            self._going = True
            loop.call_soon(self._round, loop)
        await turn

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        given = 0
        while self._waiting and given < _A_ROUND:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled: its client has gone
                turn.set_result(None)
                given += 1
        self._going = bool(self._waiting)
        if self._going:
            loop.call_soon(self._round, loop)
