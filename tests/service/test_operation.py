"""What an operator relies on: reload, drain, limits of time and memory, figures and the log."""

import asyncio
import io
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest

from mimodel.artifact import Artifact, Networks, save_artifact
from mimodel.backends import Backend
from service.app import create_app
from service.observing import JsonLines
from service.server import begin_no_connection
from service.settings import Settings
from tests.service.bodies import npy_bytes, unspeakable_tiff
from tests.service.conftest import serving
from tests.service.test_http import JSON, NPY, TIFF, refused
from tests.service.test_load import PATCH, app_in_a_thread, in_a_thread


def another(artifact: Artifact, folder: Path) -> Artifact:
    """A model of the same shape with other weights, written in the place of what is there."""
    networks = Networks(artifact.spec)
    spec = artifact.spec.model_copy(update={"name": "another"})
    return save_artifact(folder, spec, networks.state_dict(), "# Another\n")


def renewed(artifact: Artifact, folder: Path, **changes: object) -> Artifact:
    """The same weights under a changed specification, in the place of what is; indexes fit."""
    spec = artifact.spec.model_copy(update=changes)
    return save_artifact(folder, spec, artifact.networks.state_dict(), "# Renewed\n")


def requests_of_all_kinds(artifact: Artifact) -> dict[str, tuple[dict[str, str], bytes]]:
    """Paths with headers and bodies that a service with an index answers."""
    tensor = {"name": "pixels", "shape": [1, 4, 64, 64], "datatype": "FP32"}
    asked = {"inputs": [tensor | {"data": [0.25] * 4 * 64 * 64}]}
    image = npy_bytes(np.full((4, 80, 80), 0.1, np.float32))
    return {
        "/embed": (NPY, PATCH),
        "/classify": (NPY, PATCH),
        "/similarity?row=9&col=9&stride=16": (NPY, image),
        "/search": (NPY, PATCH),
        "/preview": (NPY, image),
        f"/v2/models/{artifact.spec.name}/infer": (JSON, json.dumps(asked).encode()),
    }


@pytest.fixture
def folder(artifact_folder: Path, tmp_path: Path) -> Path:
    """An artifact that may be changed."""
    return Path(shutil.copytree(artifact_folder, tmp_path / "artifact"))


def eventually(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def figure(client: httpx.Client, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found, f"no {line}"
    return float(found[1])


class Load:
    """Threads that ask again and again, one thing after the other, each on its own connection."""

    def __init__(self, url: str, clients: int, asked: dict[str, tuple[dict[str, str], bytes]]):
        self.outcomes: list[tuple[str, int, str]] = []
        """Path, status, and digest of the model."""
        self.lost: list[str] = []
        self._url = url
        self._asked = asked
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for path in cycle(self._asked):
                if self._over.is_set():
                    return
                headers, body = self._asked[path]
                try:
                    answer = client.post(path, content=body, headers=headers)
                except httpx.ConnectError:
                    return  # the port is closed: nothing was sent
                except httpx.TransportError as error:
                    self.lost.append(repr(error))
                    return
                model = answer.headers.get("X-Artifact", "")
                self.outcomes.append((path, answer.status_code, model))

    def has_answers_to(self, paths: set[str], digest: str) -> bool:
        """Whether a model has answered on each of these paths."""
        return {path for path, _, model in self.outcomes if model == digest} == paths

    def __enter__(self) -> "Load":
        eventually(lambda: len(self.outcomes) >= len(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_when_the_service_ends_under_load(artifact_folder: Path) -> None:
    with serving(artifact_folder) as running:
        with Load(running.url, 6, {"/embed": (NPY, PATCH)}) as load:
            assert running.stop() == 0
        assert load.lost == []
        assert {status for _, status, _ in load.outcomes} == {200}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/healthz")


@pytest.mark.skipif(sys.platform != "linux", reason="sockets are filtered by Linux's BPF")
def test_a_port_about_to_close_begins_no_connection_and_keeps_those_that_wait() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as before,
        socket.socket() as late,
    ):
        begin_no_connection(listening)
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            before.sendall(b"asked")
            assert accepted.recv(5) == b"asked"
        listening.settimeout(0)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_no_request_fails_when_the_model_changes_under_load(
    artifact: Artifact, folder: Path, index_folder: Path
) -> None:
    asked = requests_of_all_kinds(artifact)
    options = ("--index", str(index_folder), "--limit", "watch_seconds=0.05")
    with serving(folder, *options) as running:
        with httpx.Client(base_url=running.url, timeout=60) as client:
            with Load(running.url, 4, asked) as load:
                for done in ("1", "2"):
                    new = renewed(artifact, folder, provenance={"number": done})
                    if done == "2":
                        running.process.send_signal(signal.SIGHUP)
                    eventually(partial(load.has_answers_to, set(asked), new.digest), 120)
            assert load.lost == []
            assert {status for _, status, _ in load.outcomes} == {200}
            assert figure(client, 'crossmi_reloads_total{outcome="failed"}') == 0
            document = client.get("/models").json()["models"][0]
            assert document["artifact"]["digest"] == new.digest


def test_a_damaged_artifact_does_not_replace_the_one_that_answers(
    artifact: Artifact, folder: Path
) -> None:
    app = create_app(artifact, Settings(watch_seconds=0), folder)
    with app_in_a_thread(app) as client:
        before = client.post("/embed", content=PATCH, headers=NPY).json()
        model = folder / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1] + b"\xff")
        app.state.engine.want_reload()
        eventually(lambda: figure(client, 'crossmi_reloads_total{outcome="failed"}') == 1)
        assert client.post("/embed", content=PATCH, headers=NPY).json() == before
        shutil.rmtree(folder)
        new = another(artifact, folder)
        app.state.engine.want_reload()
        eventually(lambda: figure(client, 'crossmi_reloads_total{outcome="done"}') == 1)
        answer = client.post("/embed", content=PATCH, headers=NPY).json()
        assert answer["artifact"]["id"] == new.id
        assert figure(client, f'crossmi_model_info{{digest="{new.digest}",id="{new.id}"}}') == 1


def test_what_takes_too_long_is_given_up(artifact: Artifact) -> None:
    with in_a_thread(artifact, Settings(answer_seconds=0.001)) as client:
        answer = client.post("/embed", content=PATCH, headers=NPY)
        refused(answer, 503, "no answer within 0.001 seconds")
        assert answer.headers["Retry-After"]
        eventually(lambda: figure(client, "crossmi_places_taken") == 0)


def test_what_nobody_waits_for_is_given_up(artifact: Artifact) -> None:
    app = create_app(artifact, Settings())
    image = npy_bytes(np.full((4, 80, 80), 0.1, np.float32))
    head = (
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
        "Content-Length: {}\r\n\r\n"
    )
    with app_in_a_thread(app) as client:
        engine, gate = app.state.engine, threading.Event()
        try:
            # The model is busy for as long as it takes to see.
            busy = asyncio.run_coroutine_threadsafe(engine.compute(gate.wait), engine._loop)
            here = client.base_url.host, client.base_url.port or 0
            with socket.create_connection(here) as first, socket.create_connection(here) as second:
                first.sendall(head.format("/similarity?row=9&col=9", len(image)).encode() + image)
                second.sendall(head.format("/embed", len(PATCH)).encode() + PATCH)
                eventually(lambda: figure(client, "crossmi_places_taken") == 2)
                eventually(lambda: len(engine._batcher._jobs) == 2)
            eventually(lambda: figure(client, "crossmi_places_taken") == 0)
            for of in ("bodies", "pixels"):
                assert figure(client, f'crossmi_waiting_bytes{{of="{of}"}}') == 0
        finally:
            gate.set()
        assert busy.result(20)
        assert client.post("/embed", content=PATCH, headers=NPY).is_success
        of = 'crossmi_requests_total{{method="POST",route="{}",status="{}"}}'
        assert figure(client, of.format("/similarity", 499)) == 1
        assert figure(client, of.format("/embed", 499)) == 1
        assert figure(client, "crossmi_model_calls_total") == 2  # the warm-up and the gate
        assert figure(client, "crossmi_batch_patches_count") == 1


def test_answers_that_nobody_takes_count(artifact: Artifact) -> None:
    """A client that asks for much and reads nothing holds memory, which others are told of."""
    count = 512
    app = create_app(artifact, Settings(max_patches=count, max_waiting_bytes=20 << 20))
    body = npy_bytes(np.zeros((1, 4, 64, 64), np.float32))
    with app_in_a_thread(app) as client:
        engine = app.state.engine
        held = 'crossmi_waiting_bytes{of="answers"}'

        async def long_answer(*_: object) -> np.ndarray:
            return np.zeros((1, 6 << 20), np.float32)

        engine.embed = long_answer
        head = (
            "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
            f"Accept: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        here = client.base_url.host, client.base_url.port or 0
        with socket.create_connection(here) as slow:
            slow.sendall(head.encode() + body)
            eventually(lambda: figure(client, held) > 24 << 20)
            answer = client.post("/embed", content=PATCH, headers=NPY)
            refused(answer, 503, "answers that wait to be taken")
            assert answer.headers["Retry-After"]
            taken = 0
            while taken < 24 << 20:
                taken += len(slow.recv(1 << 20))
            eventually(lambda: figure(client, held) == 0)
        del engine.embed
        assert client.post("/embed", content=PATCH, headers=NPY).is_success


def test_an_answer_that_nobody_takes_is_cut_off_and_its_memory_is_free(
    artifact_folder: Path,
) -> None:
    """Real bytes: a client asks for 32 layers of 512 x 512 scores, and reads a few bytes."""
    image = npy_bytes(np.full((4, 512, 512), 0.1, np.float32))
    pixels = "&".join(f"pixel={at},{at}" for at in range(100, 420, 10))
    head = (
        f"POST /similarity?{pixels}&maps=each&stride=64 HTTP/1.1\r\nHost: x\r\n"
        "Content-Type: application/x-npy\r\nAccept: application/x-npy\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    )
    held = 'crossmi_waiting_bytes{of="answers"}'
    options = ("--limit", "max_scores=8388608", "--limit", "taken_seconds=1")
    with (
        serving(artifact_folder, *options) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), 120) as slow,
    ):
        slow.sendall(head.encode() + image)
        assert slow.recv(12) == b"HTTP/1.1 200"
        eventually(lambda: figure(client, held) == 0)
        taken = 0
        with suppress(ConnectionResetError):
            while part := slow.recv(1 << 20):
                taken += len(part)
        assert taken < 32 << 20  # the system had taken in a part of it
        assert client.post("/embed", content=PATCH, headers=NPY).status_code == 200


def test_bodies_that_fill_the_memory_for_them_are_refused_and_leave_nothing(
    artifact: Artifact,
) -> None:
    room = Settings(max_waiting_bytes=100_000)
    with in_a_thread(artifact, room) as client:
        large = npy_bytes(np.zeros((2, 4, 64, 64), np.float32))
        refused(client.post("/embed", content=large, headers=NPY), 503, "fill the memory")
        assert client.post("/embed", content=PATCH, headers=NPY).status_code == 200
        for of in ("bodies", "pixels"):
            assert figure(client, f'crossmi_waiting_bytes{{of="{of}"}}') == 0
        assert figure(client, "crossmi_places_taken") == 0


def test_a_client_that_asks_too_often_is_told_when_to_come_back(artifact: Artifact) -> None:
    keys = ("correct-horse-battery-staple", "another-key-of-some-length")
    settings = Settings.model_validate({"max_rate": 0.5, "api_key": ",".join(keys)})
    with in_a_thread(artifact, settings) as client:
        first, second = ({"Authorization": f"Bearer {key}"} for key in keys)
        assert client.get("/models", headers=first).status_code == 200
        answer = client.get("/models", headers=first)
        refused(answer, 429, "0.5 times a second")
        assert 1 <= int(answer.headers["Retry-After"]) <= 2
        assert client.get("/models", headers=second).status_code == 200
        # Whoever has no key uses up nobody's rate, and what is open is open.
        assert client.get("/models").status_code == 401
        assert client.get("/healthz").status_code == 200
        responses = client.get("/openapi.json").json()["paths"]["/embed"]["post"]["responses"]
        assert {"401", "429"} <= set(responses)


def test_figures_count_what_was_asked(artifact: Artifact) -> None:
    with in_a_thread(artifact, Settings()) as client:
        several = npy_bytes(np.zeros((3, 4, 64, 64), np.float32))
        assert client.post("/embed", content=several, headers=NPY).status_code == 200
        assert client.post("/embed", content=b"no", headers=NPY).status_code == 400
        assert client.get("/../../etc/passwd").status_code == 404
        assert client.request("BREW", "/embed").status_code == 405
        of = 'crossmi_requests_total{{method="{}",route="{}",status="{}"}}'
        assert figure(client, of.format("POST", "/embed", 200)) == 1
        assert figure(client, of.format("POST", "/embed", 400)) == 1
        assert figure(client, of.format("GET", "other", 404)) == 1
        assert "BREW" not in client.get("/metrics").text
        assert figure(client, "crossmi_batch_patches_sum") == 3
        assert figure(client, "crossmi_batch_patches_count") == 1
        assert figure(client, "crossmi_model_calls_total") == 1  # the model was warmed up
        assert figure(client, 'crossmi_request_seconds_count{route="/embed"}') >= 2


def test_the_log_has_a_line_a_request_and_nothing_that_was_sent(
    artifact: Artifact,
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("crossmi")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with in_a_thread(artifact, Settings()) as client:
            given = {"X-Request-ID": "proxy-17"}
            answer = client.post("/embed", content=PATCH, headers=NPY | given)
            assert answer.headers["X-Request-ID"] == "proxy-17"
            secret = client.post("/embed?hidden=s3cret", content=b"s3cret", headers=NPY)
            made = secret.headers["X-Request-ID"]
            assert re.fullmatch("[0-9a-f]{32}", made)
            odd = client.get("/s3cret%0A", headers={"X-Request-ID": "a b c"})
            assert odd.headers["X-Request-ID"] != "a b c"
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    by_id = {line["request"]: line for line in said if line["event"] == "request"}
    assert by_id["proxy-17"] | {"seconds": 0, "time": ""} == {
        "time": "", "level": "info", "logger": "crossmi.service", "event": "request",
        "request": "proxy-17", "route": "/embed", "method": "POST", "status": 200, "seconds": 0,
        "received": len(PATCH), "sent": len(answer.content), "client": "127.0.0.1",
    }  # fmt: skip
    assert by_id[made]["status"] == 422
    assert "s3cret" not in stream.getvalue()


def test_the_log_is_lines_of_json_whatever_gdal_says_of_an_upload(
    artifact_folder: Path, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as log, serving(artifact_folder, log=log) as running:
        answer = httpx.post(f"{running.url}/embed", content=unspeakable_tiff(), headers=TIFF)
        assert answer.status_code == 200, answer.text
        assert running.stop() == 0
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    ignored = {"kind": "UnicodeDecodeError", "place": "rasterio._env.log_error"}
    assert ignored in [{key: line.get(key) for key in ignored} for line in said]
    assert "GDALMetadata" not in (tmp_path / "log").read_text()


def test_warnings_and_what_nobody_catches_are_lines_of_the_log() -> None:
    program = (
        "import warnings; from service.observing import log_as_lines; log_as_lines(); "
        "warnings.warn('of a library'); raise RuntimeError('a bug')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    warned, failed = (json.loads(line) for line in done.stderr.splitlines())
    assert warned["logger"] == "py.warnings"
    assert "of a library" in warned["event"]
    assert "RuntimeError: a bug" in failed["error"]


def test_readiness_ends_with_the_notice(artifact: Artifact) -> None:
    app = create_app(artifact, Settings())
    with app_in_a_thread(app) as client:
        assert "connection" not in client.get("/readyz").headers
        app.state.engine.drain()
        answer = client.get("/readyz")
        refused(answer, 503, "about to end")
        assert answer.headers["Connection"] == "close"
        assert client.post("/embed", content=PATCH, headers=NPY).status_code == 200


def test_the_settings_know_the_backends_that_there_are() -> None:
    assert set(get_args(Settings.model_fields["backend"].annotation)) == set(Backend)
