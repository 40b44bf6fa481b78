"""The HTTP service over one artifact."""

from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response

from mimodel.artifact import Artifact
from service.engine import Engine, Model
from service.errors import NotReadyError, install_handlers
from service.kserve import kserve_routes
from service.metrics import MEDIA_TYPE
from service.observing import Observed
from service.openapi import GET_AND_HEAD, describe, operation
from service.page import page_routes
from service.pixels import pixel_routes
from service.schemas import HeadSummary, Health, ModelsAnswer, ModelSummary
from service.search import search_routes
from service.settings import Settings
from service.similarity import similarity_routes


def create_app(
    artifact: Artifact,
    settings: Settings,
    folder: Path | None = None,
    index: Path | None = None,
) -> FastAPI:
    """The service: `artifact` behind HTTP, within the limits of `settings`.

    With the `folder` of the artifact, it is read again when it has changed, or when
    `app.state.engine` is told to. `index` is the folder of an index to search in.
    """
    engine = Engine(artifact, settings, folder, index)
    app = FastAPI(
        title="crossmi",
        version=version("crossmi"),
        description="Shared representations, classes and similarity maps of Sentinel-2 pixels.",
        lifespan=engine.lifespan,
        # The pages of FastAPI load their scripts from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.engine = engine
    app.add_middleware(Observed, engine=engine)
    install_handlers(app)
    app.include_router(_state_routes(engine))
    app.include_router(pixel_routes(engine))
    app.include_router(similarity_routes(engine))
    app.include_router(search_routes(engine))
    app.include_router(kserve_routes(engine))
    app.include_router(page_routes(engine))
    describe(app, lambda: engine.model.expected)
    return app


def _state_routes(engine: Engine) -> APIRouter:
    routes = APIRouter(tags=["state"])

    # The route of both methods comes first and answers. It stays out of the document, where HEAD
    # would be a second operation of the same name; the other is there to be described.
    @routes.get("/healthz")
    @routes.api_route("/healthz", methods=GET_AND_HEAD, include_in_schema=False)
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @routes.get("/readyz", **operation(503))
    @routes.api_route("/readyz", methods=GET_AND_HEAD, include_in_schema=False)
    async def readyz() -> Health:
        """Whether the model is loaded and warmed up."""
        if engine.draining:
            raise NotReadyError("the service is about to end")
        if not engine.ready:
            raise NotReadyError("the model is being warmed up")
        return Health(status="ready")

    @routes.get("/models", dependencies=engine.guards, **operation(*engine.guard_statuses))
    async def models() -> ModelsAnswer:
        """What the model reads and gives."""
        return ModelsAnswer(models=[_summary(engine.model)])

    @routes.get("/metrics", response_class=Response, **operation(also=["text/plain"]))
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(engine.metrics.exposition(), media_type=MEDIA_TYPE)

    return routes


def _summary(model: Model) -> ModelSummary:
    spec = model.artifact.spec
    return ModelSummary(
        artifact=model.name,
        name=spec.name,
        schema_version=spec.schema_version,
        bands=list(spec.bands),
        patch_size=spec.patch_size,
        representations=spec.representations,
        heads=[
            HeadSummary(name=name, classes=list(head.classes), representation=head.representation)
            for name, head in spec.heads.items()
        ],
        provenance=spec.provenance,
    )
