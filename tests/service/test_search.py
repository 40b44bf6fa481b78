"""`/search` over HTTP: what it finds is what brute force finds, by pixels and by look."""

import asyncio
import base64
import dataclasses
import io
import json
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mimodel.artifact import Artifact, HeadSpec
from mimodel.errors import PatchIndexError
from mimodel.index import PatchIndex, Wanted
from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube
from service.app import create_app
from service.settings import Settings
from tests.cubes import DAYS, TILES
from tests.models import small_artifact
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import serving
from tests.service.test_cli import one_sentence, refused_here
from tests.service.test_http import JSON, NPY, TIFF, refused
from tests.service.test_load import app_in_a_thread, in_a_thread
from tests.service.test_operation import eventually, figure

DATES = len(DAYS)


@pytest.fixture(scope="module")
def index(index_folder: Path) -> PatchIndex:
    return PatchIndex.load(index_folder)


@pytest.fixture(scope="module")
def reflectance(cube: Cube) -> npt.NDArray[np.float32]:
    """(patch, date, band, 64, 64)."""
    return reflectance_from_stored(cube.read(range(len(cube))))


def nearest(answer: httpx.Response, query: int = 0) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["queries"][query]["nearest"]
    return found


def looks(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(one["patch"], one["date"]) for one in found]


def brute_force(
    artifact: Artifact, reflectance: npt.NDArray[np.float32], query: tuple[int, int], split: Any
) -> npt.NDArray[np.float64]:
    """Distances of every look to one, of the shared representation, with nothing of the index."""
    patches, dates = reflectance.shape[:2]
    vectors = artifact.embed(reflectance.reshape(-1, *reflectance.shape[2:])).astype(np.float64)
    vectors = vectors.reshape(patches, dates, -1)
    valid = np.isfinite(reflectance).all(axis=2).mean(axis=(2, 3))
    deviation = vectors[(split == "train")[:, None] & (valid >= 0.95)].std(0)
    floor = 1e-3 * np.abs(vectors[(split == "train")[:, None] & (valid >= 0.95)].mean(0)) + 1e-6
    difference = (vectors - vectors[query]) / np.maximum(deviation, floor)
    distance = np.sqrt((difference**2).mean(-1))
    distance[valid < 0.9] = np.inf
    return distance


def test_a_look_finds_what_brute_force_finds(
    client: httpx.Client, artifact: Artifact, cube: Cube, reflectance: npt.NDArray[np.float32]
) -> None:
    distance = brute_force(artifact, reflectance, (6, 1), cube.split)
    distance[6, 1] = np.inf  # the look itself is never found
    expected = np.argsort(distance, axis=None)[:15]
    found = nearest(client.post("/search", params={"patch": 6, "date": 1, "count": 15}))
    assert looks(found) == [divmod(int(row), DATES) for row in expected]
    np.testing.assert_allclose(
        [one["distance"] for one in found], distance.ravel()[expected], rtol=1e-3
    )


def test_every_form_of_the_same_pixels_finds_the_same(
    client: httpx.Client, reflectance: npt.NDArray[np.float32]
) -> None:
    one = reflectance[5, 2]
    uploads: list[tuple[dict[str, str], bytes, dict[str, int]]] = [
        (NPY, npy_bytes(one[None]), {}),
        (TIFF, geotiff_bytes(one), {}),
        (TIFF, geotiff_bytes(one[[3, 0, 1, 2]], ["B08", "B04", "B03", "B02"]), {}),
        (JSON, json.dumps({"npy": base64.b64encode(npy_bytes(one[None])).decode()}).encode(), {}),
        (JSON, json.dumps({"reflectance": [one.tolist()]}).encode(), {}),
        # In the middle of a larger image, and in its corner.
        (NPY, npy_bytes(np.pad(one, ((0, 0), (20, 9), (3, 30)))), {"row": 52, "col": 35}),
        (NPY, npy_bytes(np.pad(one, ((0, 0), (0, 9), (0, 7)))), {"row": 3, "col": 31}),
    ]
    answers = [
        nearest(client.post("/search", content=body, headers=headers, params=query))
        for headers, body, query in uploads
    ]
    for found in answers:
        assert looks(found) == looks(answers[0])
        np.testing.assert_allclose(
            [each["distance"] for each in found], [each["distance"] for each in answers[0]],
            atol=1e-3,
        )  # fmt: skip
    assert looks(answers[0])[0] == (5, 2)


def test_several_patches_are_searched_as_each_alone(
    client: httpx.Client, reflectance: npt.NDArray[np.float32]
) -> None:
    some = reflectance[[0, 3, 9], 2]
    together = client.post("/search", content=npy_bytes(some), headers=NPY)
    for at, one in enumerate(some):
        alone = client.post("/search", content=npy_bytes(one[None]), headers=NPY)
        assert looks(nearest(together, at)) == looks(nearest(alone))


def test_what_is_said_of_a_look_is_the_cubes(client: httpx.Client, cube: Cube) -> None:
    for one in nearest(client.post("/search", params={"patch": 8, "date": 0, "count": 30})):
        patch, date = one["patch"], one["date"]
        for name in ("tile", "region", "row", "col", "epsg", "x", "y", "split"):
            assert one[name] == getattr(cube, name)[patch]
        assert np.datetime64(one["acquired"].removesuffix("Z")) == cube.acquired[patch, date]
        assert one["product"] == cube.product[patch, date]
        assert one["valid_fraction"] == cube.valid_fraction[patch, date]
        assert -180 <= one["lon"] <= 180
        assert (one["lat"] < 0) == (one["tile"] == TILES[1])


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"tile": TILES[1]}, Wanted(tiles=[TILES[1]])),
        ({"tile": ",".join(TILES)}, Wanted()),
        ({"start": "2019-07-05", "end": "2019-07-05"}, Wanted(months=[7], not_place=None)),
        ({"months": "2,3"}, Wanted(months=[2])),
        ({"split": "validation"}, Wanted(split="validation")),
        ({"min_valid": 0.5}, Wanted(min_valid=0.5)),
        ({"place": "same"}, Wanted(place=4)),
        ({"place": "other"}, Wanted(not_place=4)),
    ],
)
def test_filters(
    client: httpx.Client, index: PatchIndex, query: dict[str, Any], wanted: Wanted
) -> None:
    found = looks(
        nearest(client.post("/search", params={"patch": 4, "date": 1, "count": 100, **query}))
    )
    rows = np.flatnonzero(index.eligible(wanted))
    if "start" in query:
        rows = rows[rows % DATES == 1]
    expected = {divmod(int(row), DATES) for row in rows} - {(4, 1)}
    assert set(found) == expected
    assert len(found) == len(expected)


def test_one_look_a_place(client: httpx.Client, cube: Cube) -> None:
    query = {"patch": 4, "date": 1, "count": 100, "per_place": 1}
    found = nearest(client.post("/search", params=query))
    assert sorted(one["patch"] for one in found) == list(range(len(cube)))


def test_by_another_representation(
    client: httpx.Client, artifact: Artifact, reflectance: npt.NDArray[np.float32]
) -> None:
    query = {"patch": 6, "date": 1, "count": 10}
    answers = {
        name: client.post("/search", params={**query, "representation": name})
        for name in ("shared", "exclusive", "both")
    }
    assert len({tuple(looks(nearest(answer))) for answer in answers.values()}) == 3
    assert answers["both"].json()["representation"] == "both"
    # Of both, the square is the mean of the two squares.
    far = {
        name: {look: one["distance"] for one in nearest(
            client.post("/search", params={**query, "count": 100, "representation": name})
        ) for look in [(one["patch"], one["date"])]}
        for name in ("shared", "exclusive")
    }  # fmt: skip
    for one in nearest(answers["both"]):
        look = one["patch"], one["date"]
        squares = far["shared"][look] ** 2 + far["exclusive"][look] ** 2
        assert one["distance"] == pytest.approx((squares / 2) ** 0.5, rel=1e-4)


def test_thumbnails_are_where_the_answer_says(client: httpx.Client, index: PatchIndex) -> None:
    (first, *_) = nearest(client.post("/search", params={"patch": 4, "date": 1}))
    answer = client.get(first["thumbnail"])
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.content == index.thumbnail(first["patch"], first["date"])
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (64, 64)
    for path in ("9999/0.png", "0/3.png", "4294967296/0.png", "-1/0.png", "x/0.png", "0/0.jpg"):
        answer = client.get(f"/thumbnails/{path}")
        refused(answer, 404 if path in ("9999/0.png", "0/3.png", "0/0.jpg") else 422)
    refused(client.get("/thumbnails/..%2f..%2findex.json"), 404)


def test_the_index_says_what_it_holds(client: httpx.Client, cube: Cube) -> None:
    summary = client.get("/index").json()
    assert summary["patches"] == len(cube)
    assert summary["cube"] == cube.digest
    assert sum(summary["tiles"].values()) == len(cube)
    assert set(summary["tiles"]) == set(TILES)
    assert (summary["start"], summary["end"]) == (DAYS[0], DAYS[-1])
    sample = summary["sample"]
    body = client.get("/index/sample.npy").content
    query = {name: sample[name] for name in ("scale", "offset", "nodata")}
    query["bands"] = ",".join(sample["bands"])
    query |= {"row": 32, "col": 32}
    found = nearest(client.post("/search", content=body, headers=NPY, params=query))
    assert looks(found)[0] == (sample["patch"], sample["date"])


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({"patch": 4}, 422, "`patch` and `date` stand together"),
        ({"row": 4}, 422, "`row` and `col` stand together"),
        ({"patch": 4, "date": 0, "row": 1, "col": 1}, 422, "either by a look"),
        ({"place": "other"}, 422, "needs `patch` and `date`"),
        ({"patch": 4000, "date": 0}, 404, "patches at 3 dates"),
        ({"patch": 1, "date": 0}, 422, "no data"),
        ({"patch": 4, "date": 0, "tile": "01CCV"}, 422, "no tile 01CCV; it has 31TCJ"),
        ({"patch": 4, "date": 0, "tile": "../etc"}, 422, "query.tile"),
        ({"patch": 4, "date": 0, "months": "13"}, 422, "query.months"),
        ({"patch": 4, "date": 0, "start": "yesterday"}, 422, "query.start"),
        ({"patch": 4, "date": 0, "count": 0}, 422, "query.count"),
        ({"patch": 4, "date": 0, "min_valid": "nan"}, 422, "query.min_valid"),
        ({"patch": 4, "date": 0, "secret": 1}, 422, "query: Extra inputs"),
        ({}, 415, "Content-Type"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(
    client: httpx.Client, query: dict[str, Any], status: int, says: str
) -> None:
    refused(client.post("/search", params=query), status, says)


def test_pixels_that_do_not_fit_are_refused(client: httpx.Client) -> None:
    patch = np.full((1, 4, 64, 64), 0.2, np.float32)

    def ask(pixels: npt.NDArray[np.float32], **query: int) -> httpx.Response:
        return client.post("/search", content=npy_bytes(pixels), headers=NPY, params=query)

    refused(ask(patch * np.float32(np.nan)), 422, "has no data")
    refused(ask(patch[0]), 422, "patches of shape")
    refused(ask(patch, row=1, col=1), 422, "image of shape")
    refused(ask(patch[0], row=64, col=1), 422, "outside the image of 64 x 64")
    refused(ask(patch, patch=1, date=1), 422, "either pixels or a look")
    answer = client.post("/search", params={"patch": 4, "date": 1}, headers={"Accept": "image/png"})
    refused(answer, 406)


def test_without_an_index_the_answer_says_how_to_get_one(artifact: Artifact) -> None:
    with in_a_thread(artifact, Settings()) as client:
        refused(client.post("/search", params={"patch": 4, "date": 1}), 404, "--index")
        refused(client.get("/index"), 404, "mimodel embed")
        refused(client.get("/thumbnails/0/0.png"), 404)


def test_thumbnails_are_those_of_the_index_that_was_searched(
    artifact: Artifact, artifact_folder: Path, index_folder: Path, tmp_path: Path
) -> None:
    """Whatever becomes of the files on disk, and also for who has kept a link."""
    folder = Path(shutil.copytree(index_folder, tmp_path / "index"))
    app = create_app(artifact, Settings(watch_seconds=0), artifact_folder, folder)
    with app_in_a_thread(app) as client:
        link = nearest(client.post("/search", params={"patch": 4, "date": 1}))[0]["thumbnail"]
        before = client.get(link)
        assert "max-age" in before.headers["Cache-Control"]
        plain = client.get(link.partition("?")[0])
        assert plain.content == before.content
        assert plain.headers["Cache-Control"] == "no-cache"
        # Another index takes the place of this one, file by file, as `mimodel embed` writes them.
        for file in ("thumbnails/00000.bin", "thumbnails/00000.npy", "sample.npy"):
            (tmp_path / "other").write_bytes(b"something else")
            (tmp_path / "other").replace(folder / file)
        assert client.get(link).content == before.content
        assert client.get("/index/sample.npy").content[:6] == b"\x93NUMPY"
        shutil.rmtree(folder)
        assert client.get(link).content == before.content
        # Another index altogether.
        shutil.copytree(index_folder, folder)
        fields = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**fields, "notice": "another"}))
        app.state.engine.want_reload()
        eventually(lambda: figure(client, 'crossmi_reloads_total{outcome="done"}') == 1)
        refused(client.get(link), 404, "search again")
        link = nearest(client.post("/search", params={"patch": 4, "date": 1}))[0]["thumbnail"]
        assert client.get(link).content == before.content


def test_a_disk_that_fails_is_no_fault_of_the_request(
    artifact: Artifact, index_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(index_folder, tmp_path / "index"))
    with app_in_a_thread(create_app(artifact, Settings(), None, folder)) as client:
        os.truncate(folder / "thumbnails/00000.bin", 1000)
        answer = client.get(f"/thumbnails/23/{DATES - 1}.png")
        refused(answer, 503, "thumbnails")
        assert answer.headers["Retry-After"]
    with pytest.raises(PatchIndexError, match="1000 bytes"):
        PatchIndex.load(folder)


def test_an_index_without_any_data_says_so(artifact: Artifact, index_folder: Path) -> None:
    app = create_app(artifact, Settings(), None, index_folder)
    with app_in_a_thread(app) as client:
        whole = client.get("/index").json()
        assert whole["start"]
        model = app.state.engine.model
        looks = model.index.looks.copy()
        looks["valid_fraction"] = 0
        empty = dataclasses.replace(model.index, looks=looks)
        app.state.engine.model = dataclasses.replace(model, index=empty)
        assert client.get("/index").json() == whole | {"start": None, "end": None}


def test_a_large_search_keeps_nobody_waiting(
    artifact: Artifact, index_folder: Path, reflectance: npt.NDArray[np.float32]
) -> None:
    settings = Settings(max_compared=200)
    app = create_app(artifact, settings, None, index_folder)
    with app_in_a_thread(app) as client:
        engine, gate = app.state.engine, threading.Event()
        patches = npy_bytes(reflectance[[0, 3, 9, 10], 2])
        refused(client.post("/search", content=patches, headers=NPY), 422, "may compare 200 pairs")
        few = {"months": "7"}
        assert client.post("/search", content=patches, headers=NPY, params=few).is_success
        busy = asyncio.run_coroutine_threadsafe(engine.search(gate.wait), engine._loop)
        try:
            # The index works on a large search: others decode and embed meanwhile.
            assert client.post("/embed", content=patches, headers=NPY).is_success
            assert client.get("/index").is_success
            look = {"patch": 4, "date": 1}
            here = client.base_url.host, client.base_url.port or 0
            with socket.create_connection(here) as gone:
                gone.sendall(b"POST /search?patch=4&date=1 HTTP/1.1\r\nHost: x\r\n\r\n")
                eventually(lambda: figure(client, "crossmi_places_taken") == 1)
            eventually(lambda: figure(client, "crossmi_places_taken") == 0)
        finally:
            gate.set()
        assert busy.result(20)
        assert nearest(client.post("/search", params=look))


def test_a_search_by_a_look_has_its_time_too(artifact: Artifact, index_folder: Path) -> None:
    app = create_app(artifact, Settings(answer_seconds=0.2), None, index_folder)
    with app_in_a_thread(app) as client:
        engine, gate = app.state.engine, threading.Event()
        busy = asyncio.run_coroutine_threadsafe(engine.search(gate.wait), engine._loop)
        try:
            answer = client.post("/search", params={"patch": 4, "date": 1})
            refused(answer, 503, "no answer within 0.2 seconds")
        finally:
            gate.set()
        assert busy.result(20)


def test_an_index_of_another_artifact_is_refused(index_folder: Path, tmp_path: Path) -> None:
    small_artifact(tmp_path / "other", {}, exclusive=16)
    options = ("--artifact", str(tmp_path / "other"), "--index", str(index_folder), "--port", "0")
    result = refused_here(*options)
    one_sentence(result, "was made with the artifact untrained-", "mimodel embed")


def test_a_new_artifact_is_taken_only_with_an_index_that_fits(
    artifact_folder: Path, index_folder: Path, tmp_path: Path
) -> None:
    model, index = tmp_path / "artifact", tmp_path / "index"
    shutil.copytree(artifact_folder, model)
    shutil.copytree(index_folder, index)
    options = ["--index", str(index), "--limit", "watch_seconds=0.1"]
    with serving(model, *options) as running, httpx.Client(base_url=running.url) as client:
        # Another head on the same encoders: the index goes on.
        probed = small_artifact(model, {"kind": HeadSpec(classes=("a", "b"), hidden=4)}, 8)
        eventually(lambda: served(client) == probed.digest)
        assert nearest(client.post("/search", params={"patch": 4, "date": 1}))
        # Other encoders: the present pair stays.
        failed = 'crossmi_reloads_total{outcome="failed"}'
        before = figure(client, failed)
        small_artifact(model, {}, exclusive=16)
        eventually(lambda: figure(client, failed) > before)
        assert served(client) == probed.digest
        assert nearest(client.post("/search", params={"patch": 4, "date": 1}))


def served(client: httpx.Client) -> str:
    digest: str = client.get("/models").json()["models"][0]["artifact"]["digest"]
    return digest
