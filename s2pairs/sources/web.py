"""Other machines: which of them may be asked, how patiently, and their files read in parts.

What a catalogue names, others wrote: an address in it may point into the network of whoever reads
it. So every request and every redirect is checked against a list of hosts, and the address that a
name led to is checked when the connection stands, where no second look-up can change it.
"""

import io
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from requests import PreparedRequest, Request, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url
from urllib3.util.retry import Retry

from s2pairs.errors import SceneError, SourceError

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

_PORTS = {"http": 80, "https": 443}
_PASSING = (429, 500, 502, 503, 504)
_LONGEST_IN_SECONDS = 300  # a larger number in Retry-After can only be milliseconds
_MOST_REDIRECTS = 5
_BLOCK = 16 * 2**10
_BLOCKS_KEPT = 512

Host = tuple[str, int]
"""Name in small letters and port."""


@dataclass(frozen=True)
class Reach:
    """The hosts that may be asked.

    `public` ones are reached by https at public addresses alone. `trusted` ones were named by the
    user: also by http, also at private addresses. Names are with port, 443 unless said.
    """

    public: frozenset[Host]
    trusted: frozenset[Host]

    @classmethod
    def of(cls, *starts: str, known: Iterable[str] = (), told: Iterable[str] = ()) -> "Reach":
        """`starts` are URLs that the user gave, `known` and `told` are hosts as `name[:port]`.

        An address or `localhost` in a URL was meant as it stands. A name was not: it may be bent
        to a private address, and is trusted only if it is `told` too.
        """
        public = {_host(f"https://{name}") for name in known}
        trusted = {_host(f"{scheme}://{name}") for name in told for scheme in _PORTS}
        for host in map(_host, starts):
            (trusted if _is_literal(host[0]) else public).add(host)
        return cls(frozenset(public), frozenset(trusted))

    def check_url(self, url: str) -> None:
        """`SourceError` unless this URL may be asked."""
        scheme, host = urlsplit(url).scheme.lower(), _host(url)
        if scheme not in _PORTS:
            raise SourceError(f"{url[:200]} is not read: expected https, got {scheme or 'nothing'}")
        if host in self.trusted:
            return
        named = host[0] if host[1] in _PORTS.values() else f"{host[0]}:{host[1]}"
        if host not in self.public:
            known = ", ".join(sorted({name for name, _ in self.public | self.trusted})) or "none"
            raise SourceError(
                f"{url[:200]} is not asked: only {known} may be; if you trust {named}, add "
                f"--allow-host {named}"
            )
        if scheme != "https":
            raise SourceError(
                f"{url[:200]} is not asked without https; if you trust {named}, add "
                f"--allow-host {named}"
            )

    def check_peer(self, host: str, port: int, address: str) -> None:
        """`SourceError` if a host that the user did not name has led to a private address."""
        if (host.lower(), port) in self.trusted:
            return
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        if not (mapped or found).is_global:
            raise SourceError(
                f"{host} leads to {address}, a private address; if you trust it, add "
                f"--allow-host {host}"
            )


def _host(url: str) -> Host:
    try:
        parts = parse_url(url)
        port = parts.port or _PORTS.get((parts.scheme or "").lower(), 0)
        name = (parts.host or "").lower().strip("[]")
    except LocationParseError as error:
        raise SourceError(f"{url[:200]!r} is not a URL: {error}") from error
    return name, port


def _is_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


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


class Web:
    """A session that asks only whom it may, and only so often."""

    def __init__(self, reach: Reach, patience: Patience) -> None:
        self.reach = reach
        self.patience = patience
        self.session = Session()
        self.session.max_redirects = _MOST_REDIRECTS
        self.session.headers["User-Agent"] = "crossmi (s2pairs)"
        adapter = _Guarded(reach, patience)
        for scheme in _PORTS:
            self.session.mount(f"{scheme}://", adapter)

    def __reduce__(self) -> tuple[type["Web"], tuple[Reach, Patience]]:
        # another process has connections of its own
        return Web, (self.reach, self.patience)

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        before_body: Callable[[Response], None] = lambda _: None,
    ) -> Response:
        """The response with its body; `before_body` may refuse it first.

        `SourceError` if there was no answer, or none but 429 or 5xx, in as many tries as allowed.
        """
        for left in reversed(range(self.patience.tries)):
            response = self._send(Request(method, url, headers=headers, json=json, data=form))
            try:
                before_body(response)
                _ = response.content  # now, for it may break off
                break
            except RequestException as error:
                if not left:
                    raise SourceError(_no_answer(url, error)) from error
            finally:
                response.close()
        return response

    def _send(self, request: Request) -> Response:
        """The response without its body; the adapter has tried it as often as it may."""
        url = str(request.url)
        try:
            prepared = self.session.prepare_request(request)
            settings = self.session.merge_environment_settings(
                str(prepared.url), proxies={}, stream=True, verify=None, cert=None
            )
            response = self.session.send(prepared, timeout=self.patience.timeout_s, **settings)
        except RequestException as error:
            raise SourceError(_no_answer(url, error)) from error
        if response.status_code in _PASSING:
            response.close()
            raise SourceError(
                f"{url[:200]} still answers {response.status_code} {response.reason} after "
                f"{self.patience.tries} tries; the same command goes on later"
            )
        return response

    def content(self, url: str) -> bytes:
        """The whole body; `SceneError` if the server will not give it."""
        response = self.ask("GET", url)
        if not response.ok:
            raise SceneError(f"{url[:200]}: {response.status_code} {response.reason}")
        return response.content


def _no_answer(url: str, error: RequestException) -> str:
    what = "no answer in time" if isinstance(error, Timeout) else str(error)[:300]
    if isinstance(error, ConnectionError) and not isinstance(error, Timeout):
        what = f"no connection ({what})"
    return f"{url[:200]}: {what}; the same command goes on later"


class _Guarded(HTTPAdapter):
    """Checks each request, the redirected ones too, and each connection."""

    def __init__(self, reach: Reach, patience: Patience) -> None:
        self._reach = reach
        super().__init__(
            pool_maxsize=32,
            max_retries=_Bounded(
                total=patience.tries - 1,
                backoff_factor=patience.first_wait_s,
                backoff_max=patience.longest_wait_s,
                status_forcelist=_PASSING,
                allowed_methods=None,  # every request here only reads
                raise_on_status=False,
            ),
        )

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
        return super().send(request, *args, **options)


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
        response = self._web.ask(
            "GET", self._url, headers=headers, before_body=self._must_be_a_part
        )
        data, total = response.content, _whole_size(response)
        if len(data) != min(size, total - start):
            raise SceneError(f"{self._url[:200]}: {len(data)} bytes came instead of {size}")
        return data, total

    def _must_be_a_part(self, response: Response) -> None:
        if response.status_code == 416:
            raise SceneError(f"{self._url[:200]} is empty or shorter than it was")
        if not response.ok:
            raise SceneError(f"{self._url[:200]}: {response.status_code} {response.reason}")
        if response.status_code != 206 or _whole_size(response) < 0:
            raise SourceError(
                f"{self._url[:200]}: the server gives no parts of files (no answer to Range); "
                "download the products and use safe: or rasters:"
            )


def _whole_size(response: Response) -> int:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isascii() and total.isdigit() else -1
