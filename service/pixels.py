"""`POST /embed` and `POST /classify`: what the model says of patches."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from service.answers import json_answer, npy_answer
from service.engine import Engine, Model
from service.formats import JSON, NPY
from service.openapi import UPLOAD_STATUSES, operation
from service.patches import Seen, see_grid, see_patches
from service.queries import ClassifyQuery, EmbedQuery, GridQuery
from service.requests import answer_type
from service.schemas import ClassifyAnswer, EmbedAnswer
from service.settings import Settings

Vectors = npt.NDArray[np.float32]

_BOTH = ("shared", "exclusive")


def pixel_routes(engine: Engine) -> APIRouter:
    """The routes, over whatever model the engine has when they are asked."""
    routes = APIRouter(tags=["pixels"], dependencies=engine.guards)
    statuses = (*engine.guard_statuses, *UPLOAD_STATUSES)

    @routes.post("/embed", **operation(*statuses, answer=EmbedAnswer, also=[NPY], upload="patches"))
    async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
        """Shared and exclusive representations of patches, or of a grid of patches of an image.

        npy holds the vectors (N, dim) of `representation`, for both the shared ones with the
        exclusive ones beside them; of a grid (rows, cols, dim).
        """
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY])
        names = _BOTH if query.representation == "both" else (query.representation,)
        model = engine.model
        async with engine.upload(request) as upload:
            for name in names:
                model.artifact.check_representation(name)
            seen = await engine.decode(_reader(query, engine.settings), upload, query, model)
            vectors = {name: await engine.embed(model, seen.patches, name) for name in names}
            if wanted == NPY:
                side_by_side = np.concatenate(list(vectors.values()), 1)
                return npy_answer(seen.arranged(side_by_side), model.name)
            # The score is of the shared vectors, asked for or not.
            shared = vectors.get("shared")
            if shared is None:
                shared = await engine.embed(model, seen.patches, "shared")
            return await engine.prepare(partial(_embedded, model, seen, vectors, shared))

    @routes.post(
        "/classify", **operation(*statuses, answer=ClassifyAnswer, also=[NPY], upload="patches")
    )
    async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
        """Class probabilities of patches, or of a grid of patches, by a head of the model."""
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY])
        model = engine.model
        async with engine.upload(request) as upload:
            head = model.artifact.head_name(query.head)
            reads = model.artifact.spec.heads[head].representation
            seen = await engine.decode(_reader(query, engine.settings), upload, query, model)
            vectors = await engine.embed(model, seen.patches, reads)
            probabilities = await engine.prepare(
                partial(model.artifact.probabilities, vectors, head)
            )
            if wanted == NPY:
                return npy_answer(seen.arranged(probabilities), model.name)
            if reads != "shared":
                vectors = await engine.embed(model, seen.patches, "shared")
            return await engine.prepare(
                partial(_classified, model, seen, head, probabilities, vectors)
            )

    return routes


def _reader(query: GridQuery, settings: Settings) -> Callable[..., Seen]:
    """What makes patches of the body: it holds them, or an image."""
    if query.stride is None:
        return see_patches
    return partial(see_grid, stride=query.stride, most=settings.max_windows)


def _embedded(
    model: Model, seen: Seen, vectors: Mapping[str, Vectors], shared: Vectors
) -> Response:
    lists = {name: values.tolist() for name, values in vectors.items()}
    answer = EmbedAnswer(
        artifact=model.name,
        shared=lists.get("shared"),
        exclusive=lists.get("exclusive"),
        valid_fraction=seen.valid_fraction,
        out_of_distribution=_strangeness(model, seen, shared),
        grid=seen.grid,
    )
    return json_answer(answer, model.name)


def _classified(
    model: Model, seen: Seen, head: str, probabilities: Vectors, shared: Vectors
) -> Response:
    answer = ClassifyAnswer(
        artifact=model.name,
        head=head,
        classes=list(model.artifact.spec.heads[head].classes),
        probabilities=probabilities.tolist(),
        valid_fraction=seen.valid_fraction,
        out_of_distribution=_strangeness(model, seen, shared),
        grid=seen.grid,
    )
    return json_answer(answer, model.name)


def _strangeness(model: Model, seen: Seen, shared: Vectors) -> list[float] | None:
    scores = model.strangeness(seen.patches, shared)
    return None if scores is None else scores.tolist()
