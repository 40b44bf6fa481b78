"""The proxy in docker-compose.yml: nginx by its very configuration, before a service and others."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, UDPServer
from typing import Any

import httpx
import pytest

from tests.service.conftest import ROOT, Running
from tests.service.test_compose_programs import PATCH, free_port, healthy, own_check, program
from tests.service.test_http import MONITORED, NPY, refused
from tests.service.test_operation import eventually

_WAITED = ("header", "body")


@contextmanager
def proxying(folder: Path, *changes: tuple[str, str]) -> Iterator[str]:
    """nginx with the configuration of the compose file but for these changes, on a free port."""
    port = free_port()
    conf = (ROOT / "deploy/proxy.conf").read_text()
    for written, here in (("listen 8080", f"listen 127.0.0.1:{port}"), *changes):
        assert written in conf
        conf = conf.replace(written, here)
    temp = "\n".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temp}\n{conf}\n}}\n"
    )
    url = f"http://127.0.0.1:{port}"
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with program(command, healthy(f"{url}/healthz"), folder):
        yield url


@pytest.fixture(scope="module")
def proxied(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with the very configuration of the compose file, in front of a service."""
    changes = [("http://service:8000", service.url)]
    # Shorter, since a test waits for them.
    changes += [(f"client_{what}_timeout 10s", f"client_{what}_timeout 1s") for what in _WAITED]
    with proxying(tmp_path_factory.mktemp("proxy"), *changes) as url:
        yield url


def test_the_proxy_passes_on_what_is_good(proxied: str) -> None:
    answer = httpx.post(f"{proxied}/embed", content=PATCH, headers=NPY, timeout=60)
    assert answer.status_code == 200
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert [httpx.head(proxied + path).status_code for path in MONITORED] == [200, 200, 200]


def test_the_proxy_is_well_by_its_own_check(compose: dict[str, Any], proxied: str) -> None:
    container = compose["services"]["proxy"]
    assert own_check(container, {"8080": int(proxied.rsplit(":", 1)[1])})()
    assert not own_check(container, {"8080": free_port()})()


def test_the_proxy_words_its_refusals_as_the_service_does(proxied: str) -> None:
    assert httpx.get(f"{proxied}/metrics").status_code == 404
    too_large = {**NPY, "Content-Length": str(34 << 20)}
    with socket.create_connection(("127.0.0.1", int(proxied.rsplit(":", 1)[1]))) as sending:
        lines = [f"{name}: {value}" for name, value in too_large.items()]
        sending.sendall("\r\n".join(["POST /embed HTTP/1.1", "Host: x", *lines, "", ""]).encode())
        answer = sending.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_a_client_that_drips_is_cut_off(proxied: str) -> None:
    """Headers that never end, against which uvicorn has no defence, and a body that never ends."""
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
    for begun in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", head + b"Content-Length: 9999\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", int(proxied.rsplit(":", 1)[1]))) as sending:
            sending.settimeout(20)
            sending.sendall(begun)
            answer = sending.recv(4096)  # nothing, or a 408, and then the end
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with answering("127.0.0.1", b"here") as port:
        changes = [("http://service:8000", f"http://127.0.0.1:{port}")]
        changes += [("rate=50r/s", "rate=1r/m"), ("burst=100", "burst=2")]
        with proxying(tmp_path, *changes) as url:
            # Three are allowed, and one of them was spent on whether nginx is there.
            *_, too_often = [httpx.get(url) for _ in range(3)]
            refused(too_often, 429, "50 times a second")
            assert too_often.headers["Retry-After"] == "1"


def test_a_service_that_is_gone_is_busy(tmp_path: Path) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(ExitStack())
        port = service.enter_context(answering("127.0.0.1", b"here"))
        change = ("http://service:8000", f"http://127.0.0.1:{port}")
        url = stack.enter_context(proxying(tmp_path, change))
        assert httpx.get(url).content == b"here"
        service.close()
        for answer in (httpx.get(url), httpx.post(f"{url}/embed", content=PATCH, headers=NPY)):
            refused(answer, 503, "try again")
            assert answer.headers["Retry-After"] == "2"


def test_clients_of_an_outer_proxy_have_limits_of_their_own(tmp_path: Path) -> None:
    """And do not escape theirs by an address that they make up."""
    one, other, made_up = "203.0.113.7", "203.0.113.8", "198.51.100.9"
    with answering("127.0.0.1", b"here") as port:
        changes = [("http://service:8000", f"http://127.0.0.1:{port}")]
        changes += [("rate=50r/s", "rate=1r/m"), ("burst=100", "burst=2")]
        with proxying(tmp_path, *changes) as url:

            def status(forwarded_for: str) -> int:
                return httpx.get(url, headers={"X-Forwarded-For": forwarded_for}).status_code

            assert [status(one) for _ in range(4)] == [200, 200, 200, 429]
            assert status(f"{made_up}, {one}") == 429
            assert status(other) == 200


def test_the_proxy_finds_a_service_that_was_made_anew(tmp_path: Path) -> None:
    """Under the same name at another address, as Docker's own names say from then on."""
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        port = first.enter_context(answering("127.0.0.1", b"first"))
        stack.enter_context(answering("127.0.0.2", b"second", port))
        names = {"service": "127.0.0.1"}
        resolver = stack.enter_context(naming(names))
        changes = [("127.0.0.11 valid=10s", f"127.0.0.1:{resolver} valid=1s")]
        changes += [("service:8000", f"service:{port}")]
        url = stack.enter_context(proxying(tmp_path, *changes))
        assert httpx.get(url).content == b"first"
        first.close()
        names["service"] = "127.0.0.2"
        eventually(lambda: httpx.get(url).content == b"second")


@contextmanager
def served(server: BaseServer) -> Iterator[int]:
    """The port of a server that answers in a thread meanwhile."""
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(address: str, content: bytes, port: int = 0) -> Iterator[int]:
    """The port of a server at an address of loopback whose every answer is `content`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with served(ThreadingHTTPServer((address, port), Handler)) as at:
        yield at


@contextmanager
def naming(addresses: dict[str, str]) -> Iterator[int]:
    """The UDP port of a server of names (RFC 1035) that knows these alone, for a second each."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            asked, sending = self.request
            name = asked[13 : 13 + asked[12]].decode()
            # What came, with one answer: the same name, type A, class IN, a second, four bytes.
            head = asked[:2] + bytes.fromhex("8180 0001 0001 0000 0000")
            record = bytes.fromhex("c00c 0001 0001 00000001 0004")
            address = socket.inet_aton(addresses[name])
            sending.sendto(head + asked[12:] + record + address, self.client_address)

    with served(UDPServer(("127.0.0.1", 0), Handler)) as at:
        yield at
