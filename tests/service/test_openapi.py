"""The OpenAPI document says what happens: its examples run, and nothing else occurs."""

import copy
import json
import re
from typing import Any

import httpx
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

from tests.service.conftest import Running

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
    queries = {"/similarity": {"row": 3, "col": 60, "stride": 8}}
    ran = []
    for path, operations in document["paths"].items():
        body = operations.get("post", {}).get("requestBody", {"content": {}})
        for media_type, described in body["content"].items():
            for example in described.get("examples", {}).values():
                name = example["$ref"].rsplit("/", 1)[1]
                value = document["components"]["examples"][name]["value"]
                answer = client.post(
                    path.format(name=model_name),
                    params=queries.get(path),
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


def test_generated_requests_have_declared_answers(
    service: Running, document: dict[str, Any], model_name: str
) -> None:
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
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
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
