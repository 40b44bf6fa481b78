"""The service as its users meet it: a process of its own, real HTTP on loopback."""

import base64
import io
import json
import socket
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from mimodel.similarity import similarity_map
from service.errors import PROBLEM_TYPE
from tests.models import CLASSES
from tests.service import bodies
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import Running

NPY = {"Content-Type": "application/x-npy"}
TIFF = {"Content-Type": "image/tiff"}
JSON = {"Content-Type": "application/json"}
MONITORED = ("/", "/healthz", "/readyz")
AS_NPY = {"Accept": "application/x-npy"}

Patches = npt.NDArray[np.float32]


def array_of(response: httpx.Response) -> npt.NDArray[np.float32]:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/x-npy"
    array: npt.NDArray[np.float32] = np.load(io.BytesIO(response.content), allow_pickle=False)
    return array


def refused(response: httpx.Response, status: int, says: str = "") -> None:
    """Assert a problem document (RFC 9457) of that status."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == PROBLEM_TYPE
    document = response.json()
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    assert says in document["detail"]


def served(artifact: Artifact, patches: Patches) -> Patches:
    """Shared vectors in process, by the backend that the service has."""
    return embedder(artifact, "shared", Backend.FOLDED)(patches)


def test_embed_equals_embedding_in_process(
    client: httpx.Client, artifact: Artifact, patches: Patches
) -> None:
    expected = served(artifact, patches)
    in_training = artifact.embed(patches)
    cosine = (expected * in_training).sum(1) / np.linalg.norm(expected, axis=1)
    assert (cosine / np.linalg.norm(in_training, axis=1)).min() > 0.9999
    sent = npy_bytes(patches)
    answer = client.post("/embed", content=sent, headers=NPY | AS_NPY)
    assert array_of(answer).tobytes() == expected.tobytes()
    assert answer.headers["X-Artifact"] == artifact.digest
    document = client.post("/embed", content=sent, headers=NPY).json()
    assert np.array(document["shared"], np.float32).tobytes() == expected.tobytes()
    assert document["valid_fraction"] == [1.0, 0.75, 1.0]
    assert document["artifact"] == {"id": artifact.id, "digest": artifact.digest}


def test_classify_equals_classifying_in_process(
    client: httpx.Client, artifact: Artifact, patches: Patches
) -> None:
    expected = artifact.probabilities(served(artifact, patches), "cover")
    sent = npy_bytes(patches)
    answer = client.post("/classify", content=sent, headers=NPY | AS_NPY)
    assert array_of(answer).tobytes() == expected.tobytes()
    document = client.post("/classify?head=cover", content=sent, headers=NPY).json()
    assert document["classes"] == list(CLASSES)
    assert np.array(document["probabilities"], np.float32).tobytes() == expected.tobytes()
    refused(client.post("/classify?head=other", content=sent, headers=NPY), 422, "it has: cover")


def test_every_upload_format_has_the_same_answer(
    client: httpx.Client, artifact: Artifact, patches: Patches
) -> None:
    one = patches[1:2]
    lists = one.astype(object)
    lists[np.isnan(one)] = None
    uploads: list[tuple[dict[str, str], bytes]] = [
        (NPY, npy_bytes(one)),
        (TIFF, geotiff_bytes(one[0], compress="DEFLATE")),
        (TIFF, geotiff_bytes(one[0, [3, 0, 1, 2]], ["B08", "B04", "B03", "B02"])),
        (JSON, json.dumps({"reflectance": lists.tolist()}).encode()),
        (JSON, json.dumps({"npy": base64.b64encode(npy_bytes(one)).decode()}).encode()),
    ]
    expected = served(artifact, one).tobytes()
    for headers, body in uploads:
        answer = client.post("/embed", content=body, headers=headers | AS_NPY)
        assert array_of(answer).tobytes() == expected


def test_digital_numbers_with_an_offset(client: httpx.Client, artifact: Artifact) -> None:
    numbers = np.random.default_rng(0).integers(1000, 4000, (2, 4, 64, 64), np.uint16)
    numbers[:, :, 0] = 0
    query = {"scale": 1e-4, "offset": -0.1, "nodata": 0, "bands": "B02,B03,B04,B08"}
    reflectance = (numbers * 1e-4 - 0.1).astype(np.float32)
    reflectance[numbers == 0] = np.nan
    sent = npy_bytes(numbers)
    answer = client.post("/embed", params=query, content=sent, headers=NPY | AS_NPY)
    expected = artifact.embed(reflectance, ["B02", "B03", "B04", "B08"])
    # bfloat16 arithmetic, where the processor has it, sees a difference in the last bit.
    np.testing.assert_allclose(array_of(answer), expected, atol=2e-2)


@pytest.fixture
def image() -> Patches:
    """An image (4, 80, 112) with a corner without data."""
    image = np.random.default_rng(5).uniform(0, 0.4, (4, 80, 112)).astype(np.float32)
    image[1, :50, :40] = np.nan
    return image


def test_similarity_equals_the_map_in_process(
    client: httpx.Client, artifact: Artifact, image: Patches
) -> None:
    expected = similarity_map(artifact, image, (60, 70), stride=8)
    query: dict[str, str | int] = {"row": 60, "col": 70}
    document = client.post(
        "/similarity", params=query, content=npy_bytes(image), headers=NPY
    ).json()
    assert document["rows"] == expected.row_centres.tolist()
    assert document["cols"] == expected.col_centres.tolist()
    assert document["queries"] == [[60, 70]]
    assert document["each"] is None
    scores = np.array(document["scores"], np.float32)
    missing = np.isnan(image[1][np.ix_(expected.row_centres, expected.col_centres)])
    assert missing.any()
    np.testing.assert_array_equal(np.isnan(scores), missing)
    np.testing.assert_allclose(scores[~missing], expected.scores[~missing], rtol=1e-5)
    full = expected.to_image()
    full[np.isnan(image[1])] = np.nan
    turned = np.concatenate([image[[3, 0, 1, 2]], np.full((1, 80, 112), 0.7, np.float32)])
    names = ["B08", "B04", "B03", "B02", "B11"]
    lists = image.astype(object)
    lists[np.isnan(image)] = None
    uploads: list[tuple[dict[str, str], dict[str, str], bytes]] = [
        ({}, NPY, npy_bytes(image)),
        ({"bands": ",".join(names)}, NPY, npy_bytes(turned)),
        ({}, TIFF, geotiff_bytes(image, compress="DEFLATE")),
        ({}, TIFF, geotiff_bytes(turned, names)),
        ({}, JSON, json.dumps({"reflectance": lists.tolist()}).encode()),
        ({}, JSON, json.dumps({"npy": base64.b64encode(npy_bytes(image)).decode()}).encode()),
    ]
    for said, headers, body in uploads:
        answer = client.post(
            "/similarity", params=query | said, content=body, headers=headers | AS_NPY
        )
        np.testing.assert_array_equal(array_of(answer), full)


def test_similarity_as_a_picture(client: httpx.Client, image: Patches) -> None:
    answer = client.post(
        "/similarity",
        params={"row": 60, "col": 70},
        content=npy_bytes(image),
        headers=NPY | {"Accept": "image/png"},
    )
    assert answer.headers["Content-Type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert picture.shape == (80, 112, 4)
    np.testing.assert_array_equal(picture[..., 3] == 0, np.isnan(image[1]))
    assert picture[60, 70 + 5].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"row": 80, "col": 0}, "outside the image of 80 x 112"),
        ({"row": 0, "col": 112}, "outside the image of 80 x 112"),
        ({"row": 10, "col": 10}, "no data"),
        ({"row": 60, "col": 70, "stride": 1}, "stride 1 makes 833"),
        ({"row": -1, "col": 70}, "query.row"),
        ({"row": "x", "col": 70}, "query.row"),
        ({"col": 70}, "stand together"),
        ({"row": 60, "col": 70, "pixel": "1,2"}, "by `row` and `col`, by `pixel`, or by `polygon`"),
        ({}, "by `row` and `col`, by `pixel`, or by `polygon`"),
        ({"pixel": "60;70"}, "query.pixel.0"),
        ({"pixel": ["60,70"] * 17}, "may have 16 query pixels"),
        ({"pixel": ["60,70", "80,0"]}, "outside the image of 80 x 112"),
        ({"polygon": ["60,70", "70,70"]}, "at least three corners"),
        ({"polygon": ["90,70", "90,80", "99,75"]}, "no pixel with data has its centre"),
        ({"row": 60, "col": 70, "mode": "slow"}, "query.mode"),
        ({"row": 60, "col": 70, "stride": 0}, "query.stride"),
        ({"row": 60, "col": 70, "bands": "B02,../x"}, "query.bands"),
        ({"row": 60, "col": 70, "secret": 1}, "query: Extra inputs"),
        ({"row": 60, "col": 70, "scale": "nan"}, "query.scale"),
        ({"row": 60, "col": 70, "nodata": "inf"}, "query.nodata"),
        ({"row": 60, "col": 70, **{f"x{n}": "" for n in range(5000)}}, "Extra inputs are not perm"),
    ],
)
def test_a_query_that_does_not_fit_is_refused(
    client: httpx.Client, image: Patches, query: dict[str, str | list[str]], says: str
) -> None:
    answer = client.post("/similarity", params=query, content=npy_bytes(image), headers=NPY)
    refused(answer, 422, says)
    assert len(answer.text) < 3000
    assert "secret" not in answer.text
    assert "../x" not in answer.text


def nothing_changes(client: httpx.Client, patches: Patches) -> Iterator[None]:
    """The same good request has the same bytes for answer before and after."""
    sent = npy_bytes(patches)
    before = client.post("/embed", content=sent, headers=NPY | AS_NPY)
    yield
    after = client.post("/embed", content=sent, headers=NPY | AS_NPY)
    assert before.status_code == after.status_code == 200
    assert before.content == after.content


@pytest.fixture(name="nothing_changes")
def nothing_changes_fixture(client: httpx.Client, patches: Patches) -> Iterator[None]:
    yield from nothing_changes(client, patches)


def with_pixel(value: float) -> bytes:
    pixels = np.full((1, 4, 64, 64), 0.2, np.float32)
    pixels[0, 1, 2, 3] = value
    return npy_bytes(pixels)


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros((1, 4, 64, 64), np.float32))
    return file.getvalue()


HOSTILE: dict[str, tuple[dict[str, str], Callable[[], bytes], int]] = {
    "npy header of 2^40 items": (
        NPY,
        lambda: bodies.npy_header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4, 64, 64)}"
        ),
        413,
    ),
    "npy header of 2^40 bands": (
        NPY,
        lambda: bodies.npy_header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1099511627776, 64, 64)}"
        ),
        400,
    ),
    "npy header with an extent of a thousand digits": (
        NPY,
        lambda: bodies.npy_header(
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0x{'f' * 3900}, 4, 64, 64)}}"
        ),
        400,
    ),
    "JSON of empty lists": (
        JSON,
        lambda: b'{"reflectance": [' + b"[]," * 1_200_000 + b"[]]}",
        413,
    ),
    "JSON of many keys": (
        JSON,
        lambda: json.dumps(dict.fromkeys(map(str, range(250_000)))).encode(),
        413,
    ),
    "pickled objects": (NPY, lambda: npy_bytes(np.array([{"a": 1}], dtype=object)), 422),
    "npz": (NPY, npz_bytes, 400),
    "infinity": (NPY, lambda: with_pixel(np.inf), 422),
    "out of range": (NPY, lambda: with_pixel(1200), 422),
    "NaN in JSON": (JSON, lambda: b'{"reflectance": [[[[NaN]]]]}', 422),
    "NaN for an object": (JSON, lambda: b"NaN", 422),
    "wrong type": (NPY, lambda: npy_bytes(np.zeros((1, 4, 64, 64), np.complex64)), 422),
    "wrong size": (NPY, lambda: npy_bytes(np.zeros((1, 4, 32, 32), np.float32)), 422),
    "wrong band count": (NPY, lambda: npy_bytes(np.zeros((1, 3, 64, 64), np.float32)), 422),
    "too many patches": (NPY, lambda: npy_bytes(np.zeros((9, 4, 64, 64), np.float32)), 413),
    "body over the limit": (NPY, lambda: bytes((4 << 20) + 1), 413),
    "GeoTIFF of 640 GB": (TIFF, bodies.tiff_of_640_gigabytes, 422),
    "GeoTIFF of one huge block": (TIFF, bodies.tiff_of_a_huge_block, 413),
    "GeoTIFF that is cut": (TIFF, lambda: geotiff_bytes(np.zeros((4, 64, 64), "f4"))[:2000], 400),
    "GeoTIFF whose next directory is cut off": (
        TIFF,
        lambda: bodies.with_another_directory(
            geotiff_bytes(np.zeros((4, 64, 64), "f4")), 7777_7777
        ),
        400,
    ),
    "VRT": (TIFF, lambda: bodies.vrt_of("/etc/hostname"), 400),
    "MRF": (TIFF, lambda: bodies.mrf_of("/etc/hostname"), 400),
    "unknown media type": ({"Content-Type": "text/html"}, lambda: b"<p>", 415),
    "no media type": ({}, lambda: b"x", 415),
    "form": ({"Content-Type": "multipart/form-data; boundary=x"}, lambda: b"--x--", 415),
    "gzip": (NPY | {"Content-Encoding": "gzip"}, lambda: b"\x1f\x8b", 415),
    "answer that cannot be": (NPY | {"Accept": "text/html"}, lambda: with_pixel(0.1), 406),
}


@pytest.mark.usefixtures("nothing_changes")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused_and_change_nothing(client: httpx.Client, name: str) -> None:
    headers, body, status = HOSTILE[name]
    for path in ("/embed", "/classify"):
        refused(client.post(path, content=body(), headers=headers), status)
    answer = client.post("/similarity?row=0&col=0", content=body(), headers=headers)
    # What is wrong for patches may be another fault for an image.
    refused(answer, answer.status_code)
    assert 400 <= answer.status_code < 500


def test_a_chunked_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(80):
            sent += 1 << 16
            yield bytes(1 << 16)

    refused(client.post("/embed", content=chunks(), headers=NPY), 413, "4194304 bytes")
    assert sent > 4 << 20


def test_bombs_leave_memory_as_it_was(service: Running, client: httpx.Client) -> None:
    good = npy_bytes(np.zeros((8, 4, 64, 64), np.float32))
    client.post("/embed", content=good, headers=NPY)
    client.post("/embed", content=geotiff_bytes(np.zeros((4, 64, 64), "f4")), headers=TIFF)
    service.forget_peak()  # of what other tests have sent
    before = service.peak_memory()
    for headers, body, _ in HOSTILE.values():
        for path in ("/embed", "/similarity?row=0&col=0&scale=0.0001"):
            assert client.post(path, content=body(), headers=headers).status_code < 500
    assert service.peak_memory() - before < 100 << 20


def test_other_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    refused(client.get("/nothing"), 404)
    refused(client.get("/embed/"), 404)
    answer = client.get("/embed")
    refused(answer, 405)
    assert answer.headers["Allow"] == "POST"
    for path in MONITORED:
        answer = client.delete(path)
        refused(answer, 405)
        assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_monitors_may_ask_for_the_status_alone(client: httpx.Client) -> None:
    """By HEAD, whose answer is that of GET without its body (RFC 9110)."""
    for path in MONITORED:
        whole, head = client.get(path), client.head(path)
        assert head.status_code == whole.status_code == 200
        for name in ("Content-Length", "Content-Type"):
            assert head.headers[name] == whole.headers[name]
        # As it comes: httpx reads no body after HEAD, whether there is one or not.
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as asking:
            asking.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert asking.makefile("rb").read().endswith(b"\r\n\r\n")
    document = client.get("/openapi.json").json()
    assert [list(document["paths"][path]) for path in ("/healthz", "/readyz")] == 2 * [["get"]]
