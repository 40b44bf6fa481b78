"""Whatever pixels come, every number of an answer is finite, or says that there is no data."""

import io
import math
from collections.abc import Iterator

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.io import MemoryFile

from mimodel.artifact import Artifact
from service.settings import Settings
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.test_http import AS_NPY, NPY, TIFF, array_of
from tests.service.test_kserve import tensor
from tests.service.test_load import in_a_thread

SHAPE = (4, 72, 64)
EDGES = [-0.5, 8.0, 0.0, -0.0, 0.3, 1e-45, -1.2e-38, math.nan]
VALUES = st.lists(st.sampled_from(EDGES) | st.floats(-0.5, 8, width=32), min_size=1, max_size=6)

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def scored(full: Artifact) -> Iterator[httpx.Client]:
    """A service whose model has all that a model can have, but no index."""
    with in_a_thread(full, Settings()) as client:
        yield client


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(VALUES)
@example([math.nan])
@example([8.0])
@example([-0.5, 8.0])
@example([math.nan, 8.0])
def test_every_answer_is_finite(
    scored: httpx.Client, client: httpx.Client, values: list[float]
) -> None:
    image = np.resize(np.array(values, np.float32), SHAPE)
    asked = {
        "/embed": check_embed,
        "/classify": check_classify,
        "/v2/models/{name}/infer": check_infer,
        "/similarity": check_similarity,
        "/preview": check_preview,
        "/search": check_search,
    }
    paths = client.get("/openapi.json").json()["paths"]
    assert asked.keys() == {path for path, methods in paths.items() if "post" in methods}
    for path, check in asked.items():
        check(client if path == "/search" else scored, image)


def finite(numbers: object) -> None:
    """Null, which JSON has for NaN, is none."""
    assert np.isfinite(np.array(numbers, np.float64)).all()


def patch_of(image: Floats) -> Floats:
    return image[None, :, :64]


def valid_in(image: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(image).all(axis=0))


def posted(client: httpx.Client, path: str, body: bytes, **query: object) -> dict[str, object]:
    answer = client.post(path, params=query, content=body, headers=NPY)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    document: dict[str, object] = answer.json()
    return document


def check_embed(client: httpx.Client, image: Floats) -> None:
    body = npy_bytes(patch_of(image))
    of_patch = posted(client, "/embed", body, representation="both")
    of_grid = posted(client, "/embed", npy_bytes(image), representation="both", stride=8)
    for said in (of_patch, of_grid):
        for name in ("shared", "exclusive", "valid_fraction", "out_of_distribution"):
            finite(said[name])
    finite(array_of(client.post("/embed", content=body, headers=NPY | AS_NPY)))


def check_classify(client: httpx.Client, image: Floats) -> None:
    body = npy_bytes(patch_of(image))
    for head in ("cover", "season"):
        said = posted(client, "/classify", body, head=head)
        for name in ("probabilities", "valid_fraction", "out_of_distribution"):
            finite(said[name])


def check_infer(client: httpx.Client, image: Floats) -> None:
    name = client.get("/models").json()["models"][0]["name"]
    body = {"inputs": [tensor(patch_of(image))]}
    answer = client.post(f"/v2/models/{name}/infer", json=body)
    assert answer.status_code == 200, answer.text
    outputs = answer.json()["outputs"]
    assert len(outputs) == 6
    for output in outputs:
        finite(output["data"])


def check_similarity(client: httpx.Client, image: Floats) -> None:
    valid = valid_in(image)
    row, col = np.argwhere(valid)[-1].tolist() if valid.any() else (0, 0)
    for mode in ("exact", "fast"):
        for accept in ("application/json", "application/x-npy", "image/png", "image/tiff"):
            answer = client.post(
                "/similarity",
                params={"row": row, "col": col, "mode": mode},
                content=geotiff_bytes(image),
                headers=TIFF | {"Accept": accept},
            )
            if not valid.any():
                assert answer.status_code == 422
                assert "no data" in answer.json()["detail"]
            else:
                check_map(answer, valid)


def check_map(answer: httpx.Response, valid: npt.NDArray[np.bool_]) -> None:
    """Finite where the image has data, and nowhere else."""
    assert answer.status_code == 200, answer.text
    media_type = answer.headers["Content-Type"]
    if media_type == "application/json":
        said = answer.json()
        scores, wanted = said["scores"], valid[np.ix_(said["rows"], said["cols"])]
        found = np.isfinite(np.array(scores, np.float64))
    elif media_type == "application/x-npy":
        found, wanted = np.isfinite(array_of(answer)), valid
    elif media_type == "image/tiff":
        with MemoryFile(answer.content) as file, file.open() as dataset:
            found, wanted = np.isfinite(dataset.read(1)), valid
    else:
        check_picture(answer, valid, rings=True)
        return
    np.testing.assert_array_equal(found, wanted)


def check_picture(
    answer: httpx.Response, valid: npt.NDArray[np.bool_], *, rings: bool = False
) -> None:
    """Opaque where the image has data; the ring around a query is drawn over both."""
    assert answer.status_code == 200, answer.text
    opaque = np.asarray(Image.open(io.BytesIO(answer.content)))[..., 3] == 255
    assert opaque[valid].all()
    assert rings or not opaque[~valid].any()


def check_preview(client: httpx.Client, image: Floats) -> None:
    answer = client.post("/preview", content=npy_bytes(image), headers=NPY)
    check_picture(answer, valid_in(image))


def check_search(client: httpx.Client, image: Floats) -> None:
    for query, body in (({}, patch_of(image)), ({"row": 30, "col": 30}, image)):
        answer = client.post("/search", params=query, content=npy_bytes(body), headers=NPY)
        if not valid_in(image[:, :64]).any():
            assert answer.status_code == 422
            assert "no data" in answer.json()["detail"]
            continue
        assert answer.status_code == 200, answer.text
        (said,) = answer.json()["queries"]
        finite(said["valid_fraction"])
        assert said["nearest"]
        finite([one["distance"] for one in said["nearest"]])
