"""`POST /similarity`: how alike the places of an image are to one of its pixels."""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from mimodel.similarity import SimilarityMap, similarity_map
from service.answers import bytes_answer, json_answer, npy_answer
from service.decode import JSON, NPY, PNG, decode_image
from service.engine import Engine, Model
from service.errors import UnfitError
from service.openapi import UPLOAD_STATUSES, operation
from service.render import map_png
from service.requests import answer_type
from service.schemas import SimilarityAnswer, SimilarityQuery

Mask = npt.NDArray[np.bool_]


def similarity_routes(engine: Engine) -> APIRouter:
    """The route, over whatever model the engine has when it is asked."""
    routes = APIRouter(tags=["pixels"], dependencies=engine.guards)
    statuses = (*engine.guard_statuses, *UPLOAD_STATUSES)

    @routes.post(
        "/similarity",
        **operation(*statuses, answer=SimilarityAnswer, also=[NPY, PNG], upload="image"),
    )
    async def similarity(request: Request, query: Annotated[SimilarityQuery, Query()]) -> Response:
        """How alike each place of an image is to a query pixel.

        JSON holds the scores of the grid; npy (H, W) and PNG are interpolated to every pixel.
        """
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY, PNG])
        place = (query.row, query.col)
        async with engine.upload(request) as upload:
            model = engine.model
            image = await engine.decode(decode_image, upload, query, model)
            valid: Mask = np.asarray(np.isfinite(image).all(axis=0))
            _check(valid, place, query.stride, model, engine.settings.max_windows)
            found = await engine.compute(
                lambda: similarity_map(model.artifact, image, place, stride=query.stride)
            )
            return await engine.prepare(lambda: _answer(found, valid, wanted, model))

    return routes


def _check(
    valid: Mask, place: tuple[int, int], stride: int, model: Model, max_windows: int
) -> None:
    height, width = valid.shape
    if place[0] >= height or place[1] >= width:
        raise UnfitError(
            f"the query pixel (row {place[0]}, column {place[1]}) lies outside the image of "
            f"{height} x {width} pixels"
        )
    if not valid[place]:
        raise UnfitError("the query pixel has no data; choose another")
    size = model.expected.patch_size
    windows = math.prod(math.ceil((extent - size) / stride) + 1 for extent in valid.shape)
    if windows > max_windows:
        raise UnfitError(
            f"a map may compare {max_windows} patches, stride {stride} makes {windows}; take a "
            "larger stride or a smaller image"
        )


def _answer(found: SimilarityMap, valid: Mask, wanted: str, model: Model) -> Response:
    if wanted == JSON:
        scores = found.scores.astype(object)
        scores[~valid[np.ix_(found.row_centres, found.col_centres)]] = None
        answer = SimilarityAnswer(
            artifact=model.name,
            query=found.query,
            rows=found.row_centres.tolist(),
            cols=found.col_centres.tolist(),
            scores=scores.tolist(),
        )
        return json_answer(answer, model.name)
    picture = found.to_image()
    picture[~valid] = np.nan
    if wanted == NPY:
        return npy_answer(picture, model.name)
    return bytes_answer(map_png(picture, found.query), PNG, model.name)
