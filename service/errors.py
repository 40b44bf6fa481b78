"""The errors of the service and the one table that maps them to HTTP.

Every error leaves as a problem document (RFC 9457). Of what the client sent its text holds numbers
and what has a known form (types, names of bands and tiles), and no other words.
"""

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mimodel.errors import InputError, PatchIndexError

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
_MAX_LISTED = 10
"""Faults of one request that its answer names."""

log = logging.getLogger("crossmi.service")


class ServiceError(Exception):
    """Base of every error that the service raises on purpose."""


class UnauthorizedError(ServiceError):
    """The API key is missing or wrong."""


class AbsentError(ServiceError):
    """There is nothing of that name here."""


class NotAcceptableError(ServiceError):
    """The client accepts none of the media types that there are."""


class SlowBodyError(ServiceError):
    """The body did not arrive in time."""


class BusyError(ServiceError):
    """As many requests wait as may wait."""


class GoneError(ServiceError):
    """The client did not wait for the answer. Nobody reads this one; figures and log count it."""


class SlowAnswerError(ServiceError):
    """The answer was not there in time."""


class TooManyError(ServiceError):
    """A client asks more often than it may."""

    def __init__(self, message: str, seconds: float) -> None:
        """`seconds` is the time until it may ask again."""
        super().__init__(message)
        self.seconds = seconds


class NotReadyError(ServiceError):
    """The model is not warmed up yet."""


class DecodeError(ServiceError):
    """Base of what can be wrong with an upload."""


class MalformedError(DecodeError):
    """The bytes are not of the media type that they claim."""


class TooLargeError(DecodeError):
    """The upload, or what it would unpack to, is over a limit."""


class UnsupportedMediaError(DecodeError):
    """The media type, or an encoding inside it, is none that is read here."""


class UnfitError(DecodeError):
    """The pixels can be read, but are not what the model needs."""


STATUS: dict[type[Exception], int] = {
    MalformedError: 400,
    UnauthorizedError: 401,
    AbsentError: 404,
    NotAcceptableError: 406,
    SlowBodyError: 408,
    TooLargeError: 413,
    UnsupportedMediaError: 415,
    UnfitError: 422,
    InputError: 422,
    TooManyError: 429,
    BusyError: 503,
    SlowAnswerError: 503,
    NotReadyError: 503,
    PatchIndexError: 503,
}

_GONE = 499
"""As other servers log it; there is no such status in any standard."""
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_SECONDS)}}


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    for error in STATUS:
        app.add_exception_handler(error, _on_error)
    app.add_exception_handler(GoneError, _on_gone)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


def problem(
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> JSONResponse:
    """A problem document; `errors` names the single fields that are wrong."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        content["errors"] = errors
    return JSONResponse(
        content, status, {**_HEADERS.get(status, {}), **(headers or {})}, PROBLEM_TYPE
    )


def location_of(kind: str, place: tuple[int | str, ...]) -> str:
    """Where a validation error is, in our own words: the name of an unknown field is the client's.

    Nor is the input said again, which could be large, private, or NaN.
    """
    return ".".join(map(str, place[:-1] if kind == "extra_forbidden" else place)) or "body"


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers = None
    if isinstance(error, TooManyError):
        headers = {"Retry-After": str(math.ceil(error.seconds))}
    return problem(status, str(error), headers)


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_GONE)


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    errors = [
        {"location": location_of(item["type"], item["loc"]), "message": str(item["msg"])}
        for item in found[:_MAX_LISTED]
    ]
    named = [f"{item['location']}: {item['message']}" for item in errors]
    if len(found) > _MAX_LISTED:
        named.append(f"and {len(found) - _MAX_LISTED} more")
    return problem(422, "; ".join(named), errors=errors)


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = {
        404: "there is nothing under this path; see /openapi.json",
        405: "this path does not take that method; the Allow header names those it takes",
    }.get(error.status_code, HTTPStatus(error.status_code).phrase)
    return problem(error.status_code, detail, dict(error.headers or {}))


async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error)
    return problem(500, "this is a fault of the service, not of the request; its log says more")
