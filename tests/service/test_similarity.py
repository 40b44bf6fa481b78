"""Maps of every pixel over HTTP: several queries, polygons, GeoTIFF, features that are kept."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from mimodel.artifact import Artifact
from mimodel.likeness import Terms
from mimodel.similarity import PreparedImage, polygon_mask
from tests.models import pixel_artifact
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import serving
from tests.service.test_http import AS_NPY, NPY, TIFF, array_of, refused

POLYGON = [(5, 5), (5, 12), (14, 9)]
_ASKED = {"polygon": [f"{row},{col}" for row, col in POLYGON]}
# Another process may take the same sums in another order.
_same = partial(np.testing.assert_allclose, rtol=1e-5)
_AS_TIFF = {"Accept": "image/tiff"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pixels") / "artifact"


@pytest.fixture(scope="module")
def pixels(folder: Path) -> Artifact:
    return pixel_artifact(folder)


@pytest.fixture(scope="module")
def client(folder: Path, pixels: Artifact) -> Iterator[httpx.Client]:
    """A service of a model of pixels that takes no more than eight of them at once."""
    options = ["--limit", f"max_products={8 * 12 * 14 * 12}", "--limit", "max_scores=3000"]
    with serving(folder, *options) as running:
        with httpx.Client(base_url=running.url, timeout=60) as client:
            yield client


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.float32]:
    image = np.random.default_rng(5).uniform(0.02, 0.4, (4, 20, 22)).astype(np.float32)
    image[2, :3, :5] = np.nan
    return image


@pytest.fixture(scope="module")
def prepared(pixels: Artifact, image: npt.NDArray[np.float32]) -> PreparedImage:
    return PreparedImage(pixels, image)


def test_every_pixel_has_a_score(
    client: httpx.Client, image: npt.NDArray[np.float32], prepared: PreparedImage
) -> None:
    query = {"row": 8, "col": 9}
    expected = prepared.mean_map([(8, 9)])
    body = npy_bytes(image)
    for _ in range(2):  # made anew, and from the features that were kept
        found = array_of(
            client.post("/similarity", params=query, content=body, headers=NPY | AS_NPY)
        )
        _same(found, expected.to_image())
    document = client.post("/similarity", params=query, content=body, headers=NPY).json()
    assert document["rows"] == list(range(4, 16))
    assert document["cols"] == list(range(4, 18))
    scores = np.array(document["scores"], np.float32)
    _same(scores, expected.scores)
    fast = client.post(
        "/similarity", params=query | {"mode": "fast"}, content=body, headers=NPY | AS_NPY
    )
    of_image = prepared.mean_map([(8, 9)], terms=Terms.IMAGE).to_image()
    _same(array_of(fast), of_image)
    assert np.nanmax(np.abs(of_image - expected.to_image())) > 0.01
    coarse = {**query, "stride": 5}
    document = client.post("/similarity", params=coarse, content=body, headers=NPY).json()
    assert document["cols"] == [4, 9, 14, 17]


def test_several_pixels_are_averaged_or_each(
    client: httpx.Client, image: npt.NDArray[np.float32], prepared: PreparedImage
) -> None:
    queries = [(8, 9), (15, 3), (4, 20)]
    params = {"pixel": [f"{row},{col}" for row, col in queries]}
    body, maps = npy_bytes(image), prepared.maps(queries)
    each = client.post(
        "/similarity", params=params | {"maps": "each"}, content=body, headers=NPY | AS_NPY
    )
    _same(array_of(each), [one.to_image() for one in maps])
    assert each.headers["X-Queries"] == "3 of 3"
    document = client.post(
        "/similarity", params=params | {"maps": "each"}, content=body, headers=NPY
    ).json()
    assert document["queries"] == [list(query) for query in queries]
    mean = np.array(document["scores"], np.float32)
    np.testing.assert_allclose(mean, np.mean(document["each"], axis=0), rtol=1e-6)
    _same(mean, prepared.mean_map(queries).scores)
    params["pixel"] *= 3
    answer = client.post("/similarity", params=params, content=body, headers=NPY)
    refused(answer, 422, "may have 8 query pixels")


def test_of_a_large_polygon_an_even_part_counts(
    client: httpx.Client,
    pixels: Artifact,
    image: npt.NDArray[np.float32],
    prepared: PreparedImage,
) -> None:
    body = npy_bytes(image)
    inside = [(int(r), int(c)) for r, c in np.argwhere(polygon_mask(POLYGON, (20, 22)))]
    document = client.post("/similarity", params=_ASKED, content=body, headers=NPY).json()
    queries = [(row, col) for row, col in document["queries"]]
    assert document["asked"] == len(inside) > 8
    assert len(set(queries)) == 8
    assert set(queries) <= set(inside)
    scores = np.array(document["scores"], np.float32)
    _same(scores, prepared.mean_map(queries).scores)
    fast = {**_ASKED, "mode": "fast", "stride": 8}
    document = client.post("/similarity", params=fast, content=body, headers=NPY).json()
    queries = [(row, col) for row, col in document["queries"]]
    assert len(set(queries)) == 16 < document["asked"] == len(inside)
    of_image = PreparedImage(pixels, image, stride=8).mean_map(queries, terms=Terms.IMAGE)
    _same(np.array(document["scores"], np.float32), of_image.scores)
    each = client.post("/similarity", params=fast | {"maps": "each"}, content=body, headers=NPY)
    assert len(each.json()["each"]) == len(inside)  # whoever wants each has them
    small = {"polygon": ["6,7", "6,8", "7,8", "7,7"]}
    document = client.post("/similarity", params=small, content=body, headers=NPY).json()
    assert document["queries"] == [[6, 7], [6, 8], [7, 7], [7, 8]]
    answer = client.post(
        "/similarity", params=_ASKED, content=body, headers=NPY | {"Accept": "image/png"}
    )
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (picture[5, 5:13] == 255).all()
    assert (picture[4, 5:13, :3] == 0).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_geotiff_keeps_its_ground(
    client: httpx.Client, image: npt.NDArray[np.float32], prepared: PreparedImage
) -> None:
    sent = geotiff_bytes(image, ["B04", "B03", "B02", "B08"])
    answer = client.post(
        "/similarity", params={"row": 8, "col": 9}, content=sent, headers=TIFF | _AS_TIFF
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "image/tiff"
    with MemoryFile(sent) as file, file.open() as before:
        with MemoryFile(answer.content) as made, made.open() as after:
            assert after.crs == before.crs
            assert after.transform == before.transform
            assert after.shape == before.shape
            expected = prepared.mean_map([(8, 9)]).to_image()
            _same(after.read(1), expected)
            assert after.descriptions == ("similarity to row 8, column 9",)
            assert after.tags()["crossmi_artifact"] == answer.headers["X-Artifact"]
    corners = [(0, 0, 1.5, 45.0), (0, 22, 1.6, 45.1), (20, 0, 1.4, 44.9), (20, 22, 1.55, 44.8)]
    points = [GroundControlPoint(*corner) for corner in corners]
    located = geotiff_bytes(image, points=points)
    answer = client.post(
        "/similarity", params={"row": 8, "col": 9}, content=located, headers=TIFF | _AS_TIFF
    )
    with MemoryFile(answer.content) as made, made.open() as after:
        kept, system = after.gcps
        assert [(one.row, one.col, one.x, one.y) for one in kept] == corners
        assert system == CRS.from_epsg(32631)
        assert after.transform.is_identity
    each = {"pixel": ["8,9", "15,3"], "maps": "each"}
    for headers, content in ((TIFF, sent), (NPY, npy_bytes(image))):
        answer = client.post(
            "/similarity", params=each, content=content, headers=headers | _AS_TIFF
        )
        with MemoryFile(answer.content) as made, made.open() as after:
            assert after.count == 2
            assert (after.crs is None) == (headers is NPY)
    mean = client.post("/similarity", params=_ASKED, content=sent, headers=TIFF | _AS_TIFF)
    with MemoryFile(mean.content) as made, made.open() as after:
        assert after.descriptions == ("mean similarity to 8 pixels",)


def test_what_would_take_too_long_is_refused(client: httpx.Client) -> None:
    large = np.full((4, 70, 70), 0.1, np.float32)
    for query in ({"row": 3, "col": 3}, {"polygon": ["1,1", "1,9", "9,9"]}):
        answer = client.post("/similarity", params=query, content=npy_bytes(large), headers=NPY)
        refused(answer, 422, "a map of 3844 places may have 0 query pixels")
    query = {"row": 3, "col": 3, "stride": 3}
    assert client.post(
        "/similarity", params=query, content=npy_bytes(large), headers=NPY
    ).is_success


def test_an_answer_of_many_layers_is_refused(client: httpx.Client) -> None:
    """A large image at a wide stride has few places, and as many pixels a layer as any."""
    large = npy_bytes(np.full((4, 70, 70), 0.1, np.float32))
    params: dict[str, Any] = {"pixel": ["3,3", "9,9"], "maps": "each", "stride": 16}
    for accept in ("application/x-npy", "image/tiff"):
        headers = NPY | {"Accept": accept}
        answer = client.post("/similarity", params=params, content=large, headers=headers)
        refused(answer, 422, "2 layers of 4900 are more")
        params_of_mean = {**params, "maps": "mean"}
        answer = client.post("/similarity", params=params_of_mean, content=large, headers=headers)
        assert answer.is_success
    assert client.post("/similarity", params=params, content=large, headers=NPY).is_success
