"""A new artifact is noticed whenever it comes, and tried until it can be read."""

import asyncio
import gc
import os
import shutil
import socket
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path

import pytest

from mimodel.artifact import Artifact
from service import server
from service.app import create_app
from service.engine import Model
from service.reloading import Watch
from service.settings import Settings
from tests.service.test_http import NPY
from tests.service.test_load import PATCH, app_in_a_thread
from tests.service.test_operation import (
    another,
    eventually,
    figure,
    renewed,
    requests_of_all_kinds,
)

_FAILED = 'crossmi_reloads_total{outcome="failed"}'
_DONE = 'crossmi_reloads_total{outcome="done"}'


@pytest.fixture
def folder(artifact_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact_folder, tmp_path / "artifact"))


def test_what_could_not_be_read_because_it_was_arriving_is_tried_again(
    artifact: Artifact, folder: Path, tmp_path: Path
) -> None:
    new = another(artifact, tmp_path / "new")
    app = create_app(artifact, Settings(watch_seconds=0.05), folder)
    with app_in_a_thread(app) as client:
        # As a copy goes: the sums are there before the weights that they are of.
        shutil.copyfile(tmp_path / "new/README.md", folder / "README.md")
        shutil.copyfile(tmp_path / "new/SHA256SUMS", folder / "SHA256SUMS")
        eventually(lambda: figure(client, _FAILED) >= 1)
        shutil.copyfile(tmp_path / "new/model.safetensors", folder / "model.safetensors")
        eventually(lambda: figure(client, _DONE) == 1)
        answer = client.post("/embed", content=PATCH, headers=NPY).json()
        assert answer["artifact"]["id"] == new.id
        assert figure(client, _DONE) == 1


def test_a_request_is_answered_by_the_model_that_it_began_with(
    artifact: Artifact, folder: Path, index_folder: Path
) -> None:
    """Also where the new model has another name: a request to the old one was accepted."""
    app = create_app(artifact, Settings(watch_seconds=0), folder, index_folder)
    asked = requests_of_all_kinds(artifact)
    with app_in_a_thread(app) as client, ExitStack() as stack:
        here = client.base_url.host, client.base_url.port or 0
        begun = {path: stack.enter_context(socket.create_connection(here, 60)) for path in asked}
        for path, (headers, body) in asked.items():
            head = {"Host": "x", "Content-Length": str(len(body)), **headers}
            lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
            begun[path].sendall("\r\n".join([*lines, "", ""]).encode() + body[:1000])
        eventually(lambda: figure(client, "crossmi_places_taken") == len(asked))
        new = renewed(artifact, folder, name="another")
        app.state.engine.want_reload()
        eventually(lambda: figure(client, _DONE) == 1)
        now = client.post("/embed", content=PATCH, headers=NPY)
        assert now.headers["X-Artifact"] == new.digest
        for path, (_, body) in asked.items():
            begun[path].sendall(body[1000:])
            answer = HTTPResponse(begun[path])
            answer.begin()
            assert (answer.status, answer.getheader("X-Artifact")) == (200, artifact.digest), path


@pytest.fixture
def own_collector() -> Iterator[None]:
    """What is set aside in a test is looked through again after it."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("own_collector")
def test_what_was_set_aside_at_the_start_is_freed_with_the_model(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in a model refers to itself in a circle, which would then stay for good."""
    app = create_app(Artifact.load(folder), Settings(watch_seconds=0), folder)
    kept = [weakref.ref(app.state.engine.model), weakref.ref(app.state.engine.model.artifact)]
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(server.Server, "run", lambda *_, **__: None)
        patch.setattr(server.signal, "signal", lambda *_: None)
        patch.setattr(server, "log_as_lines", lambda: None)
        server.run(app, listening, Settings())
    assert gc.get_freeze_count() > len(gc.get_objects())
    with app_in_a_thread(app) as client:
        assert client.post("/embed", content=PATCH, headers=NPY).status_code == 200
        renewed(artifact, folder, name="another")
        app.state.engine.want_reload()
        eventually(lambda: figure(client, _DONE) == 1)
        eventually(lambda: all(one() is None for one in kept))


def test_what_was_swapped_while_the_service_started_is_noticed(
    artifact: Artifact, folder: Path
) -> None:
    new = another(artifact, folder)  # after `artifact` was loaded, before there is a service
    app = create_app(artifact, Settings(watch_seconds=0.05), folder)
    with app_in_a_thread(app) as client:
        eventually(lambda: figure(client, _DONE) == 1)
        answer = client.post("/embed", content=PATCH, headers=NPY).json()
        assert answer["artifact"]["id"] == new.id


def test_no_fault_ends_the_looking_nor_the_closing(
    artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(artifact, Settings(watch_seconds=0.05), folder)
    engine = app.state.engine
    whole = Model.of
    with app_in_a_thread(app) as client:
        with monkeypatch.context() as patch:
            # Nothing that anybody has foreseen.
            patch.setattr(Model, "of", lambda *_: (_ for _ in ()).throw(KeyError("odd")))
            new = another(artifact, folder)
            eventually(lambda: figure(client, _FAILED) >= 1)
        assert Model.of == whole
        eventually(lambda: figure(client, _DONE) == 1)
        answer = client.post("/embed", content=PATCH, headers=NPY).json()
        assert answer["artifact"]["id"] == new.id
    assert not engine._batcher._thread.is_alive()


def test_threads_end_also_where_the_model_cannot_be_warmed_up(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(artifact, Settings())
    engine = app.state.engine

    def broken(_: Model) -> None:
        raise RuntimeError("no such luck")

    async def live() -> None:
        async with engine.lifespan(app):
            await asyncio.sleep(0.05)

    monkeypatch.setattr(Model, "warm_up", broken)
    asyncio.run(live())
    assert not engine.ready
    assert not engine._batcher._thread.is_alive()


def test_the_pauses_between_attempts_grow_and_end_with_a_change(
    artifact: Artifact, folder: Path
) -> None:
    watch = Watch(folder, None, artifact.digest, 60.0)
    sums, now = folder / "SHA256SUMS", watch._stamp()
    assert not watch._due(now)
    os.utime(sums, ns=(1, 1))
    changed = watch._stamp()
    assert watch._due(changed)
    pauses = []
    for _ in range(5):
        watch.failed(changed)
        pauses.append(watch._pause)
        assert not watch._due(changed)
    assert pauses == [60, 120, 240, 300, 300]
    os.utime(sums, ns=(2, 2))
    assert watch._due(watch._stamp())
    watch.failed(watch._stamp())
    assert watch._pause == 60
    sums.unlink()
    assert not watch._due(watch._stamp())  # it is being swapped
