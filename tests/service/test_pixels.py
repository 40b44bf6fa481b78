"""/embed and /classify: both representations, grids, confidence; equal however it is asked."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from service.app import create_app
from service.settings import Settings
from tests.models import small_artifact
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.test_http import AS_NPY, JSON, NPY, TIFF, array_of, refused
from tests.service.test_kserve import tensor
from tests.service.test_load import app_in_a_thread, in_a_thread

Patches = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def asked(full: Artifact) -> Iterator[httpx.Client]:
    with in_a_thread(full, Settings(max_windows=30)) as client:
        yield client


def vectors(full: Artifact, name: str, patches: Patches) -> Patches:
    return embedder(full, name, Backend.FOLDED)(patches)


def test_either_or_both_representations(
    asked: httpx.Client, full: Artifact, patches: Patches
) -> None:
    shared, exclusive = (vectors(full, name, patches) for name in ("shared", "exclusive"))
    expected = {
        "shared": (shared, shared, None),
        "exclusive": (exclusive, None, exclusive),
        "both": (np.concatenate([shared, exclusive], 1), shared, exclusive),
    }
    scores = full.out_of_distribution(shared, patches)
    assert scores is not None
    for name, (array, first, second) in expected.items():
        query = {"representation": name}
        answer = asked.post(
            "/embed", params=query, content=npy_bytes(patches), headers=NPY | AS_NPY
        )
        np.testing.assert_array_equal(array_of(answer), array)
        document = asked.post(
            "/embed", params=query, content=npy_bytes(patches), headers=NPY
        ).json()
        for key, values in (("shared", first), ("exclusive", second)):
            assert document[key] == (None if values is None else values.tolist())
        assert document["out_of_distribution"] == scores.tolist()
        assert document["grid"] is None


def test_npz_holds_what_json_does(asked: httpx.Client, full: Artifact, patches: Patches) -> None:
    image = npy_bytes(np.random.default_rng(6).uniform(0, 0.4, (4, 80, 96)).astype(np.float32))
    for path, query, body in (
        ("/embed", {"representation": "both"}, npy_bytes(patches)),
        ("/embed", {"representation": "exclusive", "stride": "16"}, image),
        ("/classify", {"head": "season"}, npy_bytes(patches)),
        ("/classify", {"head": "cover", "stride": "16"}, image),
    ):
        document = asked.post(path, params=query, content=body, headers=NPY).json()
        expected = {**document, **(document["grid"] or {})}
        for name in ("artifact", "grid"):
            del expected[name]
        headers = NPY | {"Accept": "application/x-npz"}
        answer = asked.post(path, params=query, content=body, headers=headers)
        assert answer.headers["Content-Type"] == "application/x-npz"
        assert answer.headers["X-Artifact"] == full.digest
        assert unquote(answer.headers["X-Artifact-Id"]) == full.id == document["artifact"]["id"]
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
            found = {name: array.tolist() for name, array in arrays.items()}
        assert found == {name: said for name, said in expected.items() if said is not None}


def test_a_representation_that_the_model_lacks_is_named(tmp_path: Path, patches: Patches) -> None:
    app = create_app(small_artifact(tmp_path / "artifact", {}), Settings())
    with app_in_a_thread(app) as client:
        for name in ("exclusive", "both"):
            answer = client.post(
                "/embed", params={"representation": name}, content=npy_bytes(patches), headers=NPY
            )
            refused(answer, 422, "no representation 'exclusive'; it has: shared")


def test_classes_are_calibrated_and_say_how_strange_a_patch_is(
    asked: httpx.Client, full: Artifact, patches: Patches
) -> None:
    for head, reads in (("cover", "shared"), ("season", "exclusive")):
        document = asked.post(
            "/classify", params={"head": head}, content=npy_bytes(patches), headers=NPY
        ).json()
        seen = torch.from_numpy(vectors(full, reads, patches))
        logits = full.networks.heads[head](seen) / full.spec.heads[head].temperature
        np.testing.assert_allclose(
            document["probabilities"], torch.softmax(logits, 1).numpy(), atol=1e-6
        )
        strange = full.out_of_distribution(vectors(full, "shared", patches), patches)
        assert strange is not None
        assert document["out_of_distribution"] == strange.tolist()
    tensor = {
        "name": "pixels",
        "shape": list(patches.shape),
        "datatype": "FP32",
        "data": np.nan_to_num(patches, nan=9).ravel().tolist(),
    }
    asking = {"inputs": [tensor], "outputs": [{"name": "out_of_distribution"}]}
    asking["parameters"] = {"nodata": 9}
    answer = asked.post(f"/v2/models/{full.spec.name}/infer", json=asking).json()
    assert answer["outputs"][0]["data"] == document["out_of_distribution"]
    odd = np.full((1, 4, 64, 64), 0.9, np.float32)
    document = asked.post("/classify?head=cover", content=npy_bytes(odd), headers=NPY).json()
    assert document["out_of_distribution"] == [1.0]


def test_a_grid_is_its_patches_one_by_one(asked: httpx.Client, full: Artifact) -> None:
    image = np.random.default_rng(6).uniform(0, 0.4, (4, 100, 131)).astype(np.float32)
    image[2, :50, :30] = np.nan
    tops, lefts = [0, 20, 36], [0, 20, 40, 60, 67]
    cut = np.stack([image[:, t : t + 64, at : at + 64] for t in tops for at in lefts])
    expected = vectors(full, "shared", cut)
    query = {"stride": 20}
    for headers, body in ((NPY, npy_bytes(image)), (TIFF, geotiff_bytes(image))):
        array = array_of(asked.post("/embed", params=query, content=body, headers=headers | AS_NPY))
        assert array.shape == (3, 5, 64)
        np.testing.assert_allclose(array.reshape(15, 64), expected, atol=2e-3)
    document = asked.post("/embed", params=query, content=npy_bytes(image), headers=NPY).json()
    assert document["grid"] == {
        "rows": [top + 32 for top in tops],
        "cols": [left + 32 for left in lefts],
    }
    whole = np.isfinite(cut).all(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(document["valid_fraction"], whole)
    assert len(document["out_of_distribution"]) == 15
    classes = asked.post(
        "/classify",
        params=query | {"head": "cover"},
        content=npy_bytes(image),
        headers=NPY | AS_NPY,
    )
    assert array_of(classes).shape == (3, 5, 3)


def test_a_grid_of_too_many_patches_or_of_no_image_is_refused(asked: httpx.Client) -> None:
    image = np.zeros((4, 128, 128), np.float32)
    answer = asked.post("/embed?stride=10", content=npy_bytes(image), headers=NPY)
    refused(answer, 422, "a grid may have 30 patches, stride 10 makes 64")
    answer = asked.post("/embed?stride=10", content=npy_bytes(image[None]), headers=NPY)
    refused(answer, 422, "expected an image of shape (band, H, W)")
    assert asked.post("/embed?stride=0", content=npy_bytes(image), headers=NPY).status_code == 422


def test_format_order_and_extra_bands_do_not_change_an_answer(
    asked: httpx.Client, patches: Patches
) -> None:
    one = patches[1]
    names = ["B04", "B03", "B02", "B08"]
    order = [2, 0, 3, 1]
    extra = np.concatenate([one[order], np.full((1, 64, 64), 0.7, np.float32)])
    said = {"bands": ",".join([names[i] for i in order] + ["B11"])}
    lists = one[None].astype(object)
    lists[np.isnan(one[None])] = None
    encoded = base64.b64encode(npy_bytes(one[None].astype("<f8"))).decode()
    uploads = [
        ({}, NPY, npy_bytes(one[None])),
        ({}, NPY, npy_bytes(np.asfortranarray(one[None]))),
        (said, NPY, npy_bytes(extra[None])),
        ({}, TIFF, geotiff_bytes(one, compress="LZW")),
        ({}, TIFF, geotiff_bytes(extra, [names[i] for i in order] + ["B11"])),
        ({}, JSON, json.dumps({"reflectance": lists.tolist()}).encode()),
        ({}, JSON, json.dumps({"npy": encoded}).encode()),
    ]
    for path, parameters in (("/embed", {}), ("/classify", {"head": "cover"})):
        answers = [
            asked.post(path, params=query | parameters, content=body, headers=headers)
            for query, headers, body in uploads
        ]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 1
    missing = asked.post(
        "/embed", params={"bands": "B04,B03,B02"}, content=npy_bytes(one[None, :3]), headers=NPY
    )
    refused(missing, 422, "B08")


def rows(client: httpx.Client, path: str, patches: Patches) -> Patches:
    """What a path says of patches, a row each."""
    if not path.endswith("/infer"):
        return array_of(client.post(path, content=npy_bytes(patches), headers=NPY | AS_NPY))
    body = {"inputs": [tensor(patches)], "outputs": [{"name": "shared"}]}
    (output,) = client.post(path, json=body).json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.parametrize(
    "path", ["/embed", "/classify?head=cover", "/v2/models/M%C3%B6we%201/infer"]
)
def test_neighbours_in_a_batch_do_not_change_an_answer(asked: httpx.Client, path: str) -> None:
    """The same patch alone, among others in one request, and among those of other clients."""
    many = np.random.default_rng(8).uniform(0, 0.4, (16, 4, 64, 64)).astype(np.float32)
    alone = np.concatenate([rows(asked, path, one[None]) for one in many])
    together = rows(asked, path, many)
    with ThreadPoolExecutor(8) as clients:
        crowded = np.concatenate(list(clients.map(lambda one: rows(asked, path, one[None]), many)))
    # Vectors that differ in nothing but their batch are a thousand times nearer than patches are.
    apart = np.abs(alone[0] - alone[1]).max()
    for other in (together, crowded):
        assert np.abs(other - alone).max() < 0.02 * apart
        assert np.abs(other - alone).max() < 5e-3
    metrics = asked.get("/metrics").text
    assert 'crossmi_batch_patches_bucket{le="1.0"}' in metrics
