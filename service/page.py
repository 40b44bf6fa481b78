"""The page at `/`, and the picture of an upload that it shows."""

from importlib.resources import files
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from service.answers import bytes_answer
from service.decode import Reflectance, decode_image
from service.engine import Engine
from service.formats import PNG
from service.openapi import GET_AND_HEAD, UPLOAD_STATUSES, operation
from service.queries import PixelQuery
from service.render import png
from service.requests import answer_type

_TRUE_COLOUR = ("B04", "B03", "B02")
_HEADERS = {
    # The page loads from its own origin alone, and runs nothing that stands in its text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(engine: Engine) -> APIRouter:
    """The page is open even where a key is wanted: it holds nothing, and asks for the key."""
    routes = APIRouter(tags=["page"])
    for path, name, media_type in (
        ("/", "page.html", "text/html"),
        ("/web/page.js", "page.js", "text/javascript"),
        ("/web/page.css", "page.css", "text/css"),
    ):
        _add_file(routes, path, name, media_type)
    statuses = (*engine.guard_statuses, *UPLOAD_STATUSES)

    @routes.post(
        "/preview",
        dependencies=engine.guards,
        response_class=Response,
        **operation(*statuses, also=[PNG], upload="image"),
    )
    async def preview(request: Request, query: Annotated[PixelQuery, Query()]) -> Response:
        """An image as the service reads it, in true colour where the model has these bands.

        Each band from its 2nd to its 98th percentile; transparent where there is no data.
        """
        answer_type(request.headers.get("accept"), [PNG])
        model = engine.model
        async with engine.upload(request) as upload:
            image = await engine.decode(decode_image, upload, query, model)
            picture = await engine.prepare(lambda: png(_colours(image, model.expected.bands)))
            return bytes_answer(picture, PNG, model.name)

    return routes


def _add_file(routes: APIRouter, path: str, name: str, media_type: str) -> None:
    content = files("service").joinpath("web", name).read_bytes()

    @routes.api_route(path, methods=GET_AND_HEAD, include_in_schema=False)
    def file() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)


def _colours(image: Reflectance, bands: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """RGBA (H, W, 4) of reflectance (band, H, W)."""
    names = _TRUE_COLOUR if set(_TRUE_COLOUR) <= set(bands) else (bands[0],) * 3
    valid = np.isfinite(image).all(axis=0)
    picture = np.zeros((*valid.shape, 4), np.uint8)
    picture[valid, 3] = 255
    for channel, name in enumerate(names):
        values = image[bands.index(name)][valid]
        if values.size:
            low, high = np.percentile(values, (2, 98))
            shade = np.clip((values - low) / max(high - low, 1e-4), 0, 1)
            picture[valid, channel] = np.rint(shade * 255)
    return picture
