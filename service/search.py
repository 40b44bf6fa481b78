"""`POST /search` and what belongs to it: looks of an indexed cube that are nearest to a query."""

import datetime
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from mimodel.index import Found, Mask, PatchIndex, Search, Wanted
from mimodel.nearest import Vectors
from service.answers import bytes_answer, json_answer
from service.decode import Declared, Expected, decode_image
from service.engine import Engine, Model
from service.errors import AbsentError, UnfitError
from service.formats import JSON, NPY, PNG
from service.openapi import UPLOAD_STATUSES, operation
from service.patches import Seen, see_patches
from service.queries import SearchQuery
from service.requests import answer_type
from service.schemas import FoundLook, IndexSummary, SampleSummary, SearchAnswer, Searched
from service.settings import Settings

_A_WHILE = {"Cache-Control": "private, max-age=3600"}
_DIGITS = 12
"""Of an index's digest, in the path of its thumbnails."""
_OVER = object()
_Number = Annotated[int, Path(ge=0, le=2**31 - 1)]


def search_routes(engine: Engine) -> APIRouter:
    """The routes, over the index that belongs to whatever model the engine has."""
    routes = APIRouter(tags=["search"], dependencies=engine.guards)
    statuses = (*engine.guard_statuses, 404)

    @routes.post(
        "/search", **operation(*statuses, *UPLOAD_STATUSES, answer=SearchAnswer, upload="query")
    )
    async def search(request: Request, query: Annotated[SearchQuery, Query()]) -> Response:
        """The nearest looks (a patch at a date) of the index, for each query.

        A query is pixels: patches as for /embed, or with `row` and `col` an image, of which the
        patch around that pixel is taken. Or it is a look of the index, by `patch` and `date`,
        without a body; it is never found itself.
        """
        answer_type(request.headers.get("accept"), [JSON])
        if query.patch is not None:
            return await _by_look(engine, request, query)
        return await _by_pixels(engine, request, query)

    @routes.get("/index", **operation(*statuses, answer=IndexSummary))
    async def index() -> Response:
        """What can be searched: tiles, dates, splits, and a sample of its pixels."""
        model = engine.model
        summary = await engine.prepare(partial(_summary, _index_of(model)))
        return json_answer(summary, model.name)

    @routes.get("/index/sample.npy", response_class=Response, **operation(*statuses, also=[NPY]))
    def sample() -> Response:
        """A piece of the index's ground (band, H, W), as /index says how to read it."""
        model = engine.model
        body = _index_of(model).sample
        if body is None:
            raise AbsentError("the index has no sample: no patch of its cube is whole")
        return bytes_answer(body, NPY, model.name)

    @routes.get(
        "/thumbnails/{patch}/{date}.png",
        response_class=Response,
        **operation(*statuses, 422, 503, also=[PNG]),
    )
    def thumbnail(
        patch: _Number,
        date: _Number,
        index: Annotated[
            str | None,
            Query(pattern=f"^[0-9a-f]{{{_DIGITS}}}$", description="As /search has given it."),
        ] = None,
    ) -> Response:
        """A look of the index in true colour, 64 x 64 pixels, alike in brightness for all.

        With `index` it is that of this index or none, and may be kept.
        """
        model = engine.model
        searched = _index_of(model)
        if index not in (None, searched.digest[:_DIGITS]):
            raise AbsentError("the index was replaced by another one; search again")
        _check_look(searched, patch, date)
        answer = bytes_answer(searched.thumbnail(patch, date), PNG, model.name)
        answer.headers.update(_A_WHILE if index else {"Cache-Control": "no-cache"})
        return answer

    return routes


async def _by_look(engine: Engine, request: Request, query: SearchQuery) -> Response:
    model = engine.model
    index = _index_of(model)
    patch, date = query.patch or 0, query.date or 0
    _check_look(index, patch, date)
    if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        raise UnfitError("give either pixels or a look of the index, `patch` and `date`")
    seen = float(index.looks["valid_fraction"][patch, date])
    if not seen:
        raise UnfitError("the look has no data; choose another date")
    names = index.names(query.representation)
    async with engine.place(request):
        points = index.point_of(patch * index.spec.dates + date, names)
        return await _search(engine, model, query, points, names, [seen])


async def _by_pixels(engine: Engine, request: Request, query: SearchQuery) -> Response:
    model = engine.model
    index = _index_of(model)
    async with engine.upload(request) as upload:
        names = index.names(query.representation)
        read: Callable[..., Seen] = see_patches
        if query.row is not None and query.col is not None:
            read = partial(_see_around, pixel=(query.row, query.col))
        seen = await engine.decode(read, upload, query, model)
        if not all(seen.valid_fraction):
            raise UnfitError("a patch to search for has no data; choose another")
        vectors: dict[str, Vectors] = {
            name: await engine.embed(model, seen.patches, name) for name in names
        }
        points = index.points(vectors)
        return await _search(engine, model, query, points, names, seen.valid_fraction)


async def _search(
    engine: Engine,
    model: Model,
    query: SearchQuery,
    points: Vectors,
    names: tuple[str, ...],
    valid_fraction: Sequence[float],
) -> Response:
    """Piece by piece, so that a large search keeps no other one waiting, and can be given up."""
    index = _index_of(model)

    def begin() -> Search:
        eligible = _eligible(index, query)
        _check_amount(len(points), int(eligible.sum()), engine.settings)
        return index.search(points, names, eligible, count=query.count, per_place=query.per_place)

    search = await engine.search(begin)
    steps = search.steps()
    while await engine.search(lambda: next(steps, _OVER)) is not _OVER:
        pass
    return await engine.prepare(
        lambda: _document(model, index, query, valid_fraction, search.found())
    )


def _check_amount(queries: int, looks: int, settings: Settings) -> None:
    """Refuse what would take the index for minutes."""
    if queries * looks > settings.max_compared:
        raise UnfitError(
            f"a search may compare {settings.max_compared} pairs, {queries} queries with {looks} "
            "looks are more; send fewer patches, or filter by tile, time or split"
        )


def _document(
    model: Model,
    index: PatchIndex,
    query: SearchQuery,
    valid_fraction: Sequence[float],
    found: Sequence[Sequence[Found]],
) -> Response:
    answer = SearchAnswer(
        artifact=model.name,
        cube=index.spec.cube_digest,
        representation=query.representation,
        queries=[
            Searched(valid_fraction=valid, nearest=[_described(index, one) for one in looks])
            for valid, looks in zip(valid_fraction, found, strict=True)
        ],
    )
    return json_answer(answer, model.name)


def _eligible(index: PatchIndex, query: SearchQuery) -> Mask:
    tiles = query.tile.split(",") if query.tile else None
    absent = sorted(set(tiles or ()) - set(index.tiles))
    if absent:
        few = ", ".join(index.tiles[:10]) + (" and others" if len(index.tiles) > 10 else "")
        raise UnfitError(f"the index has no tile {absent[0]}; it has {few}")
    patch = query.patch
    return index.eligible(
        Wanted(
            tiles=tiles,
            start=query.start,
            end=query.end,
            months=[int(month) for month in query.months.split(",")] if query.months else None,
            split=query.split,
            place=patch if query.place == "same" else None,
            not_place=patch if query.place == "other" else None,
            not_look=None if patch is None else patch * index.spec.dates + (query.date or 0),
            min_valid=query.min_valid,
        )
    )


def _described(index: PatchIndex, found: Found) -> FoundLook:
    patch, look = index.patches[found.patch], index.looks[found.patch, found.date]
    return FoundLook(
        patch=found.patch,
        date=found.date,
        distance=found.distance,
        tile=str(patch["tile"]),
        region=int(patch["region"]),
        row=int(patch["row"]),
        col=int(patch["col"]),
        epsg=int(patch["epsg"]),
        x=float(patch["x"]),
        y=float(patch["y"]),
        lon=float(patch["lon"]),
        lat=float(patch["lat"]),
        split=str(patch["split"]),
        acquired=_time(look["acquired"]),
        product=index.spec.products[look["product"]],
        valid_fraction=float(look["valid_fraction"]),
        thumbnail=f"thumbnails/{found.patch}/{found.date}.png?index={index.digest[:_DIGITS]}",
    )


def _see_around(
    body: bytes, media_type: str, declared: Declared, expected: Expected, *, pixel: tuple[int, int]
) -> Seen:
    """The patch around a pixel of an image, or as near as the image's border allows."""
    image = decode_image(body, media_type, declared, expected)
    size, extents = expected.patch_size, image.shape[1:]
    if pixel[0] >= extents[0] or pixel[1] >= extents[1]:
        raise UnfitError(
            f"the query pixel (row {pixel[0]}, column {pixel[1]}) lies outside the image of "
            f"{extents[0]} x {extents[1]} pixels"
        )
    top, left = (
        min(max(at - size // 2, 0), extent - size)
        for at, extent in zip(pixel, extents, strict=True)
    )
    patch = image[None, :, top : top + size, left : left + size].copy()
    return Seen(patch, [float(np.isfinite(patch).all(axis=1).mean())])


def _summary(index: PatchIndex) -> IndexSummary:
    spec, looks = index.spec, index.looks
    seen = looks["acquired"][looks["valid_fraction"] > 0]
    return IndexSummary(
        cube=spec.cube_digest,
        level=spec.level,
        notice=spec.notice,
        patches=spec.patches,
        dates=spec.dates,
        tiles=_counts(index.patches["tile"]),
        splits=_counts(index.patches["split"]),
        start=_day(seen.min()) if seen.size else None,
        end=_day(seen.max()) if seen.size else None,
        representations=spec.representations,
        sample=SampleSummary.model_validate(spec.sample.model_dump()) if spec.sample else None,
    )


def _counts(names: "np.ndarray[tuple[int], np.dtype[np.str_]]") -> dict[str, int]:
    found, counts = np.unique(names, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _index_of(model: Model) -> PatchIndex:
    if model.index is None:
        raise AbsentError(
            "this service has no index to search in; its operator makes one by mimodel embed and "
            "starts it with --index"
        )
    return model.index


def _check_look(index: PatchIndex, patch: int, date: int) -> None:
    if patch >= index.spec.patches or date >= index.spec.dates:
        raise AbsentError(
            f"the index has {index.spec.patches} patches at {index.spec.dates} dates, both counted "
            "from 0"
        )


def _time(value: np.datetime64) -> str:
    return f"{np.datetime_as_string(value, unit='ms')}Z"


def _day(value: np.datetime64) -> datetime.date:
    return datetime.date.fromisoformat(np.datetime_as_string(value, unit="D"))
