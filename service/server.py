"""uvicorn as this service runs it: signals, the way to the end, the log."""

import asyncio
import contextlib
import ctypes
import logging
import logging.config
import select
import signal
import socket
import struct
import sys
import time
from types import FrameType
from typing import final

import uvicorn
from fastapi import FastAPI

from service.engine import Engine
from service.memory import set_aside
from service.observing import log_as_lines
from service.settings import Settings

_LAST_WORDS_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_HANDSHAKE_SECONDS = 0.25
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # A <- the flags of the TCP header
    (0x54, 0, 0, 0x12),  # A <- A & (SYN | ACK)
    (0x15, 0, 1, 0x02),  # is it a SYN alone?
    (0x06, 0, 0, 0),  # then drop
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)
"""Classic BPF (Linux, `filter.h`): code, jump if true, jump if false, constant."""

log = logging.getLogger("crossmi.service")


def run(app: FastAPI, listening: socket.socket, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and then until what has begun is answered.

    SIGHUP has the artifact read again.
    """
    server = Server(app, settings)
    engine: Engine = app.state.engine
    signal.signal(signal.SIGHUP, lambda *_: engine.want_reload())
    set_aside()
    server.run(sockets=[listening])


@final
class Server(uvicorn.Server):
    """Ends in two steps, so that no request that was sent is lost.

    From SIGTERM on /readyz says 503 and each answer closes its connection, so that a proxy and
    clients that keep connections turn elsewhere. After `notice_seconds` the port is closed, and
    what has begun by then is answered.

    A connection whose client does not take its answer within `taken_seconds` is cut.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        log_as_lines()
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )
        self._engine: Engine = app.state.engine
        self._notice_seconds = settings.notice_seconds
        self._taken_seconds = settings.taken_seconds
        self._untaken: dict[object, float] = {}
        """Answers that their clients are taking, and since when."""
        self._end: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until the end, and what has begun by then."""
        cutting = asyncio.create_task(self._cut_untaken())
        try:
            await super().serve(sockets)
        finally:
            cutting.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM begins the end; Ctrl-C, or a second signal, is in more of a hurry."""
        if sig == signal.SIGTERM and self._end is None:
            self._engine.drain()
            self._end = time.monotonic() + self._notice_seconds
            return
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, and let whoever connected just before say what is wanted.

        The system resets connections that it has made and nobody has accepted when their port is
        closed, and uvicorn closes one on which no request has arrived yet; one may be on its way,
        and where the processor is busy that takes a while.
        """
        if not self.force_exit:
            latest = time.monotonic() + _LAST_WORDS_SECONDS
            for listening in sockets or []:
                begin_no_connection(listening)
            await asyncio.sleep(_HANDSHAKE_SECONDS)
            while any(_is_readable(one) for one in sockets or []) and time.monotonic() < latest:
                await asyncio.sleep(0.01)
            for server in self.servers:
                server.close()
            for listening in sockets or []:
                listening.close()
            await asyncio.sleep(0.1)  # what was accepted last becomes a connection
            latest = time.monotonic() + _LAST_WORDS_SECONDS
            while self._is_silence_on_the_line() and time.monotonic() < latest:
                await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    async def _cut_untaken(self) -> None:
        """Look again and again at what the clients have not taken of their answers.

        The end of an answer too lies in the connection when the application is done with it, and a
        connection that is merely closed would wait for it to be taken.
        """
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._taken_seconds))
            now, before = time.monotonic(), self._untaken
            self._untaken = {}
            for connection in list(self.server_state.connections):
                answer, transport = getattr(connection, "cycle", None), connection.transport
                if not transport.get_write_buffer_size():
                    continue
                self._untaken[answer] = before.get(answer, now)
                if now - self._untaken[answer] > self._taken_seconds:
                    log.warning("cut off an answer that was not taken in time")
                    transport.abort()

    def _is_silence_on_the_line(self) -> bool:
        """Whether there is a connection that has not asked for anything yet, or not again.

        Whoever was answered after SIGTERM was told to close, so a connection that is still open was
        answered before it, and may be about to ask.
        """
        cycles = [getattr(one, "cycle", None) for one in self.server_state.connections]
        told = self._end is not None
        return any(cycle is None or (told and cycle.response_complete) for cycle in cycles)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to close the port."""
        over = self._end is not None and time.monotonic() >= self._end
        return await super().on_tick(counter) or over


def begin_no_connection(listening: socket.socket) -> None:
    """Have the system answer no new connection, and finish those that have begun.

    Whoever tries asks again after a second, and finds the port closed. On systems other than Linux
    nothing changes.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _DROP_SYN))
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(code))
    with contextlib.suppress(OSError):  # a sandbox without it: as on other systems
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _is_readable(listening: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    return bool(select.select([listening], [], [], 0)[0])
