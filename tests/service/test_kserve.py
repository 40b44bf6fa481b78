"""KServe's protocol gives what /embed and /classify give, and refuses what they refuse."""

import json

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from mimodel.artifact import Artifact
from tests.service.bodies import npy_bytes
from tests.service.test_http import JSON, NPY, refused

Patches = npt.NDArray[np.float32]


@pytest.fixture
def path(artifact: Artifact) -> str:
    return f"/v2/models/{artifact.spec.name}"


def tensor(pixels: npt.NDArray[np.generic], datatype: str = "FP32") -> dict[str, object]:
    values = pixels.astype(object)
    if pixels.dtype.kind == "f":
        values[np.isnan(pixels)] = None
    return {
        "name": "pixels",
        "shape": list(pixels.shape),
        "datatype": datatype,
        "data": values.ravel().tolist(),
    }


def test_the_server_and_its_model_say_what_they_are(
    client: httpx.Client, artifact: Artifact, path: str
) -> None:
    assert client.get("/v2").json()["extensions"] == []
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    said = client.get(path).json()
    assert said["name"] == artifact.spec.name
    assert said["versions"] == [artifact.digest[:12]]
    assert said["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 4, 64, 64]}]
    assert {one["name"]: one["shape"] for one in said["outputs"]} == {
        "shared": [-1, 64],
        "exclusive": [-1, 8],
        "probabilities_cover": [-1, 3],
        "valid_fraction": [-1],
    }
    assert client.get(f"{path}/ready").json() == {"name": artifact.spec.name, "ready": True}


def test_outputs_are_those_of_embed_and_classify(
    client: httpx.Client, patches: Patches, path: str
) -> None:
    plain = client.post("/embed?representation=both", content=npy_bytes(patches), headers=NPY)
    classes = client.post("/classify", content=npy_bytes(patches), headers=NPY).json()
    expected = {name: plain.json()[name] for name in ("shared", "exclusive", "valid_fraction")}
    expected["probabilities_cover"] = classes["probabilities"]
    asked = {"id": "seven", "inputs": [tensor(patches)]}
    answer = client.post(f"{path}/infer", json=asked).json()
    assert answer["id"] == "seven"
    assert answer["model_version"] == classes["artifact"]["digest"][:12]
    found = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    # Nested lists, and outputs in the order in which they are asked for.
    nested = tensor(patches) | {"data": np.where(np.isnan(patches), None, patches).tolist()}
    outputs = [
        {"name": "valid_fraction"},
        {"name": "shared", "parameters": {"binary_data": False}},
    ]
    again = client.post(f"{path}/infer", json={"inputs": [nested], "outputs": outputs}).json()
    assert [one["name"] for one in again["outputs"]] == ["valid_fraction", "shared"]
    np.testing.assert_allclose(again["outputs"][1]["data"], found["shared"].ravel(), atol=1e-6)


@pytest.mark.parametrize("parameters", [None, {}, {"binary_data": False}])
def test_a_body_may_be_without_media_type_and_a_tensor_say_that_it_is_not_binary(
    client: httpx.Client, patches: Patches, path: str, parameters: dict[str, object] | None
) -> None:
    """As Triton's own client sends them."""
    expected = client.post(f"{path}/infer", json={"inputs": [tensor(patches)]}).json()
    body = {"inputs": [tensor(patches) | {"parameters": parameters}]}
    answer = client.post(f"{path}/infer", content=json.dumps(body).encode())
    assert "Content-Type" not in answer.request.headers
    assert answer.status_code == 200, answer.text
    assert answer.json() == expected
    refused(client.post(f"{path}/infer", content=npy_bytes(patches)), 400, "not JSON")
    packed = {"Content-Encoding": "gzip"}
    refused(client.post(f"{path}/infer", content=b"", headers=packed), 415, "Content-Encoding")


def test_numbers_are_scaled_and_bands_are_named_as_elsewhere(
    client: httpx.Client, path: str
) -> None:
    numbers = np.random.default_rng(1).integers(1000, 4000, (2, 4, 64, 64), dtype=np.uint16)
    numbers[0, :, 5:9] = 0
    query = {"bands": "B02,B03,B04,B08", "scale": 1e-4, "offset": -0.1, "nodata": 0}
    plain = client.post("/embed", params=query, content=npy_bytes(numbers), headers=NPY).json()
    body = {"parameters": query, "inputs": [tensor(numbers, "UINT16")]}
    outputs = client.post(f"{path}/infer", json=body).json()["outputs"]
    found = {one["name"]: one["data"] for one in outputs}
    assert found["shared"] == np.ravel(plain["shared"]).tolist()
    assert found["valid_fraction"] == plain["valid_fraction"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"shape": [1, 4, 64, 63]}, 422, "expected patches of shape (N, band, 64, 64)"),
        ({"shape": [2, 4, 64, 64]}, 422, "32768 values, got (16384,)"),
        ({"shape": [1 << 30, 4, 64, 64]}, 413, "8 patches"),
        ({"shape": [1, int("9" * 4300), 64, 64]}, 422, "shape.1: Input should be less than"),
        ({"shape": [-1, 4, 64, 64]}, 422, "shape"),
        ({"data": [[[[0.1]], [[0.1, 0.2]]]]}, 422, "differ in length"),
        ({"data": ["0.1"] * 16384}, 422, "data"),
        ({"data": [1e39] * 16384}, 422, "infinite"),
        ({"datatype": "UINT8"}, 422, "no UINT8"),
        ({"datatype": "BYTES"}, 422, "datatype"),
        ({"name": "image"}, 422, "name"),
        ({"parameters": {"binary_data_size": 9}}, 422, "inputs.0"),
        ({"parameters": {"binary_data": True}}, 422, "inputs.0"),
        ({"parameters": {"scale": 0.5}}, 422, "inputs.0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    client: httpx.Client, path: str, change: dict[str, object], status: int, words: str
) -> None:
    one = tensor(np.full((1, 4, 64, 64), 0.25, np.float32)) | change
    refused(client.post(f"{path}/infer", json={"inputs": [one]}), status, words)


def test_requests_that_do_not_fit_are_refused(client: httpx.Client, path: str) -> None:
    good = tensor(np.full((1, 4, 64, 64), 0.25, np.float32))
    for body, words in (
        ({"inputs": []}, "inputs"),
        ({"inputs": [good, good]}, "inputs"),
        ({"inputs": [good], "outputs": [{"name": "colour"}]}, "shared, exclusive"),
        ({"inputs": [good], "outputs": [{"name": "shared"}] * 2}, "each of them once"),
        ({"inputs": [good], "outputs": []}, "each of them once"),
        ({"inputs": [good], "parameters": {"scale": 7}}, "scale"),
        ({"inputs": [good], "parameters": {"bands": "B02,B03,B04"}}, "bands"),
    ):
        refused(client.post(f"{path}/infer", json=body), 422, words)
    refused(client.post(f"{path}/infer", content=b"{", headers=JSON), 400, "not JSON")
    refused(client.post(f"{path}/infer", content=b"x", headers=NPY), 415, "application/json")
    refused(client.post("/v2/models/other/infer", json={"inputs": [good]}), 404, "no such model")
    refused(client.get("/v2/models/other"), 404, "no such model")
    refused(client.get("/v2/models/other/ready"), 404, "no such model")
