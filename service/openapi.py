"""The OpenAPI document: bodies that are read by hand, problem documents, examples that run."""

import base64
from collections.abc import Callable, Sequence
from http import HTTPStatus
from io import BytesIO
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from service.decode import Expected
from service.errors import PROBLEM_TYPE
from service.kserve_schemas import InferBody
from service.queries import ImageBody, PatchesBody
from service.schemas import Problem

_SCHEMAS = "#/components/schemas/"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_OR_ELSE = {
    "patches": " With `stride`, an image (band, row, column).",
    "image": "",
    "query": " With `row` and `col`, an image (band, row, column). With `patch`, nothing.",
}
"""What else the body of such an upload may be."""

KEY_SCHEME = HTTPBearer(scheme_name="key", description="A key of this service.", auto_error=False)
"""A dependency that has the document say how a key is sent; it lets all pass."""

GET_AND_HEAD = ["GET", "HEAD"]
"""Methods of what monitors ask for, many of which want the status alone."""

UPLOAD_STATUSES = (400, 406, 408, 413, 415, 422, 503)
"""Errors of every route that takes pixels."""

_MEANINGS = {
    400: "The body is not of the media type that it claims.",
    401: "The API key is missing or wrong.",
    404: "The service has no such model, no index, or the index no such look.",
    406: "None of the accepted media types can be made.",
    408: "The body did not arrive in time.",
    413: "The body, or what it unpacks to, is over a limit.",
    415: "The media type, or a compression inside it, is not read here.",
    422: "The pixels or parameters are not what the model needs.",
    429: "This client asks too often.",
    503: "Too many requests or maps wait, the answer took too long, the model is not ready, or the "
    "index's disk fails.",
}


def operation(
    *statuses: int,
    answer: type[BaseModel] | None = None,
    also: Sequence[str] = (),
    upload: Literal["patches", "image", "query", "tensor"] | None = None,
) -> dict[str, Any]:
    """What a route's decorator needs to describe it beyond its signature.

    `statuses` are the errors that can happen, `also` the media types besides JSON of the answer.
    """
    responses: dict[int | str, dict[str, Any]] = {status: _problem(status) for status in statuses}
    described: dict[str, Any] = {"responses": responses}
    if answer is not None:
        described["response_model"] = answer
    if also:
        responses[200] = {"content": dict.fromkeys(also, _BINARY)}
    if upload is not None:
        described["openapi_extra"] = {"requestBody": _request_body(upload)}
    return described


def describe(app: FastAPI, expected: Callable[[], Expected]) -> None:
    """Make `app.openapi` add what FastAPI cannot know, with examples for what is expected now."""
    described: Expected | None = None

    def document() -> dict[str, Any]:
        nonlocal described
        if app.openapi_schema is None or described != expected():
            described = expected()
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            components = made.setdefault("components", {})
            components.setdefault("schemas", {}).update(_component_schemas())
            components["examples"] = _examples(described.bands, described.patch_size)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _problem(status: int) -> dict[str, Any]:
    header = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}.get(status)
    return {
        "description": f"{HTTPStatus(status).phrase}. {_MEANINGS[status]}",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}}},
    } | ({"headers": {header: {"schema": {"type": "string"}}}} if header else {})


def _request_body(upload: str) -> dict[str, Any]:
    if upload == "tensor":
        schema = {"$ref": _SCHEMAS + InferBody.__name__}
        examples = {"infer": {"$ref": "#/components/examples/infer"}}
        return {
            "required": True,
            "description": "JSON, also where no Content-Type is said.",
            "content": {"application/json": {"schema": schema, "examples": examples}},
        }
    of_patches = upload != "image"
    shape = "(N, band, row, column)" if of_patches else "(band, row, column)"
    tiff = "one patch" if of_patches else "one image"
    sent = [PatchesBody, ImageBody] if of_patches else [ImageBody]
    example = "patches" if of_patches else "image"
    return {
        "required": upload != "query",
        "description": f"Reflectance of shape {shape}, or digital numbers with `scale` and "
        f"`offset`. A GeoTIFF holds {tiff}; its band descriptions name the bands if they are "
        "names of Sentinel-2 bands." + _OR_ELSE[upload],
        "content": {
            "application/x-npy": _BINARY,
            "image/tiff": _BINARY,
            "application/json": {
                "schema": {"anyOf": [{"$ref": _SCHEMAS + body.__name__} for body in sent]},
                "examples": {example: {"$ref": f"#/components/examples/{example}"}},
            },
        },
    }


def _component_schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for model in (Problem, PatchesBody, ImageBody, InferBody):
        schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return schemas


def _examples(bands: Sequence[str], size: int) -> dict[str, Any]:
    """A gentle slope of reflectance, in the smallest type, as a body that can be sent as it is."""
    slope = np.linspace(0.05, 0.3, size * size, dtype=np.float16).reshape(size, size)
    image = np.broadcast_to(slope, (len(bands), size, size))
    what = f"bands {', '.join(bands)} of {size} x {size} pixels"
    tensor = {
        "name": "pixels",
        "shape": [1, *image.shape],
        "datatype": "UINT8",
        "data": np.full(image.size, 9).tolist(),
    }
    outputs = [{"name": "shared"}]
    return {
        "infer": {
            "summary": f"One level patch: {what}",
            "value": {"parameters": {"scale": 0.01}, "inputs": [tensor], "outputs": outputs},
        },
        "patches": {"summary": f"One patch: {what}", "value": {"npy": _base64_npy(image[None])}},
        "image": {"summary": f"An image: {what}", "value": {"npy": _base64_npy(image)}},
    }


def _base64_npy(array: np.ndarray[Any, Any]) -> str:
    file = BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")
