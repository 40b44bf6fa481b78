"""The OpenAPI document says what happens: its examples run, and nothing else occurs."""

import copy
import json
import re
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mimodel.artifact import Artifact
from service.app import create_app
from service.settings import Settings
from tests.service.bodies import npy_bytes
from tests.service.conftest import Running
from tests.service.test_http import NPY
from tests.service.test_load import app_in_a_thread

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.fixture(scope="session")
def document(service: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/openapi.json").json()
    return found


@pytest.fixture(scope="session")
def model_name(service: Running) -> str:
    found: str = httpx.get(f"{service.url}/models").json()["models"][0]["name"]
    return found


def test_every_example_runs(
    client: httpx.Client, document: dict[str, Any], model_name: str
) -> None:
    """Sent with what the document has for their parameters, and nothing else."""
    ran = []
    for path, operations in document["paths"].items():
        operation = operations.get("post", {})
        body = operation.get("requestBody", {"content": {}})
        queries = {
            one["name"]: one["schema"]["examples"][0]
            for one in operation.get("parameters", [])
            if one["in"] == "query" and "examples" in one["schema"]
        }
        for media_type, described in body["content"].items():
            for example in described.get("examples", {}).values():
                name = example["$ref"].rsplit("/", 1)[1]
                value = document["components"]["examples"][name]["value"]
                answer = client.post(
                    path.format(name=model_name),
                    params=queries,
                    content=json.dumps(value),
                    headers={"Content-Type": media_type},
                )
                assert answer.status_code == 200, answer.text
                ran.append(path)
    infer = "/v2/models/{name}/infer"
    assert ran == ["/embed", "/classify", "/similarity", "/search", infer, "/preview"]


def test_every_reference_of_the_document_exists(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        part: Any = document
        for key in reference.split("/"):
            part = part[key]


def test_what_is_declared_is_what_can_happen(document: dict[str, Any]) -> None:
    for path in ("/embed", "/classify", "/similarity"):
        responses = document["paths"][path]["post"]["responses"]
        assert sorted(responses) == ["200", "400", "406", "408", "413", "415", "422", "503"]
        assert all(
            list(response["content"]) == ["application/problem+json"]
            for status, response in responses.items()
            if status != "200"
        )
    assert "401" not in json.dumps(document["paths"])  # no key is set


@pytest.mark.parametrize("key", ["k" * 16, None])
def test_what_wants_a_key_says_so(artifact: Artifact, key: str | None) -> None:
    """Of the document alone a generated client learns where to send its key, and where not."""
    app = create_app(artifact, Settings.model_validate({"api_key": key, "max_rate": 1000.0}))
    said: dict[tuple[str, str], bool] = {}
    found: dict[tuple[str, str], bool] = {}
    with app_in_a_thread(app) as client:
        document = client.get("/openapi.json").json()
        schemes = document["components"].get("securitySchemes", {})
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                named = [name for one in operation.get("security", []) for name in one]
                assert set(named) <= set(schemes)
                said[path, method] = bool(named)
                asked = re.sub(r"{\w+}", "0", path)
                found[path, method] = client.request(method, asked).status_code == 401
    assert said == found
    assert any(said.values()) == (key is not None)
    assert [(one["type"], one["scheme"]) for one in schemes.values()] == (
        [("http", "bearer")] if key else []
    )


def test_errors_do_not_say_again_what_was_sent(
    client: httpx.Client, document: dict[str, Any], model_name: str
) -> None:
    secret = "../../s3cret"
    body = npy_bytes(np.full((1, 4, 64, 64), 0.1, np.float32))
    infer = f"/v2/models/{model_name}/infer"
    asked = [
        client.post("/embed", content=body, headers=NPY | {"Accept": secret}),
        client.post("/embed", content=body, headers={"Content-Type": secret}),
        client.post("/embed", content=body, params={secret: secret}, headers=NPY),
        client.post("/embed", json={secret: secret}),
        client.post("/embed", json={"npy": secret}),
        client.post(infer, json={"inputs": [{"name": secret}], "outputs": [{"name": secret}]}),
        client.get(f"/{secret}"),
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for one in operation.get("parameters", []):
                within = one["in"] == "path"
                found = client.request(
                    method,
                    re.sub(r"{\w+}", quote(secret, safe="") if within else "0", path),
                    params=None if within else {one["name"]: secret},
                    content=body if method == "post" else None,
                    headers=NPY,
                )
                asked.append(found)
    assert any("head=" in str(answer.url) for answer in asked)
    for answer in asked:
        assert 400 <= answer.status_code < 500, (answer.url, answer.text)
        assert "s3cret" not in answer.text, (answer.url, answer.text)


@pytest.mark.parametrize(
    ("examples", "same"), [(8, True), pytest.param(100, False, marks=pytest.mark.slow)]
)
def test_generated_requests_have_declared_answers(
    service: Running, document: dict[str, Any], model_name: str, examples: int, *, same: bool
) -> None:
    """A few requests that are always the same, and many that are new each time."""
    document = copy.deepcopy(document)
    for path, operations in document["paths"].items():
        # No name that is made up is that of the model.
        if path.startswith("/v2/models/"):
            for operation in operations.values():
                operation["parameters"][0]["schema"]["enum"] = [model_name, "other"]
    schema = schemathesis.openapi.from_dict(document)
    asked: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        cases = operation.as_strategy()
        if operation.body:
            cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=same,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(base_url=service.url)
            case.validate_response(answer, checks=CHECKS)
            asked.setdefault(case.path, set()).add(answer.status_code)

        ask()
    assert asked.keys() == document["paths"].keys()
    assert asked["/embed"] & {400, 415, 422}
    assert httpx.get(f"{service.url}/healthz").status_code == 200
