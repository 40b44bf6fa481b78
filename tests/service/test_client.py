"""The client against a real service on loopback: what it gives is what the model gives."""

import io
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import rioxarray
import xarray as xr
from PIL import Image

import crossmi
from mimodel.artifact import Artifact
from mimodel.similarity import similarity_map
from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube
from service.settings import Settings
from tests.service.bodies import geotiff_bytes
from tests.service.conftest import Running
from tests.service.test_http import TIFF
from tests.service.test_load import in_a_thread

BANDS = ("B04", "B03", "B02", "B08")
_TOLERANCE = 5e-3
"""The service may compute in bfloat16, and then the third digit depends on the batch."""

Pixels = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[crossmi.Client]:
    with crossmi.Client(service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def looks() -> xr.DataArray:
    """Ten patches at two dates, more than the service takes at once, as a cube has them."""
    pixels = np.random.default_rng(0).uniform(0, 0.4, (10, 2, 4, 64, 64)).astype(np.float32)
    pixels[3, 1, :, :32] = np.nan
    days = np.array(["2019-02-10", "2019-07-05"], "datetime64[ns]")
    return xr.DataArray(
        pixels,
        dims=("patch", "date", "band", "y", "x"),
        coords={
            "band": list(BANDS),
            "tile": ("patch", ["31TCJ"] * 10),
            "x": ("patch", np.arange(10.0)),  # of the patch, as in a cube
            "acquired": (("patch", "date"), np.tile(days, (10, 1))),
        },
    )


def test_vectors_keep_the_dimensions_and_coordinates_of_their_patches(
    client: crossmi.Client, artifact: Artifact, looks: xr.DataArray
) -> None:
    found = client.embed(looks, representation="both")
    assert found.shared.dims == ("patch", "date", "shared_dimension")
    for at in range(2):
        for name in ("shared", "exclusive"):
            expected = artifact.embed(looks.values[:, at], BANDS, name)
            np.testing.assert_allclose(found[name].values[:, at], expected, atol=_TOLERANCE)
    assert found.valid_fraction.values[3, 1] == 0.5
    assert (found.tile == "31TCJ").all()
    np.testing.assert_array_equal(found.acquired, looks.acquired)
    np.testing.assert_array_equal(found.x, np.arange(10))
    assert found.attrs == {"artifact": artifact.id, "digest": artifact.digest}


def test_every_form_of_the_same_pixels_has_the_same_vectors(
    client: crossmi.Client, looks: xr.DataArray
) -> None:
    expected = client.embed(looks[:3, 0]).shared.values
    values = looks.values[:3, 0]
    numbers = np.where(np.isnan(values), 0, np.rint((values + 0.1) * 1e4)).astype(np.uint16)
    cf = {"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    stored = xr.DataArray(numbers, dims=("patch", "band", "y", "x"), attrs=cf)
    forms: dict[str, tuple[object, dict[str, object]]] = {
        "numpy": (values, {}),
        "numpy, named": (values[:, ::-1], {"bands": BANDS[::-1]}),
        "other order of dimensions": (looks[:3, 0].transpose("x", "band", "patch", "y"), {}),
        "other order of bands": (looks[:3, 0, [3, 1, 0, 2]], {}),
        "dask": (looks[:3, 0].chunk(patch=2), {}),
        "stored numbers": (stored, {"bands": BANDS}),
        "stored numbers, scale said": (
            stored.assign_attrs(scale_factor=1.0, add_offset=0.0),
            {"bands": BANDS, "scale": 1e-4, "offset": -0.1},
        ),
        "numbers": (numbers, {"scale": 1e-4, "offset": -0.1, "nodata": 0}),
    }
    for name, (pixels, options) in forms.items():
        found = client.embed(pixels, **options).shared.values  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, atol=2e-2, err_msg=name)
    one = client.embed(looks[0, 0])
    assert one.shared.dims == ("shared_dimension",)
    np.testing.assert_allclose(one.shared, expected[0], atol=_TOLERANCE)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # affine, of rioxarray
def test_bands_of_a_geotiff_are_those_that_it_describes(
    client: crossmi.Client, service: Running, looks: xr.DataArray, tmp_path: Path
) -> None:
    """Opened by rioxarray as well as sent as it is."""
    patch = looks[0, 0]
    expected = client.embed(patch).shared.values

    def written(pixels: xr.DataArray, *descriptions: str) -> Path:
        path = tmp_path / "patch.tif"
        path.write_bytes(geotiff_bytes(pixels.values, descriptions))
        return path

    file = written(patch[[2, 3, 0, 1]], "B02", "B8", "b04", "B03")
    sent = httpx.post(f"{service.url}/embed", content=file.read_bytes(), headers=TIFF).json()
    np.testing.assert_allclose(sent["shared"][0], expected, atol=_TOLERANCE)
    with rioxarray.open_rasterio(file) as opened:
        found = client.embed(opened).shared
        np.testing.assert_allclose(found, expected, atol=_TOLERANCE)
        # The names of all stay behind where bands are chosen, which keep their numbers.
        for order in ([3, 4, 1, 2], [4, 3, 2, 1]):
            chosen = client.embed(opened.sel(band=order)).shared
            np.testing.assert_allclose(chosen, expected, atol=_TOLERANCE)
        joined = xr.concat([opened[:2], opened[:2]], "band")
        found, plain = (client.embed(one).shared for one in (joined, joined.values))
        np.testing.assert_allclose(found.values, plain.values, atol=_TOLERANCE)
        some = opened.assign_attrs(long_name=("B02", "B08", None, "B03"))
        for other in (some, opened.assign_attrs(long_name="reflectance")):
            plain = client.embed(other).shared.values
            np.testing.assert_allclose(plain, client.embed(opened.values).shared, atol=_TOLERANCE)
            assert np.abs(plain - expected).max() > 10 * _TOLERANCE
    with rioxarray.open_rasterio(written(patch[:1], "B4")) as opened:
        with pytest.raises(crossmi.ServiceError, match="band B03, B02, B08 is missing"):
            client.embed(opened)


def test_a_grid_of_an_image(client: crossmi.Client, artifact: Artifact) -> None:
    pixels = np.random.default_rng(1).uniform(0, 0.4, (4, 80, 96)).astype(np.float32)
    north = 4_800_000 - 10.0 * np.arange(80)
    image = xr.DataArray(pixels, {"y": north, "band": list(BANDS)}, ("band", "y", "x"))
    found = client.embed_grid(image, stride=16)
    assert found.shared.dims == ("y", "x", "shared_dimension")
    np.testing.assert_array_equal(found.y, north[[32, 48]])
    np.testing.assert_array_equal(found.x, [32, 48, 64])
    expected = artifact.embed(pixels[None, :, 16:80, 32:96])[0]
    np.testing.assert_allclose(found.shared[1, 2], expected, atol=_TOLERANCE)


def test_classes_have_their_names(
    client: crossmi.Client, artifact: Artifact, looks: xr.DataArray
) -> None:
    found = client.classify(looks[:, 1])
    assert found.probabilities.dims == ("patch", "class")
    water = artifact.classify(looks.values[:, 1])[:, 0]
    np.testing.assert_allclose(found.probabilities.sel({"class": "water"}), water, atol=_TOLERANCE)
    assert found.attrs["head"] == "cover"


def test_a_map_keeps_the_coordinates_of_its_image(
    client: crossmi.Client, artifact: Artifact
) -> None:
    pixels = np.random.default_rng(1).uniform(0, 0.4, (4, 70, 80)).astype(np.float32)
    pixels[:, :5, :5] = np.nan
    east = 500_000 + 10.0 * np.arange(80)
    image = xr.DataArray(pixels, {"x": east, "band": list(BANDS)}, ("band", "y", "x"))
    found = client.similarity(image, row=40, col=50)
    expected = similarity_map(artifact, pixels, (40, 50)).to_image()
    expected[:5, :5] = np.nan
    assert found.dims == ("y", "x")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found.x, east)
    assert found.attrs["artifact"] == artifact.id
    # The mean of two maps, and of the pixels of a polygon: here the same two.
    other = client.similarity(image, row=40, col=51)
    for asked in ({"pixels": [(40, 50), (40, 51)]}, {"polygon": [(40, 50), (40, 51), (40, 50.5)]}):
        mean = client.similarity(image, **asked)  # type: ignore[arg-type]
        np.testing.assert_allclose(mean, (found + other) / 2, atol=2e-2)
        assert mean.attrs["queries"] == "2 of 2"
    assert client.similarity(image, row=40, col=50, mode="fast").shape == (70, 80)


def test_corners_may_have_any_digits(client: crossmi.Client) -> None:
    """More than the service reads, or an exponent."""
    pixels = np.random.default_rng(1).uniform(0, 0.4, (4, 64, 64)).astype(np.float32)
    corners = [(-1e-5, 10 - 1 / 3), (-1e-5, 11 + 1 / 3), (1 + 1 / 3, np.float32(31 / 3))]
    found = client.similarity(pixels, polygon=corners)
    assert found.attrs["queries"] == "2 of 2"
    np.testing.assert_allclose(
        found, client.similarity(pixels, pixels=[(0, 10), (0, 11)]), atol=1e-6
    )


def test_models(client: crossmi.Client, artifact: Artifact) -> None:
    (model,) = client.models()
    assert model["artifact"]["digest"] == artifact.digest
    assert model["bands"] == list(BANDS)


def test_search_by_pixels_and_by_look(client: crossmi.Client, cube: Cube) -> None:
    pixels = reflectance_from_stored(cube.read([3, 5]))[:, 1:]
    looks = xr.DataArray(
        pixels,
        dims=("patch", "date", "band", "y", "x"),
        coords={"band": list(cube.bands), "tile": ("patch", cube.tile[[3, 5]])},
    )
    found = client.search(looks, count=4)
    assert found.distance.dims == ("query_patch", "query_date", "rank")
    np.testing.assert_array_equal(found.patch[..., 0], [[3, 3], [5, 5]])
    np.testing.assert_array_equal(found.date[..., 0], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(found.acquired[0, 0, 0], cube.acquired[3, 1])
    np.testing.assert_array_equal(found.query_tile, cube.tile[[3, 5]])
    assert (np.diff(found.distance) >= 0).all()
    same = client.search(crossmi.Look(patch=3, date=1), place="same", count=10)
    assert set(zip(same.patch.values.tolist(), same.date.values.tolist(), strict=True)) == {
        (3, 0),
        (3, 2),
    }
    # Fewer than were asked for, of one query more than of the other.
    some = client.search(looks[:, 0], tiles=[str(cube.tile[0])], start="2019-07-01", months=[7])
    assert set(some.tile.values.ravel().tolist()) <= {str(cube.tile[0]), ""}
    nothing = client.search(crossmi.Look(3, 1), months=[1])
    assert dict(nothing.sizes) == {"rank": 0}
    picture = Image.open(io.BytesIO(client.thumbnail(crossmi.Look(3, 1))))
    assert picture.size == (64, 64)


def test_what_the_service_refuses_is_an_error_with_its_words(
    client: crossmi.Client, looks: xr.DataArray
) -> None:
    with pytest.raises(crossmi.ServiceError, match="band B08 is missing") as error:
        client.embed(looks[:, 0, :3])
    assert (error.value.status, error.value.title) == (422, HTTPStatus(422).phrase)
    with pytest.raises(crossmi.ServiceError) as error:
        client.similarity(looks[0, 0], row=-1, col=0)
    assert [problem.location for problem in error.value.errors] == ["query.row"]
    with pytest.raises(crossmi.ServiceError, match="no such head; it has: cover"):
        client.classify(looks[0, 0], head="other")


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (
            np.zeros((64, 64), np.float32),
            r"expected an array of shape \(\.\.\., band, row, column\)",
        ),
        (xr.DataArray(np.zeros((4, 64, 64)), dims=("band", "lat", "lon")), "band, y and x"),
        (np.zeros((0, 4, 64, 64), np.float32), "at least one patch"),
    ],
)
def test_arrays_that_cannot_be_meant(client: crossmi.Client, pixels: Pixels, says: str) -> None:
    with pytest.raises(crossmi.ArrayError, match=says):
        client.embed(pixels)
    for nothing in ({"tiles": []}, {"months": []}):
        with pytest.raises(crossmi.ArrayError, match="is empty"):
            client.search(crossmi.Look(0, 0), **nothing)  # type: ignore[arg-type]
    with pytest.raises(crossmi.ArrayError, match="one image"):
        client.similarity(xr.DataArray(np.zeros((2, 4, 64, 64)), dims=("date", "band", "y", "x")),
                          row=0, col=0)  # fmt: skip


def test_a_key_opens_a_service_that_wants_one(artifact: Artifact, looks: xr.DataArray) -> None:
    key = "correct-horse-battery-staple"
    settings = Settings.model_validate({"api_key": key})
    with in_a_thread(artifact, settings) as served:
        url = str(served.base_url)
        with crossmi.Client(url, key=key) as client:
            assert client.embed(looks[0, 0]).attrs["digest"] == artifact.digest
        for other in (None, "", key[:-1], key.upper()):
            with crossmi.Client(url, key=other) as client:
                with pytest.raises(crossmi.ServiceError, match="send a key") as error:
                    client.embed(looks[0, 0])
                assert error.value.status == 401


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with crossmi.Client(f"http://127.0.0.1:{port}", timeout=5) as client:
        with pytest.raises(crossmi.UnreachableError, match=rf"127\.0\.0\.1:{port}"):
            client.models()


class Moody(BaseHTTPRequestHandler):
    """Busy twice, then well; and under /thumbnails a proxy that speaks HTML."""

    asked = 0

    def do_GET(self) -> None:
        Moody.asked += 1
        proxy = self.path.startswith("/thumbnails")
        busy = Moody.asked <= 2
        self.send_response(502 if proxy else 503 if busy else 200)
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(b"<html>" if proxy or busy else b'{"models": []}')

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_busy_service_is_asked_again_and_a_proxy_has_no_words() -> None:
    with HTTPServer(("127.0.0.1", 0), Moody) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with crossmi.Client(url) as client:
                assert client.models() == []
                assert Moody.asked == 3
                with pytest.raises(crossmi.ServiceError, match=r"^502 Bad Gateway$"):
                    client.thumbnail(crossmi.Look(0, 0))
            Moody.asked = 0
            with crossmi.Client(url, patience=-1) as client:
                with pytest.raises(crossmi.ServiceError) as error:
                    client.models()
                assert error.value.status == 503
        finally:
            server.shutdown()
            thread.join()
