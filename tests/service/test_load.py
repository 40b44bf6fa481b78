"""Too many requests, slow ones, keys, and the end of the process."""

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from mimodel.artifact import Artifact
from mimodel.index import PatchIndex
from mimodel.similarity import PreparedImage
from service.app import create_app
from service.settings import Settings
from tests.service.bodies import npy_bytes
from tests.service.conftest import serving
from tests.service.test_http import AS_NPY, NPY, array_of, refused

PATCH = npy_bytes(np.zeros((1, 4, 64, 64), np.float32))


@contextmanager
def in_a_thread(artifact: Artifact, settings: Settings) -> Iterator[httpx.Client]:
    """A client of a real server in this process."""
    with app_in_a_thread(create_app(artifact, settings)) as client:
        yield client


@contextmanager
def app_in_a_thread(app: FastAPI) -> Iterator[httpx.Client]:
    """The same of an app that the test keeps at hand."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, http="h11", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        port = listening.getsockname()[1]
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                while client.get("/readyz").status_code == 503:
                    time.sleep(0.05)
                yield client
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def half_a_request(client: httpx.Client, path: str = "/embed") -> Iterator[socket.socket]:
    """A connection on which a body has begun and does not go on."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as sending:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
        sending.sendall(f"{head}Content-Length: {len(PATCH)}\r\n\r\n".encode() + PATCH[:1000])
        yield sending


def test_health_is_answered_while_the_model_and_the_decoder_are_busy(artifact: Artifact) -> None:
    app = create_app(artifact, Settings())
    with app_in_a_thread(app) as client, ThreadPoolExecutor(1) as pool:
        engine, gate = app.state.engine, threading.Event()
        try:
            for busy in (engine.compute, engine.prepare):
                for _ in range(8):  # as many as there are threads, and more
                    asyncio.run_coroutine_threadsafe(busy(gate.wait), engine._loop)
            waiting = pool.submit(client.post, "/embed", content=PATCH, headers=NPY)
            # One that waited for the model would wait for the gate.
            while "crossmi_places_taken 1.0" not in client.get("/metrics").text:
                time.sleep(0.02)
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.get("/readyz").status_code == 200
            assert client.get("/v2/health/live").json() == {"live": True}
            assert not waiting.done()
        finally:
            gate.set()
        assert waiting.result(60).status_code == 200


def test_one_too_many_is_told_to_come_back_and_health_is_answered(artifact: Artifact) -> None:
    with in_a_thread(artifact, Settings(max_waiting=1)) as client:
        good = client.post("/embed", content=PATCH, headers=NPY | AS_NPY)
        with half_a_request(client) as first, ExitStack() as others:
            answer = good
            for _ in range(20):
                # Again and again, since our own question may have taken the last place.
                others.enter_context(half_a_request(client))
                time.sleep(0.05)
                answer = client.post("/embed", content=PATCH, headers=NPY)
                if answer.status_code == 503:
                    break
            refused(answer, 503, "try again")
            assert int(answer.headers["Retry-After"]) > 0
            assert client.get("/healthz").status_code == 200
            # A request that waits is served as soon as its body is there.
            first.sendall(PATCH[1000:])
            assert first.recv(12) == b"HTTP/1.1 200"
        # The other connections were closed in the middle of their bodies: their places are free.
        deadline = time.monotonic() + 20
        while answer.status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.02)
            answer = client.post("/embed", content=PATCH, headers=NPY | AS_NPY)
        assert array_of(answer).tobytes() == array_of(good).tobytes()


def test_a_body_that_drips_is_given_up(artifact: Artifact) -> None:
    with in_a_thread(artifact, Settings(body_seconds=0.5)) as client:
        with half_a_request(client) as sending:
            sending.settimeout(20)
            answer = b""
            while b"}" not in answer:
                answer += sending.recv(4096)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in head
        assert "0.5 seconds" in json.loads(body)["detail"]


def test_a_key_is_wanted_where_there_is_one(artifact: Artifact) -> None:
    key = "correct-horse-battery-staple"
    with in_a_thread(artifact, Settings.model_validate({"api_key": key})) as client:
        for headers in (
            {},
            {"Authorization": key},
            {"Authorization": f"Basic {key}"},
            {"Authorization": f"Bearer {key[:-1]}"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer schlüssel".encode("latin-1")},
        ):
            answer = client.post("/embed", content=PATCH, headers={**NPY, **headers})
            refused(answer, 401, "Bearer KEY")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert client.get("/models", headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {key}"}
        assert client.post("/embed", content=PATCH, headers=NPY | right).status_code == 200
        assert client.get("/models", headers=right).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        document = client.get("/openapi.json").json()
        assert "401" in document["paths"]["/embed"]["post"]["responses"]


def test_what_a_model_and_an_index_work_out_is_off_the_event_loop(
    artifact: Artifact, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: dict[str, bool] = {}

    def note(kind: type, name: str) -> None:
        whole = getattr(kind, name)

        def noted(*given: object, **named: object) -> object:
            # Only the thread of the event loop has one that runs.
            on_the_loop[name] = asyncio._get_running_loop() is not None
            return whole(*given, **named)

        monkeypatch.setattr(kind, name, noted)

    note(Artifact, "probabilities")
    note(PreparedImage, "joined")
    note(PatchIndex, "eligible")
    note(PatchIndex, "search")
    image = npy_bytes(np.full((4, 80, 80), 0.1, np.float32))
    with app_in_a_thread(create_app(artifact, Settings(), index=index_folder)) as client:
        for path, body in (
            ("/classify", PATCH),
            ("/similarity?row=9&col=9&stride=16", image),
            ("/search", PATCH),
        ):
            assert client.post(path, content=body, headers=NPY).status_code == 200
    assert on_the_loop == dict.fromkeys(("probabilities", "joined", "eligible", "search"), False)


@pytest.mark.slow
def test_sigterm_lets_open_requests_end(artifact_folder: Path) -> None:
    image = npy_bytes(np.random.default_rng(0).uniform(0, 1, (4, 160, 160)).astype(np.float32))
    answers: list[tuple[int, float]] = []

    def work(client: httpx.Client, sent: threading.Event, stride: int) -> None:
        def body() -> Iterator[bytes]:
            yield image
            sent.set()

        query = {"row": 80, "col": 80, "stride": stride}
        answer = client.post("/similarity", params=query, content=body(), headers=NPY)
        assert len(answer.json()["scores"]) == 96 // stride + 1
        answers.append((answer.status_code, time.monotonic()))

    with serving(artifact_folder) as running, ExitStack() as stack:
        events, threads = [], []
        for stride in (4, 8):
            client = stack.enter_context(httpx.Client(base_url=running.url, timeout=120))
            client.get("/healthz")  # so that the connection stands
            events.append(threading.Event())
            threads.append(threading.Thread(target=work, args=(client, events[-1], stride)))
            threads[-1].start()
        for event in events:
            assert event.wait(20)
        time.sleep(0.3)
        assert answers == []
        stopped = time.monotonic()
        assert running.stop() == 0
        for thread in threads:
            thread.join()
        assert [status for status, _ in answers] == [200, 200]
        assert max(at for _, at in answers) > stopped
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz")


def test_the_end_waits_for_all_that_a_request_may_take() -> None:
    for body_seconds, answer_seconds in ((30.0, 120.0), (0.5, 900.25)):
        settings = Settings(body_seconds=body_seconds, answer_seconds=answer_seconds)
        assert settings.drain_seconds >= body_seconds + answer_seconds


@pytest.mark.slow
def test_a_body_that_takes_longer_than_half_a_minute_is_answered_after_sigterm(
    artifact_folder: Path,
) -> None:
    with serving(artifact_folder, "--limit", "body_seconds=90") as running:
        with httpx.Client(base_url=running.url) as client, half_a_request(client) as sending:
            sending.settimeout(60)
            time.sleep(0.5)  # it has begun
            running.process.send_signal(signal.SIGTERM)
            time.sleep(35)
            assert running.process.poll() is None
            sending.sendall(PATCH[1000:])
            assert sending.recv(12) == b"HTTP/1.1 200"
        assert running.process.wait(60) == 0
