"""Requests and answers of KServe's Open Inference Protocol, version 2."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.queries import FlatData, PatchesLists, PixelQuery

Datatype = Literal["UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "FP16", "FP32", "FP64"]


class InferParameters(PixelQuery):
    """What a request of KServe's protocol says of its pixels, as the query of /embed does."""

    binary_data_output: Literal[False] = False


class InferTensorParameters(BaseModel):
    """Tensors are JSON, in a request and in its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    binary_data: Literal[False] = False


class InferTensor(BaseModel):
    """The pixels, in the only input that there is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["pixels"]
    # An extent of thousands of digits could not even be printed.
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        min_length=4, max_length=4, description="(N, band, row, column)."
    )
    datatype: Datatype
    parameters: InferTensorParameters | None = None
    data: FlatData | PatchesLists = Field(
        description="All values row by row, flat or as nested lists; null is no data."
    )


class InferOutput(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=100)]
    parameters: InferTensorParameters | None = None


class InferBody(BaseModel):
    """A request to infer, as KServe's protocol has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="Comes back with the answer."
    )
    parameters: InferParameters = InferParameters()
    inputs: list[InferTensor] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] | None = Field(
        None, max_length=100, description="Which outputs to answer. Default: all of the model's."
    )


class TensorAnswer(BaseModel):
    """An output: its values row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class InferAnswer(BaseModel):
    """The outputs that were asked for, in that order."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[TensorAnswer]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 is the number of patches."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives by KServe's protocol."""

    name: str
    versions: list[str] = Field(description="The beginning of the digest of its weights.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What serves."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Whether the process answers."""

    live: bool


class ServerReady(BaseModel):
    """Whether inference is possible."""

    ready: bool


class ModelReady(ServerReady):
    """Whether a model can be asked."""

    name: str
