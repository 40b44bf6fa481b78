"""The HTTP service over one artifact."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from io import BytesIO
from typing import Annotated, final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel

from mimodel.artifact import Artifact
from mimodel.similarity import similarity_map
from service.decode import JSON, NPY, Declared, Expected, Reflectance, decode_image, decode_patches
from service.errors import NotReadyError, UnfitError, install_handlers
from service.openapi import describe, operation
from service.render import map_png
from service.requests import answer_type, check_key, media_type_of, read_body
from service.schemas import (
    ArtifactName,
    ClassifyAnswer,
    ClassifyQuery,
    EmbedAnswer,
    HeadSummary,
    Health,
    ModelsAnswer,
    ModelSummary,
    PixelQuery,
    SimilarityAnswer,
    SimilarityQuery,
)
from service.settings import Settings
from service.worker import Worker

PNG = "image/png"

log = logging.getLogger("crossmi.service")


def create_app(artifact: Artifact, settings: Settings) -> FastAPI:
    """The service: `artifact` behind HTTP, within the limits of `settings`."""
    service = _Service(artifact, settings)
    app = FastAPI(
        title="crossmi",
        version=version("crossmi"),
        description="Shared representations, classes and similarity maps of Sentinel-2 pixels.",
        lifespan=service.lifespan,
        # The pages of FastAPI load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_handlers(app)
    app.include_router(_state_routes(service))
    app.include_router(_pixel_routes(service))
    describe(app, artifact.spec.bands, artifact.spec.patch_size)
    return app


def _state_routes(service: "_Service") -> APIRouter:
    routes = APIRouter(tags=["state"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @routes.get("/readyz", **operation(503))
    async def readyz() -> Health:
        """Whether the model is loaded and warmed up."""
        if not service.ready:
            raise NotReadyError("the model is being warmed up")
        return Health(status="ready")

    @routes.get("/models", dependencies=service.guards, **operation(*service.guard_statuses))
    async def models() -> ModelsAnswer:
        """What the model reads and gives."""
        return ModelsAnswer(models=[service.summary()])

    return routes


def _pixel_routes(service: "_Service") -> APIRouter:
    routes = APIRouter(tags=["pixels"], dependencies=service.guards)
    statuses = (*service.guard_statuses, 400, 406, 408, 413, 415, 422, 503)

    @routes.post("/embed", **operation(*statuses, answer=EmbedAnswer, also=[NPY], upload="patches"))
    async def embed(request: Request, query: Annotated[PixelQuery, Query()]) -> Response:
        """Shared representation of each patch."""
        return await service.answer(request, [JSON, NPY], partial(service.embed, query))

    @routes.post(
        "/classify", **operation(*statuses, answer=ClassifyAnswer, also=[NPY], upload="patches")
    )
    async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
        """Class probabilities of each patch, by a head of the model."""
        return await service.answer(request, [JSON, NPY], partial(service.classify, query))

    @routes.post(
        "/similarity",
        **operation(*statuses, answer=SimilarityAnswer, also=[NPY, PNG], upload="image"),
    )
    async def similarity(request: Request, query: Annotated[SimilarityQuery, Query()]) -> Response:
        """How alike each place of an image is to a query pixel.

        JSON holds the scores of the grid; npy (H, W) and PNG are interpolated to every pixel.
        """
        return await service.answer(request, [JSON, NPY, PNG], partial(service.similarity, query))

    return routes


@final
class _Service:
    """One artifact, its worker, and the answers they give."""

    def __init__(self, artifact: Artifact, settings: Settings) -> None:
        self.artifact = artifact
        self.settings = settings
        self.worker = Worker(settings.max_waiting)
        self.ready = False
        self.name = ArtifactName(id=artifact.id, digest=artifact.digest)
        self.guards = [Depends(self._check_key)] if settings.api_key else []
        self.guard_statuses = (401,) if settings.api_key else ()
        self.expected = Expected(
            bands=artifact.spec.bands,
            patch_size=artifact.spec.patch_size,
            max_patches=settings.max_patches,
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_decoded_bytes,
        )

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            await warming
            self.worker.close()

    async def _warm_up(self) -> None:
        spec = self.artifact.spec
        nothing = np.full(
            (1, len(spec.bands), spec.patch_size, spec.patch_size), np.nan, np.float32
        )
        try:
            await self.worker.run(lambda: self.artifact.embed(nothing))
        except Exception:
            log.exception("the model cannot be warmed up, so the service does not become ready")
            raise
        self.ready = True

    async def _check_key(self, request: Request) -> None:
        check_key(request.headers.get("authorization"), self.settings)

    async def answer(
        self,
        request: Request,
        offers: Sequence[str],
        work: Callable[[str, bytes, str], Response],
    ) -> Response:
        """Check the headers, take a place, read the body, and let the worker make the answer."""
        wanted = answer_type(request.headers.get("accept"), offers)
        media_type = media_type_of(request)
        async with self.worker.place():
            body = await read_body(request, self.settings)
            return await self.worker.run(lambda: work(media_type, body, wanted))

    def embed(self, query: PixelQuery, media_type: str, body: bytes, wanted: str) -> Response:
        patches = decode_patches(body, media_type, _declared(query), self.expected)
        shared = self.artifact.embed(patches)
        if wanted == NPY:
            return self._npy(shared)
        return self._json(
            EmbedAnswer(
                artifact=self.name, shared=shared.tolist(), valid_fraction=_valid_fraction(patches)
            )
        )

    def classify(self, query: ClassifyQuery, media_type: str, body: bytes, wanted: str) -> Response:
        head = self.artifact.head_name(query.head)
        patches = decode_patches(body, media_type, _declared(query), self.expected)
        probabilities = self.artifact.classify(patches, head=head)
        if wanted == NPY:
            return self._npy(probabilities)
        return self._json(
            ClassifyAnswer(
                artifact=self.name,
                head=head,
                classes=list(self.artifact.spec.heads[head].classes),
                probabilities=probabilities.tolist(),
                valid_fraction=_valid_fraction(patches),
            )
        )

    def similarity(
        self, query: SimilarityQuery, media_type: str, body: bytes, wanted: str
    ) -> Response:
        image = decode_image(body, media_type, _declared(query), self.expected)
        place = (query.row, query.col)
        valid: npt.NDArray[np.bool_] = np.asarray(np.isfinite(image).all(axis=0))
        self._check_similarity(valid, place, query.stride)
        found = similarity_map(self.artifact, image, place, stride=query.stride)
        if wanted == JSON:
            scores = found.scores.astype(object)
            scores[~valid[np.ix_(found.row_centres, found.col_centres)]] = None
            return self._json(
                SimilarityAnswer(
                    artifact=self.name,
                    query=place,
                    rows=found.row_centres.tolist(),
                    cols=found.col_centres.tolist(),
                    scores=scores.tolist(),
                )
            )
        picture = found.to_image()
        picture[~valid] = np.nan
        return self._npy(picture) if wanted == NPY else self._bytes(map_png(picture, place), PNG)

    def _check_similarity(
        self, valid: npt.NDArray[np.bool_], place: tuple[int, int], stride: int
    ) -> None:
        height, width = valid.shape
        if place[0] >= height or place[1] >= width:
            raise UnfitError(
                f"the query pixel (row {place[0]}, column {place[1]}) lies outside the image of "
                f"{height} x {width} pixels"
            )
        if not valid[place]:
            raise UnfitError("the query pixel has no data; choose another")
        size = self.artifact.spec.patch_size
        windows = math.prod(math.ceil((extent - size) / stride) + 1 for extent in valid.shape)
        if windows > self.settings.max_windows:
            raise UnfitError(
                f"a map may compare {self.settings.max_windows} patches, stride {stride} makes "
                f"{windows}; take a larger stride or a smaller image"
            )

    def summary(self) -> ModelSummary:
        spec = self.artifact.spec
        return ModelSummary(
            artifact=self.name,
            name=spec.name,
            schema_version=spec.schema_version,
            bands=list(spec.bands),
            patch_size=spec.patch_size,
            representations=spec.representations,
            heads=[
                HeadSummary(
                    name=name, classes=list(head.classes), representation=head.representation
                )
                for name, head in spec.heads.items()
            ],
            provenance=spec.provenance,
        )

    def _json(self, answer: BaseModel) -> Response:
        return self._bytes(answer.model_dump_json().encode(), JSON)

    def _npy(self, array: npt.NDArray[np.float32]) -> Response:
        file = BytesIO()
        np.lib.format.write_array(file, array, allow_pickle=False)
        return self._bytes(file.getvalue(), NPY)

    def _bytes(self, content: bytes, media_type: str) -> Response:
        return Response(content, media_type=media_type, headers={"X-Artifact": self.name.digest})


def _declared(query: PixelQuery) -> Declared:
    bands = tuple(query.bands.split(",")) if query.bands else None
    return Declared(bands, query.scale, query.offset, query.nodata)


def _valid_fraction(patches: Reflectance) -> list[float]:
    fractions: list[float] = np.isfinite(patches).all(axis=1).mean(axis=(1, 2)).tolist()
    return fractions
