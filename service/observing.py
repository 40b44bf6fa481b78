"""What an operator sees of requests: an id, one line of JSON in the log, figures for Prometheus.

A line names the route, and nothing that a client made up but the id: neither path nor query, and no
pixel.
"""

import json
import logging
import logging.config
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine import Engine

REQUEST_ID = "X-Request-ID"
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PIECE = 1 << 18
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OF_SUPERVISORS = frozenset(
    {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
)
"""Who asks for these is not to wait for those who want work."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

log = logging.getLogger("crossmi.service")


@final
class Observed:
    """Middleware around all routes."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; a bug in it counts as the 500 that it becomes outside of here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(_id_of(scope))
        request_id.set(seen.id)

        async def receive_counted() -> Message:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message["headers"] = [*message["headers"], *self._marks(seen.id)]
            seen.sent += len(message.get("body", b""))
            with self._engine.answering(len(message.get("body", b""))):
                for piece in _pieces(message):
                    await send(piece)

        try:
            if scope["path"] not in _OF_SUPERVISORS:
                await self._engine.turns.mine()
            await self._app(scope, receive_counted, send_marked)
        finally:
            self._note(scope, seen)

    def _marks(self, identity: str) -> list[tuple[bytes, bytes]]:
        marks = [(REQUEST_ID.lower().encode(), identity.encode())]
        # So that no client begins another request on a connection that is about to close.
        return [*marks, (b"connection", b"close")] if self._engine.draining else marks

    def _note(self, scope: Scope, seen: "_Seen") -> None:
        seconds = time.perf_counter() - seen.began
        # Labels must be few, whatever a client sends.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self._engine.metrics
        metrics.requests.labels(route, method, str(seen.status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        fields = {
            "route": route,
            "method": method,
            "status": seen.status,
            "seconds": round(seconds, 4),
            "received": seen.received,
            "sent": seen.sent,
            "client": scope.get("state", {}).get("client") or (scope.get("client") or [None])[0],
        }
        log.info("request", extra={"fields": fields})


def _pieces(message: Message) -> Iterator[Message]:
    """A message of an answer with its body in parts, so that it stays ours while it is not taken.

    uvicorn waits before a part until the client has taken those before, and takes any part at once.
    """
    body = message.get("body", b"")
    for at in range(0, len(body) - _PIECE, _PIECE):
        yield {**message, "body": body[at : at + _PIECE], "more_body": True}
    yield {**message, "body": body[(len(body) - 1) // _PIECE * _PIECE :]} if body else message


@final
class _Seen:
    """What is counted while a request goes by."""

    def __init__(self, identity: str) -> None:
        self.id = identity
        self.began = time.perf_counter()
        self.status = 500
        self.received = 0
        self.sent = 0


def _id_of(scope: Scope) -> str:
    """The id that a proxy in front has given the request, or a new one."""
    name = REQUEST_ID.lower().encode()
    given = next((value for key, value in scope["headers"] if key == name), b"")
    return given.decode() if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex


@final
class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, the request's id, `fields` of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id.get():
            line["request"] = request_id.get()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "service.observing.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "crossmi": {"level": "INFO"},
        "uvicorn": {"level": "INFO"},
        # Faults of uploads are no news.
        "rasterio": {"level": "CRITICAL"},
    },
}
"""For `logging.config.dictConfig`: what is logged as lines of JSON on stderr."""


def log_as_lines() -> None:
    """Everything as lines of JSON on stderr: warnings too, and exceptions that nobody can catch."""
    logging.config.dictConfig(LOGGING)
    logging.captureWarnings(True)
    sys.unraisablehook, sys.excepthook = _on_unraisable, _on_uncaught


def _on_uncaught(
    kind: type[BaseException], raised: BaseException, trace: TracebackType | None
) -> None:
    # In another thread it is Cython, which prints what it cannot raise before it calls that hook.
    if threading.current_thread() is threading.main_thread():
        log.critical("uncaught exception", exc_info=(kind, raised, trace))


def _on_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    # Its text is left out: GDAL's messages repeat what stands in an upload, and where that is no
    # UTF-8 it is rasterio's own log that fails.
    fields = {"kind": raised.exc_type.__name__, "place": _name_of(raised.object)}
    log.warning("exception ignored", extra={"fields": fields})


def _name_of(place: object) -> str:
    """Of what an exception could not leave: Cython names it, Python gives the thing itself."""
    return place if isinstance(place, str) else getattr(place, "__qualname__", type(place).__name__)
