"""What maps keep in memory: one number of bytes for all images, of which old ones go."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from mimodel.artifact import Artifact
from mimodel.likeness import Comparison
from mimodel.similarity import PreparedImage
from service.app import create_app
from service.errors import BusyError
from service.images import Images
from service.settings import Settings
from tests.models import pixel_artifact
from tests.service.bodies import npy_bytes
from tests.service.test_http import NPY, refused
from tests.service.test_load import app_in_a_thread, in_a_thread
from tests.service.test_operation import another, eventually, figure

_HELD = 'crossmi_waiting_bytes{of="images"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "artifact"


@pytest.fixture(scope="module")
def pixels(folder: Path) -> Artifact:
    return pixel_artifact(folder)


@pytest.fixture(scope="module")
def comparison(pixels: Artifact) -> Comparison:
    return Comparison(pixels)


def keeping(count: int, **limits: float) -> Images:
    return Images(Settings.model_validate({"map_cache_bytes": count, **limits}))


def asked(images: Images, key: bytes, pixels: Artifact, comparison: Comparison) -> PreparedImage:
    """A new image that was asked about, as the route does it."""
    level = np.full((4, 12, 12), 0.1, np.float32)
    image = PreparedImage(pixels, level, keep=partial(images.room, key), comparison=comparison)
    images.put(key, image)
    image.maps([(5, 5)])
    return image


@pytest.fixture(scope="module")
def size(pixels: Artifact, comparison: Comparison) -> int:
    """Bytes of one such image with its features."""
    return asked(keeping(1 << 30), b"", pixels, comparison).nbytes


def test_what_is_asked_about_least_recently_gives_way(
    pixels: Artifact, comparison: Comparison, size: int
) -> None:
    images = keeping(5 * size // 2)
    for key in (b"a", b"b"):
        asked(images, key, pixels, comparison)
    assert images.get(b"a")  # later than b
    third = asked(images, b"c", pixels, comparison)
    assert third.nbytes == size
    assert images.get(b"b") is None
    assert images.get(b"a")
    assert images.get(b"c") is third
    assert images.nbytes == 2 * size


def test_images_that_are_worked_on_count_whether_they_are_kept_or_not(
    pixels: Artifact, comparison: Comparison, size: int
) -> None:
    images = keeping(5 * size // 2)
    in_work = [asked(images, bytes([key]), pixels, comparison) for key in range(6)]
    bare = in_work[-1].valid.size * (4 * 4 + 1)
    # Features only as far as there is room; pixels came by requests, and count by them.
    assert images.nbytes <= 5 * size // 2 + 6 * bare
    assert sum(image.nbytes > bare for image in in_work) == 2
    del in_work
    asked(images, b"new", pixels, comparison)
    assert images.nbytes <= 5 * size // 2


def test_without_room_nothing_is_kept(pixels: Artifact, comparison: Comparison) -> None:
    images = keeping(0)
    asked(images, b"a", pixels, comparison)
    assert images.get(b"a") is None
    assert images.nbytes == 0


def test_images_expire_when_nobody_asks(
    pixels: Artifact, comparison: Comparison, size: int
) -> None:
    now = [0.0]
    images = Images(Settings(map_cache_seconds=60), clock=lambda: now[0])
    asked(images, b"a", pixels, comparison)
    now[0] = 40.0
    asked(images, b"b", pixels, comparison)
    now[0] = 60.0
    images.expire()
    assert images.get(b"a") is None
    assert images.get(b"b")  # asked about now
    now[0] = 119.0
    images.expire()
    assert images.nbytes == size
    now[0] = 120.0
    images.expire()
    assert images.nbytes == 0


def test_no_more_maps_than_so_many_at_once() -> None:
    images = keeping(0, max_maps=2)
    with images.work():
        with images.work(), pytest.raises(BusyError, match="2 similarity maps"), images.work():
            pass
        with images.work():
            pass


def test_a_map_too_many_is_told_to_come_back(pixels: Artifact) -> None:
    app = create_app(pixels, Settings(max_maps=1))
    body = npy_bytes(noise(0))

    def ask(client: httpx.Client) -> httpx.Response:
        return client.post("/similarity?row=8&col=9", content=body, headers=NPY)

    with app_in_a_thread(app) as client, ThreadPoolExecutor(1) as pool:
        engine, gate = app.state.engine, threading.Event()
        busy = asyncio.run_coroutine_threadsafe(engine.compute(gate.wait), engine._loop)
        try:
            first = pool.submit(ask, client)
            eventually(lambda: engine.model.images._maps == 1)
            answer = ask(client)
            refused(answer, 503, "1 similarity maps are being worked on")
            assert answer.headers["Retry-After"]
        finally:
            gate.set()
        assert busy.result(20)
        assert first.result(60).is_success
        assert ask(client).is_success


def noise(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 0.4, (4, 20, 22)).astype(np.float32)


def test_however_many_images_come_their_bytes_are_bounded(pixels: Artifact) -> None:
    """And the networks are there once: an image without its features is its pixels."""
    limit = 2 << 20
    app = create_app(pixels, Settings(map_cache_bytes=limit))
    with app_in_a_thread(app) as client:
        held = []
        for seed in range(10):
            body = npy_bytes(noise(seed))
            assert client.post("/similarity?row=8&col=9", content=body, headers=NPY).is_success
            held.append(figure(client, _HELD))
        assert max(held) <= limit
        assert held[0] < limit / 2 < min(held[5:])  # some fit, and more than fit have come
        model = app.state.engine.model
        kept = list(model.images._alive)
        assert len(kept) > 1
        assert all(image._comparison is model.comparison for image in kept)


def test_a_new_model_leaves_no_images_of_the_old_one(folder: Path, pixels: Artifact) -> None:
    settings = Settings(watch_seconds=0, map_cache_seconds=3600)
    app = create_app(pixels, settings, folder)
    with app_in_a_thread(app) as client:
        body = npy_bytes(noise(0))
        assert client.post("/similarity?row=8&col=9", content=body, headers=NPY).is_success
        before = app.state.engine.model.images
        assert before.nbytes == figure(client, _HELD) > len(body)
        another(pixels, folder)
        app.state.engine.want_reload()
        eventually(lambda: figure(client, 'crossmi_reloads_total{outcome="done"}') == 1)
        assert figure(client, _HELD) == before.nbytes == 0


def test_images_expire_in_a_service_that_nobody_asks(pixels: Artifact) -> None:
    with in_a_thread(pixels, Settings(map_cache_seconds=0.2)) as client:
        body = npy_bytes(noise(0))
        assert client.post("/similarity?row=8&col=9", content=body, headers=NPY).is_success
        eventually(lambda: figure(client, _HELD) == 0)
