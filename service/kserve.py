"""KServe's Open Inference Protocol, version 2, over the same engine: tensors as JSON.

`POST /v2/models/{name}/infer` is /embed and /classify in the words of that protocol: one input
`pixels`, and of each model the outputs that it can give. Its binary tensors are not read; /embed
takes .npy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from service.answers import json_answer
from service.decode import Declared, Expected, decode_tensor
from service.engine import Engine, Model
from service.errors import AbsentError, NotReadyError, UnfitError, UnsupportedMediaError
from service.formats import JSON
from service.kserve_schemas import (
    InferAnswer,
    InferBody,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorAnswer,
    TensorMetadata,
)
from service.openapi import UPLOAD_STATUSES, operation
from service.patches import Seen, seen_patches
from service.queries import PixelQuery
from service.requests import answer_type, media_type_of

Rows = npt.NDArray[np.float32]

_DIGITS = 12
_VALID, _STRANGE, _PROBABILITIES = "valid_fraction", "out_of_distribution", "probabilities_"


def kserve_routes(engine: Engine) -> APIRouter:
    """The routes under /v2; health is open to all, as it is elsewhere."""
    routes = APIRouter(tags=["kserve"])
    guarded = APIRouter(dependencies=engine.guards)

    @guarded.get("/v2", **operation(*engine.guard_statuses))
    async def server() -> ServerMetadata:
        """What serves, and which extensions of the protocol it has: none."""
        return ServerMetadata(name="crossmi", version=version("crossmi"), extensions=[])

    @routes.get("/v2/health/live")
    async def live() -> ServerLive:
        """Whether the process answers."""
        return ServerLive(live=True)

    @routes.get("/v2/health/ready", **operation(503))
    async def ready() -> ServerReady:
        """Whether the model is loaded and warmed up."""
        _check_ready(engine)
        return ServerReady(ready=True)

    @guarded.get("/v2/models/{name}", **operation(*engine.guard_statuses, 404))
    async def model(name: str) -> ModelMetadata:
        """The tensors that a model takes and gives."""
        return _metadata(_model_of(engine, name))

    @guarded.get("/v2/models/{name}/ready", **operation(*engine.guard_statuses, 404, 503))
    async def model_ready(name: str) -> ModelReady:
        """Whether a model can be asked."""
        _model_of(engine, name)
        _check_ready(engine)
        return ModelReady(name=name, ready=True)

    @guarded.post(
        "/v2/models/{name}/infer",
        **operation(
            *engine.guard_statuses, 404, *UPLOAD_STATUSES, answer=InferAnswer, upload="tensor"
        ),
    )
    async def infer(name: str, request: Request) -> Response:
        """Representations, class probabilities and what is said of each patch, as tensors."""
        answer_type(request.headers.get("accept"), [JSON])
        model = _model_of(engine, name)
        # Triton's own client says no type.
        if media_type_of(request, default=JSON) != JSON:
            raise UnsupportedMediaError(f"send {JSON} as Content-Type")
        async with engine.upload(request, JSON) as upload:
            came = await engine.decode(_read, upload, PixelQuery(), model)
            wanted = _wanted(came.request, _outputs(model))
            vectors = {
                representation: await engine.embed(model, came.seen.patches, representation)
                for representation in _representations(model, wanted)
            }
            return await engine.prepare(lambda: _answer(model, came, wanted, vectors))

    routes.include_router(guarded)
    return routes


@dataclass(frozen=True, eq=False)
class _Came:
    """A request with its patches."""

    request: InferBody
    seen: Seen

    @property
    def nbytes(self) -> int:
        return self.seen.nbytes


def _read(body: bytes, _: str, __: Declared, expected: Expected) -> _Came:
    request, patches = decode_tensor(body, expected)
    # The lists are in the patches now.
    tensor = request.inputs[0].model_copy(update={"data": []})
    return _Came(request.model_copy(update={"inputs": [tensor]}), seen_patches(patches))


def _check_ready(engine: Engine) -> None:
    if engine.draining or not engine.ready:
        raise NotReadyError("the model is being warmed up, or the service is about to end")


def _model_of(engine: Engine, name: str) -> Model:
    model = engine.model
    if name != model.artifact.spec.name:
        raise AbsentError(f"there is no such model; this service has {model.artifact.spec.name!r}")
    return model


def _metadata(model: Model) -> ModelMetadata:
    size = model.expected.patch_size
    return ModelMetadata(
        name=model.artifact.spec.name,
        versions=[model.name.digest[:_DIGITS]],
        platform="crossmi",
        inputs=[
            TensorMetadata(
                name="pixels", datatype="FP32", shape=[-1, len(model.expected.bands), size, size]
            )
        ],
        outputs=[
            TensorMetadata(name=name, datatype="FP32", shape=[-1, *shape])
            for name, shape in _outputs(model).items()
        ],
    )


def _outputs(model: Model) -> dict[str, tuple[int, ...]]:
    """Names of all that a model can give, and the shape of one patch's."""
    spec = model.artifact.spec
    outputs: dict[str, tuple[int, ...]] = {
        name: (dimension,) for name, dimension in spec.representations.items()
    }
    for name, head in spec.heads.items():
        outputs[_PROBABILITIES + name] = (len(head.classes),)
    outputs[_VALID] = ()
    if spec.novelty is not None:
        outputs[_STRANGE] = ()
    return outputs


def _wanted(request: InferBody, outputs: dict[str, tuple[int, ...]]) -> Sequence[str]:
    if request.outputs is None:
        return tuple(outputs)
    names = [output.name for output in request.outputs]
    if not names or len(set(names)) < len(names) or not set(names) <= set(outputs):
        raise UnfitError(f"ask for outputs of {', '.join(outputs)}, each of them once")
    return names


def _representations(model: Model, wanted: Sequence[str]) -> Sequence[str]:
    """The vectors that the outputs need."""
    spec = model.artifact.spec
    heads = {_PROBABILITIES + name: head.representation for name, head in spec.heads.items()}
    needed = {heads.get(name, name) for name in wanted}
    if _STRANGE in needed:
        needed.add("shared")
    return [name for name in spec.representations if name in needed]


def _answer(model: Model, came: _Came, wanted: Sequence[str], vectors: dict[str, Rows]) -> Response:
    artifact = model.artifact

    def values(name: str) -> Rows | None:
        if name in vectors:
            return vectors[name]
        if name == _VALID:
            return np.array(came.seen.valid_fraction, np.float32)
        if name == _STRANGE:
            return model.strangeness(came.seen.patches, vectors["shared"])
        head = name.removeprefix(_PROBABILITIES)
        return artifact.probabilities(vectors[artifact.spec.heads[head].representation], head)

    answer = InferAnswer(
        model_name=artifact.spec.name,
        model_version=model.name.digest[:_DIGITS],
        id=came.request.id,
        outputs=[_tensor(name, values(name)) for name in wanted],
    )
    return json_answer(answer, model.name)


def _tensor(name: str, rows: Rows | None) -> TensorAnswer:
    assert rows is not None
    return TensorAnswer(
        name=name, datatype="FP32", shape=list(rows.shape), data=rows.ravel().tolist()
    )
