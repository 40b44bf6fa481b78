"""From an HTTP request to what a handler needs: its key, its body, its media types."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import (
    GoneError,
    MalformedError,
    NotAcceptableError,
    SlowBodyError,
    TooLargeError,
    UnauthorizedError,
    UnsupportedMediaError,
)
from service.formats import MEDIA_TYPES
from service.settings import Settings


def client_of(request: Request, settings: Settings) -> str:
    """Who asks: the beginning of the digest of the key, or the address where no key is wanted.

    `UnauthorizedError` if a key is wanted and none of those that are valid came.
    """
    if not settings.keys:
        return request.client.host if request.client else "unknown"
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    digest = _digest(given.strip())
    # Digests have one length, and each is compared: the time tells nothing of any key.
    same = [hmac.compare_digest(digest, _digest(key)) for key in settings.keys]
    if scheme.lower() != "bearer" or not any(same):
        raise UnauthorizedError("send a key of this service as `Authorization: Bearer KEY`")
    return digest.hex()[:12]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def media_type_of(request: Request, default: str = "") -> str:
    """The media type of the body, one of those that are read here, without parameters.

    `default` is that of a body of which none is said.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaError("send the body without a Content-Encoding")
    media_type = request.headers.get("content-type", default).partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise UnsupportedMediaError(f"send one of {', '.join(MEDIA_TYPES)} as Content-Type")
    return media_type


def answer_type(accept: str | None, offers: Sequence[str]) -> str:
    """The offer that an Accept header likes best; the first of equals (RFC 9110)."""
    ranges = [_media_range(part) for part in (accept or "*/*").split(",")]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptableError(f"there is {', '.join(offers)}; accept one of these")
    return best


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Quality of the most specific range that the offer falls in."""
    for name in (offer, offer.partition("/")[0] + "/*", "*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == name]
        if qualities:
            return max(qualities)
    return 0.0


async def read_body(request: Request, settings: Settings, hold: Callable[[int], None]) -> bytes:
    """The whole body, if it is within the limit and comes in time, with or without its length.

    `hold` is told of the bytes of each piece, and raises if there is no memory for them.
    """
    too_large = TooLargeError(
        f"a body may have {settings.max_body_bytes} bytes; send fewer patches or a smaller image"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > settings.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > settings.max_body_bytes:
                    raise too_large
                hold(len(chunk))
                body += chunk
    except TimeoutError:
        raise SlowBodyError(
            f"the body did not come within {settings.body_seconds:g} seconds"
        ) from None
    except ClientDisconnect:
        raise MalformedError("the body ended early") from None
    return bytes(body)


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """What the block awaits is cancelled when the client goes away, and that is a `GoneError`.

    The body must have been read: whatever comes after it is the end of the connection.
    """
    waiting, gone = asyncio.current_task(), False
    assert waiting is not None

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        waiting.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        waiting.uncancel()
        raise GoneError("the client did not wait for the answer") from None
    finally:
        watching.cancel()
