"""`POST /similarity`: how alike the places of an image are to some of its pixels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from mimodel.likeness import Terms
from mimodel.similarity import (
    Pixel,
    PreparedImage,
    SimilarityMap,
    mean_of,
    polygon_mask,
    spread_over,
    usual_stride,
)
from service.answers import bytes_answer, json_answer, npy_answer
from service.decode import Declared, Georeference, decode_image, georeference
from service.engine import Engine, Model, Upload
from service.errors import UnfitError
from service.formats import JSON, NPY, PNG, TIFF
from service.openapi import UPLOAD_STATUSES, operation
from service.queries import SimilarityQuery
from service.render import map_geotiff, map_png
from service.requests import answer_type
from service.schemas import SimilarityAnswer
from service.settings import Settings

_TERMS = {"exact": Terms.ALL, "fast": Terms.IMAGE}
_FAST_PIXELS = 16
"""Of a polygon, in a fast map: docs/results.md says how near their mean comes to that of all."""


def similarity_routes(engine: Engine) -> APIRouter:
    """The route, over whatever model the engine has when it is asked."""
    routes = APIRouter(tags=["pixels"], dependencies=engine.guards)
    statuses = (*engine.guard_statuses, *UPLOAD_STATUSES)

    @routes.post(
        "/similarity",
        **operation(*statuses, answer=SimilarityAnswer, also=[NPY, PNG, TIFF], upload="image"),
    )
    async def similarity(request: Request, query: Annotated[SimilarityQuery, Query()]) -> Response:
        """How alike each place of an image is to one of its pixels, to several, or to a polygon.

        JSON holds the scores of the grid; npy (H, W), PNG and GeoTIFF are interpolated to every
        pixel. With `maps=each` npy has an axis and a GeoTIFF a band for each query pixel.
        """
        wanted = answer_type(request.headers.get("accept"), [JSON, NPY, PNG, TIFF])
        model = engine.model
        async with engine.upload(request) as upload:
            with model.images.work():
                return await _mapped(engine, upload, query, model, wanted)

    return routes


async def _mapped(
    engine: Engine, upload: Upload, query: SimilarityQuery, model: Model, wanted: str
) -> Response:
    # Before the image, whose decoding lets the body go.
    placed = wanted == TIFF == upload.media_type
    ground = await engine.prepare(lambda: georeference(upload.body)) if placed else None
    image = await _image(engine, upload, query, model)
    asked = await engine.prepare(lambda: _asked(query, image, engine.settings))
    _check_answer(query, image, asked, wanted, engine.settings)
    terms = _TERMS[query.mode]
    steps = await engine.compute(lambda: image.scores(asked.counted, terms=terms))
    parts = []
    # Step by step, so that a large map does not keep others from the model.
    while (part := await engine.compute(lambda: next(steps, None))) is not None:
        parts.append(part)

    def answer() -> Response:
        maps = image.joined(asked.counted, parts)
        return _answer(maps, asked, query, ground, wanted, model)

    return await engine.prepare(answer)


@dataclass(frozen=True)
class _Asked:
    """The query pixels that count, and all of which they are an even sample."""

    counted: Sequence[Pixel]
    total: int
    area: npt.NDArray[np.bool_] | None = None
    """The polygon (H, W) that they are from."""


async def _image(
    engine: Engine, upload: Upload, query: SimilarityQuery, model: Model
) -> PreparedImage:
    """The image of a body, with its features if it was asked about before."""
    stride = query.stride or usual_stride(model.artifact)
    said = f"{model.name.digest} {upload.media_type} {Declared.of(query)} {stride} ".encode()

    def digest() -> bytes:
        return hashlib.sha256(said + upload.body).digest()

    key = await engine.prepare(digest)
    images = model.images
    if (image := images.get(key)) is not None:
        return image
    pixels = await engine.decode(decode_image, upload, query, model)
    _check_windows(pixels.shape[1:], stride, model, engine.settings)
    image = await engine.prepare(
        lambda: PreparedImage(
            model.artifact,
            pixels,
            stride=stride,
            keep=partial(images.room, key),
            comparison=model.comparison,
        )
    )
    images.put(key, image)
    return image


def _check_windows(size: tuple[int, ...], stride: int, model: Model, settings: Settings) -> None:
    """Refuse a grid of more patches than may be encoded one by one."""
    patch = model.expected.patch_size
    windows = int(np.prod([-(-(extent - patch) // stride) + 1 for extent in size]))
    if windows > settings.max_windows and not model.artifact.spec.encoder.dense:
        raise UnfitError(
            f"a map may compare {settings.max_windows} patches, stride {stride} makes {windows}; "
            "take a larger stride or a smaller image"
        )


def _asked(query: SimilarityQuery, image: PreparedImage, settings: Settings) -> _Asked:
    """The pixels that a query names; of a polygon all, or evenly as many as the limits allow, and
    for a fast mean `_FAST_PIXELS` at most."""
    products = image.places * image.products(_TERMS[query.mode])
    most = min(settings.max_queries, settings.max_products // products)
    if most < max(len(query.pixels), 1):
        raise UnfitError(
            f"a map of {image.places} places may have {most} query pixels; send fewer, take a "
            "larger stride, mode=fast or a smaller image"
        )
    if query.pixels:
        return _Asked(query.pixels, len(query.pixels))
    height, width = image.valid.shape
    area = polygon_mask(query.corners, (height, width)) & image.valid
    total = int(area.sum())
    if not total:
        raise UnfitError("no pixel with data has its centre in the polygon; draw a larger one")
    if query.mode == "fast" and query.maps == "mean":
        most = min(most, _FAST_PIXELS)
    return _Asked(spread_over(area, most), total, area)


def _check_answer(
    query: SimilarityQuery, image: PreparedImage, asked: _Asked, wanted: str, settings: Settings
) -> None:
    """Refuse more layers than an answer may hold."""
    layers = len(asked.counted) if query.maps == "each" else 1
    numbers = image.places if wanted == JSON else image.valid.size
    if wanted != PNG and layers > 1 and layers * numbers > settings.max_scores:
        grid = "" if wanted == JSON else " or accept application/json, which has those of the grid"
        raise UnfitError(
            f"an answer may hold {settings.max_scores} numbers, {layers} layers of {numbers} are "
            f"more; ask for fewer{grid}"
        )


def _answer(
    maps: Sequence[SimilarityMap],
    asked: _Asked,
    query: SimilarityQuery,
    ground: Georeference | None,
    wanted: str,
    model: Model,
) -> Response:
    mean, each = mean_of(maps), query.maps == "each"
    if wanted == JSON:
        answer = SimilarityAnswer(
            artifact=model.name,
            queries=list(asked.counted),
            asked=asked.total,
            rows=mean.row_centres.tolist(),
            cols=mean.col_centres.tolist(),
            scores=_lists(mean),
            each=[_lists(one) for one in maps] if each else None,
        )
        return json_answer(answer, model.name)
    headers = {"X-Queries": f"{len(asked.counted)} of {asked.total}"}
    if wanted == PNG:
        marked = asked.counted if asked.area is None else ()
        picture = map_png(mean.to_image(), marked, asked.area)
        return bytes_answer(picture, PNG, model.name, headers)
    layers = [one.to_image() for one in maps] if each else [mean.to_image()]
    if wanted == NPY:
        return npy_answer(np.stack(layers) if each else layers[0], model.name, headers)
    names = [f"similarity to row {row}, column {col}" for row, col in asked.counted]
    named = names if each or len(names) == 1 else [f"mean similarity to {len(names)} pixels"]
    raster = map_geotiff(layers, named, ground, {"crossmi_artifact": model.name.digest})
    return bytes_answer(raster, TIFF, model.name, headers)


def _lists(found: SimilarityMap) -> list[list[float | None]]:
    """The scores as JSON has them: null where the image has no data."""
    scores: npt.NDArray[np.object_] = found.scores.astype(object)
    scores[~found.valid[np.ix_(found.row_centres, found.col_centres)]] = None
    lists: list[list[float | None]] = scores.tolist()
    return lists
