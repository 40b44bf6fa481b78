"""`POST /embed` and `POST /classify`: what the model says of patches."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from service.answers import NPZ, json_answer, npy_answer, npz_answer
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

    @routes.post(
        "/embed", **operation(*statuses, answer=EmbedAnswer, also=[NPY, NPZ], upload="patches")
    )
    async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
        """Shared and exclusive representations of patches, or of a grid of patches of an image.

        npy holds the vectors (N, dim) of `representation`, for both the shared ones with the
        exclusive ones beside them; of a grid (rows, cols, dim). npz holds all that JSON does.
        """
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY, NPZ])
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
            answer = _embedded_arrays if wanted == NPZ else _embedded
            return await engine.prepare(partial(answer, model, seen, vectors, shared))

    @routes.post(
        "/classify",
        **operation(*statuses, answer=ClassifyAnswer, also=[NPY, NPZ], upload="patches"),
    )
    async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
        """Class probabilities of patches, or of a grid of patches, by a head of the model.

        npy holds the probabilities (N, class) alone; npz holds all that JSON does.
        """
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY, NPZ])
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
            answer = _classified_arrays if wanted == NPZ else _classified
            return await engine.prepare(partial(answer, model, seen, head, probabilities, vectors))

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


def _embedded_arrays(
    model: Model, seen: Seen, vectors: Mapping[str, Vectors], shared: Vectors
) -> Response:
    return npz_answer({**vectors, **_of_patches(model, seen, shared)}, model.name)


def _classified_arrays(
    model: Model, seen: Seen, head: str, probabilities: Vectors, shared: Vectors
) -> Response:
    arrays = {
        "head": np.array(head),
        "classes": np.array(model.artifact.spec.heads[head].classes),
        "probabilities": probabilities,
    }
    return npz_answer({**arrays, **_of_patches(model, seen, shared)}, model.name)


def _of_patches(model: Model, seen: Seen, shared: Vectors) -> dict[str, npt.NDArray[Any]]:
    """What is said of each patch whatever was asked; what there is not is left out."""
    arrays: dict[str, npt.NDArray[Any]] = {"valid_fraction": np.array(seen.valid_fraction)}
    if (scores := model.strangeness(seen.patches, shared)) is not None:
        arrays["out_of_distribution"] = scores
    if seen.grid is not None:
        arrays |= {"rows": np.array(seen.grid.rows), "cols": np.array(seen.grid.cols)}
    return arrays


def _strangeness(model: Model, seen: Seen, shared: Vectors) -> list[float] | None:
    scores = model.strangeness(seen.patches, shared)
    return None if scores is None else scores.tolist()
