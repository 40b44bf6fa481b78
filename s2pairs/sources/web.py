"""Other machines: asked with patience and within limits, and their files read in parts."""

import io
import json as json_text
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requests import PreparedRequest, Request, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.retry import Retry

from s2pairs.errors import SceneError, SourceError
from s2pairs.sources.reach import PORTS, Reach, shown

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

LARGEST_TEXT = 64 * 2**20
"""Bytes of an answer, unpacked: a page of a hundred items is some megabytes."""

_PASSING = (429, 500, 502, 503, 504)
_PASSING_ERRORS = (ConnectionError, Timeout, ChunkedEncodingError)
_LONGEST_IN_SECONDS = 300  # a larger number in Retry-After can only be milliseconds
_MOST_REDIRECTS = 5
_PIECE = 16 * 2**10  # packed, a piece may hold a thousand times as much
_BLOCK = 16 * 2**10
_BLOCKS_KEPT = 512


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and for how long in all."""

    tries: int = 5
    first_wait_s: float = 1.0
    """Doubles from try to try, the second of which comes at once."""
    longest_wait_s: float = 60.0
    """Also where a server asks for more."""
    timeout_s: float = 60.0
    """For a connection, and for each pause between bytes."""


@dataclass(frozen=True)
class Answer:
    """What a server said, read to its end."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status < 400

    def json(self) -> Any:
        """`ValueError` where the body is none."""
        return json_text.loads(self.body)


class Web:
    """A session that asks only whom it may, only so often, and takes only so much."""

    def __init__(self, reach: Reach, patience: Patience) -> None:
        self.reach = reach
        self.patience = patience
        self._session = Session()
        # keys in ~/.netrc are for other programs, and would take the place of a token
        self._session.trust_env = False
        self._session.max_redirects = _MOST_REDIRECTS
        self._session.headers["User-Agent"] = "crossmi (s2pairs)"
        adapter = _Guarded(reach)
        for scheme in PORTS:
            self._session.mount(f"{scheme}://", adapter)

    def __reduce__(self) -> tuple[type["Web"], tuple[Reach, Patience]]:
        # another process has connections of its own
        return Web, (self.reach, self.patience)

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        limit: int = LARGEST_TEXT,
        before_body: Callable[[Response], None] = lambda _: None,
    ) -> Answer:
        """The answer with its body; `before_body` may refuse it first.

        `SourceError` if there was no answer, or none but 429 or 5xx, in as many tries as allowed;
        `SceneError` if the body has more than `limit` bytes.
        """
        request = Request(method, url, headers=headers, params=query, json=json, data=form)
        retry = _Bounded(
            total=self.patience.tries - 1,
            backoff_factor=self.patience.first_wait_s,
            backoff_max=self.patience.longest_wait_s,
        )
        while True:
            raw: BaseHTTPResponse | None = None
            try:
                with self._send(request) as response:
                    if response.status_code not in _PASSING:
                        before_body(response)
                        return _answer(response, limit)
                    raw = response.raw
                    failure = SourceError(_still(url, response, self.patience.tries))
            except _PASSING_ERRORS as error:
                failure = SourceError(_no_answer(url, error))
            except RequestException as error:
                raise SourceError(_no_answer(url, error)) from error
            if not retry.total:
                raise failure
            retry = retry.increment(method, url)
            retry.sleep(raw)

    def _send(self, request: Request) -> Response:
        """The response without its body, tried once."""
        prepared = self._session.prepare_request(request)
        # what a session that trusts the environment would take from it, but for keys
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        return self._session.send(
            prepared,
            stream=True,
            timeout=self.patience.timeout_s,
            proxies=get_environ_proxies(str(prepared.url)),
            verify=bundle or True,
        )

    def content(self, url: str) -> bytes:
        """The whole body; `SceneError` if the server will not give it."""
        answer = self.ask("GET", url)
        if not answer.ok:
            raise SceneError(f"{shown(url)}: {answer.status} {answer.reason}")
        return answer.body


def _answer(response: Response, limit: int) -> Answer:
    pieces: list[bytes] = []
    size = 0
    for piece in response.iter_content(_PIECE):
        size += len(piece)
        if size > limit:
            raise SceneError(f"{shown(response.url)} gives more than the {limit} bytes expected")
        pieces.append(piece)
    return Answer(response.status_code, response.reason, response.headers, b"".join(pieces))


def _still(url: str, response: Response, tries: int) -> str:
    return (
        f"{shown(url)} still answers {response.status_code} {response.reason} after {tries} "
        "tries; the same command goes on later"
    )


def _no_answer(url: str, error: RequestException) -> str:
    what = "no answer in time" if isinstance(error, Timeout) else shown(str(error), 300)
    if isinstance(error, ConnectionError) and not isinstance(error, Timeout):
        what = f"no connection ({what})"
    return f"{shown(url)}: {what}; the same command goes on later"


class _Guarded(HTTPAdapter):
    """Checks each request, the redirected ones too, and each connection. Tries once."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        super().__init__(pool_maxsize=32)

    def init_poolmanager(self, *sizes: Any, **more: Any) -> None:
        super().init_poolmanager(*sizes, **more)
        self.poolmanager.pool_classes_by_scheme = {
            scheme: type(
                pool.__name__, (pool,), {"ConnectionCls": _checked(connection, self._reach)}
            )
            for (scheme, pool), connection in zip(
                sorted(self.poolmanager.pool_classes_by_scheme.items()),
                (HTTPConnection, HTTPSConnection),
                strict=True,
            )
        }

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        self._reach.check_url(request.url or "")
        response = super().send(request, *args, **options)
        if response.is_redirect:
            response.close()  # its body would be read to the end, and may have none
        return response


def _checked(connection: Any, reach: Reach) -> Any:
    class Checked(connection):  # type: ignore[misc]
        def _new_conn(self) -> Any:
            sock = super()._new_conn()
            try:
                reach.check_peer(self.host, self.port, sock.getpeername()[0])
            except SourceError:
                sock.close()
                raise
            return sock

    return Checked


class _Bounded(Retry):
    """Waits as long as a server says in Retry-After, but never longer than the longest wait.

    The number is in seconds by RFC 9110, in milliseconds from Sentinel Hub.
    """

    def get_retry_after(self, response: "BaseHTTPResponse") -> float | None:
        text = response.headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            wait = float(text) if float(text) <= _LONGEST_IN_SECONDS else float(text) / 1000
        else:
            try:
                wait = super().get_retry_after(response) or 0.0
            except Exception:  # noqa: BLE001, a date that is none: wait as if nothing had been said
                return None
        return min(wait, float(self.backoff_max))


class RangeFile(io.RawIOBase):
    """A file on another machine, of which only what is read crosses the network.

    Small pieces are read in blocks of 16 KiB that are kept, large ones as they are asked for.
    What went wrong is kept in `failure`: whoever reads through a C library gets no exception.
    """

    def __init__(self, web: Web, url: str) -> None:
        self._web = web
        self._url = url
        self._place = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self.failure: SceneError | SourceError | None = None
        first, self.size = self._fetch(0, _BLOCK)
        self._blocks[0] = first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self.size - self._place)
        size = left if size is None or size < 0 else min(size, left)
        try:
            data = self._bytes(self._place, size) if size else b""
        except (SceneError, SourceError) as error:
            self.failure = error
            raise
        self._place += len(data)
        return data

    def _bytes(self, start: int, size: int) -> bytes:
        first, last = start // _BLOCK, (start + size - 1) // _BLOCK
        if last - first > 1:
            return self._fetch(start, size)[0]
        whole = b"".join(self._block(number) for number in range(first, last + 1))
        return whole[start - first * _BLOCK :][:size]

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            start = number * _BLOCK
            block, _ = self._fetch(start, min(_BLOCK, self.size - start))
            self._blocks[number] = block
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return block

    def _fetch(self, start: int, size: int) -> tuple[bytes, int]:
        """The bytes from `start`, at most `size`, and the size of the whole file."""
        headers = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
        answer = self._web.ask(
            "GET", self._url, headers=headers, limit=size, before_body=self._must_be_a_part
        )
        data, total = answer.body, _whole_size(answer)
        if len(data) != min(size, total - start):
            raise SceneError(f"{shown(self._url)}: {len(data)} bytes came instead of {size}")
        return data, total

    def _must_be_a_part(self, response: Response) -> None:
        if response.status_code == 416:
            raise SceneError(f"{shown(self._url)} is empty or shorter than it was")
        if not response.ok:
            raise SceneError(f"{shown(self._url)}: {response.status_code} {response.reason}")
        if response.status_code != 206 or _whole_size(response) < 0:
            raise SourceError(
                f"{shown(self._url)}: the server gives no parts of files (no answer to Range); "
                "download the products and use safe: or rasters:"
            )


def _whole_size(answer: Answer | Response) -> int:
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isascii() and total.isdigit() else -1
