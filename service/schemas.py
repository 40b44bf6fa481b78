"""What goes over the wire: query parameters, JSON bodies, answers, problems."""

import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator
from typing_extensions import TypeAliasType

BANDS_PATTERN = r"^B(0[1-9]|1[0-2]|8A)(,B(0[1-9]|1[0-2]|8A)){0,12}$"

_Number = Annotated[float, Field(allow_inf_nan=False)]
# FailFast, because one error tells as much as a million of them.
_Row = Annotated[list[_Number | None], FailFast()]
_Band = Annotated[list[_Row], FailFast()]
_Bands = Annotated[list[_Band], FailFast()]
ImageLists = TypeAliasType("ImageLists", _Bands)
PatchesLists = TypeAliasType("PatchesLists", Annotated[list[_Bands], FailFast()])


class PixelQuery(BaseModel):
    """What a client says of its pixels: reflectance = number * scale + offset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: str | None = Field(
        default=None,
        pattern=BANDS_PATTERN,
        description="Bands of the upload in their order, such as B02,B03,B04,B08. Default: the "
        "model's own, in its order. Extra bands are left out.",
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Reflectance of one digital number. Integer pixels need it.",
    )
    offset: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        allow_inf_nan=False,
        description="Reflectance of the digital number 0.",
    )
    nodata: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="The number that stands for no data. NaN and a GeoTIFF's own value always do.",
    )


class GridQuery(PixelQuery):
    """Patches, or an image of which a grid of patches is taken."""

    stride: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Says that the body is an image, of which patches are taken in steps of so "
        "many pixels, the last ones at its border. Default: the body holds patches.",
    )


class EmbedQuery(GridQuery):
    """Pixels to embed."""

    representation: Literal["shared", "exclusive", "both"] = Field(
        "shared", description="Which vectors to answer."
    )


class ClassifyQuery(GridQuery):
    """Pixels to classify."""

    head: str | None = Field(
        None, max_length=100, description="Which head of the model to use, if it has several."
    )


_PIXEL_PATTERN = r"^\d{1,5},\d{1,5}$"
_CORNER_PATTERN = r"^-?\d{1,5}(\.\d{1,6})?,-?\d{1,5}(\.\d{1,6})?$"


class SimilarityQuery(PixelQuery):
    """An image, and what in it is asked about: a pixel, several, or those of a polygon."""

    row: int | None = Field(
        None, ge=0, le=65535, description="Row of the query pixel, from 0 at the top."
    )
    col: int | None = Field(
        None, ge=0, le=65535, description="Column of the query pixel, from 0 at the left."
    )
    pixel: list[Annotated[str, Field(pattern=_PIXEL_PATTERN)]] = Field(
        [],
        max_length=256,
        description="Instead of `row` and `col`: a query pixel as row,column, such as 40,70. "
        "Several, if it is repeated.",
    )
    polygon: list[Annotated[str, Field(pattern=_CORNER_PATTERN)]] = Field(
        [],
        max_length=256,
        description="Instead of pixels: a corner as row,column; repeated, a polygon. The query "
        "are the pixels whose centre is inside or on its line, or so many of them, spread evenly, "
        "as the limits allow.",
    )
    maps: Literal["mean", "each"] = Field(
        "mean", description="The mean of the query pixels' maps, or each of them."
    )
    mode: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: equation 5. fast: its terms of the image's features and the query's "
        "representation alone, twice.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Pixels between neighbouring patches. Default: 1 for a model whose encoder has "
        "no stride, so that every pixel is compared; 8 for others.",
    )

    @model_validator(mode="after")
    def _one_way_of_asking(self) -> "SimilarityQuery":
        if (self.row is None) != (self.col is None):
            raise ValueError("`row` and `col` stand together")
        if (self.row is not None) + bool(self.pixel) + bool(self.polygon) != 1:
            raise ValueError("name the query by `row` and `col`, by `pixel`, or by `polygon`")
        if len(self.polygon) in {1, 2}:
            raise ValueError("a polygon has at least three corners")
        return self

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """The query pixels; none where a polygon names them."""
        if self.row is not None and self.col is not None:
            return [(self.row, self.col)]
        pairs = (text.split(",") for text in self.pixel)
        return [(int(row), int(col)) for row, col in pairs]

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Of the polygon, if there is one."""
        pairs = (text.split(",") for text in self.polygon)
        return [(float(row), float(col)) for row, col in pairs]


class SearchQuery(PixelQuery):
    """What to search by, and what may be found."""

    representation: Literal["shared", "exclusive", "both"] = Field(
        "shared",
        description="By which vectors: `shared` is what stays of a place, `exclusive` what one "
        "date has alone.",
    )
    count: int = Field(10, ge=1, le=100, description="Looks to find for each query, at most.")
    patch: int | None = Field(
        None, ge=0, le=2**31 - 1, description="A patch of the index to search by, with `date`."
    )
    date: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Number of the date, from 0, of that patch."
    )
    row: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Says that the body is an image: row of the pixel to search by, with `col`.",
    )
    col: int | None = Field(None, ge=0, le=65535, description="Column of that pixel.")
    tile: str | None = Field(
        None,
        pattern=r"^[0-9]{2}[A-Z]{3}(,[0-9]{2}[A-Z]{3}){0,99}$",
        description="Tiles to search in, such as 31TCJ,31TDJ.",
    )
    start: datetime.date | None = Field(None, description="First day of acquisition, UTC.")
    end: datetime.date | None = Field(None, description="Last day of acquisition, UTC.")
    months: str | None = Field(
        None,
        pattern=r"^([1-9]|1[0-2])(,([1-9]|1[0-2])){0,11}$",
        description="Months of acquisition in any year, such as 6,7,8.",
    )
    split: Literal["train", "validation", "test"] | None = Field(
        None, description="Split of the cube to search in."
    )
    place: Literal["any", "same", "other"] = Field(
        "any", description="Whether to find the place of `patch` itself, at other dates."
    )
    per_place: int | None = Field(
        None, ge=1, le=1000, description="Looks of one place, at most. Default: any number."
    )
    min_valid: float = Field(
        0.9, ge=0, le=1, description="Part of its pixels that a look to find has data in."
    )

    @model_validator(mode="after")
    def _one_kind_of_query(self) -> "SearchQuery":
        for names in (("patch", "date"), ("row", "col")):
            if len({getattr(self, name) is None for name in names}) == 2:
                raise ValueError(f"`{names[0]}` and `{names[1]}` stand together")
        if self.patch is not None and self.row is not None:
            raise ValueError("search either by a look, or by a pixel of an image")
        if self.patch is None and self.place != "any":
            raise ValueError(f"place={self.place} needs `patch` and `date`")
        return self


class _PixelBody(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    npy: str | None = Field(None, description="A .npy file in base64, instead of lists.")

    @model_validator(mode="after")
    def _one_of_two(self) -> "_PixelBody":
        if (self.npy is None) == (getattr(self, "reflectance", None) is None):
            raise ValueError("give either `reflectance` or `npy`")
        return self


class PatchesBody(_PixelBody):
    """Patches as JSON."""

    reflectance: PatchesLists | None = Field(
        None, description="Lists of shape (N, band, row, column); null is no data."
    )


class ImageBody(_PixelBody):
    """An image as JSON."""

    reflectance: ImageLists | None = Field(
        None, description="Lists of shape (band, row, column); null is no data."
    )


FlatData = TypeAliasType("FlatData", _Row)
Datatype = Literal["UINT8", "UINT16", "UINT32", "INT8", "INT16", "INT32", "FP16", "FP32", "FP64"]


class InferParameters(PixelQuery):
    """What a request of KServe's protocol says of its pixels, as the query of /embed does."""

    binary_data_output: Literal[False] = False


class InferTensor(BaseModel):
    """The pixels, in the only input that there is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["pixels"]
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=4, max_length=4, description="(N, band, row, column)."
    )
    datatype: Datatype
    data: FlatData | PatchesLists = Field(
        description="All values row by row, flat or as nested lists; null is no data."
    )


class InferOutputParameters(BaseModel):
    """Tensors are answered as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    binary_data: Literal[False] = False


class InferOutput(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=100)]
    parameters: InferOutputParameters | None = None


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


class ArtifactName(BaseModel):
    """Which model answered."""

    id: str
    digest: str = Field(description="SHA-256 of its weights.")


class Grid(BaseModel):
    """Where in an image its patches are centred; the patches stand row by row."""

    rows: list[int] = Field(description="Image rows of the grid.")
    cols: list[int] = Field(description="Image columns of the grid.")


class _PatchAnswer(BaseModel):
    artifact: ArtifactName
    valid_fraction: list[float] = Field(
        description="Part of each patch's pixels that have data in every band of the model. A "
        "patch without any has 0, and what is said of it is said of the model's mean pixel."
    )
    out_of_distribution: list[float] | None = Field(
        description="How unlike the training data each patch is: the share of held-out patches "
        "that are less so, by representation or looks. 0.5 is ordinary, above 0.99 one in a "
        "hundred of such patches. null where the model was not calibrated (`mimodel probe` does "
        "it)."
    )
    grid: Grid | None = Field(description="null unless `stride` was given.")


class EmbedAnswer(_PatchAnswer):
    """Representations of patches, one vector a patch; null what was not asked for."""

    shared: list[list[float]] | None
    exclusive: list[list[float]] | None


class ClassifyAnswer(_PatchAnswer):
    """Class probabilities of patches."""

    head: str
    classes: list[str]
    probabilities: list[list[float]] = Field(
        description="One row a patch, in the order of classes."
    )


class SimilarityAnswer(BaseModel):
    """Likeness to the query on a grid of the image."""

    artifact: ArtifactName
    queries: list[tuple[int, int]] = Field(description="Rows and columns of the query pixels.")
    asked: int = Field(
        description="Pixels that were asked about. Of a large polygon, `queries` are a part."
    )
    rows: list[int] = Field(description="Image rows of the grid.")
    cols: list[int] = Field(description="Image columns of the grid.")
    scores: list[list[float | None]] = Field(
        description="Higher is more alike; null where the image has no data. With several query "
        "pixels, the mean."
    )
    each: list[list[list[float | None]]] | None = Field(
        description="With `maps=each`, the scores of each query pixel."
    )


class FoundLook(BaseModel):
    """A patch of the index at one of its dates."""

    patch: int = Field(description="Index of the patch in the cube.")
    date: int = Field(description="Index of the date in the cube.")
    distance: float = Field(
        description="Root mean square of the differences over the dimensions, each divided by its "
        "deviation over the training split: 0 is the same, two looks at random have about 1.4."
    )
    tile: str
    region: int
    row: int = Field(description="Pixel row of its upper left pixel on the tile's 10 m grid.")
    col: int
    epsg: int
    x: float = Field(description="UTM easting of its centre, metres.")
    y: float = Field(description="UTM northing of its centre, metres.")
    lon: float
    lat: float
    split: str
    acquired: str = Field(description="Sensing start, UTC.")
    product: str
    valid_fraction: float
    thumbnail: str = Field(description="Path of its picture, from the service's root.")


class Searched(BaseModel):
    """What was found for one query, nearest first."""

    valid_fraction: float = Field(description="Part of the query's pixels that have data.")
    nearest: list[FoundLook]


class SearchAnswer(BaseModel):
    """What was found for each query."""

    artifact: ArtifactName
    cube: str = Field(description="SHA-256 of the cube that was indexed.")
    representation: str
    queries: list[Searched]


class SampleSummary(BaseModel):
    """How to read `index/sample.npy`: reflectance = number * scale + offset, but for nodata."""

    bands: list[str]
    scale: float
    offset: float
    nodata: int
    patch: int = Field(description="The patch of its upper left corner.")
    date: int


class IndexSummary(BaseModel):
    """What can be searched."""

    cube: str = Field(description="SHA-256 of the cube that was indexed.")
    level: str
    notice: str
    patches: int
    dates: int = Field(description="Dates of each patch.")
    tiles: dict[str, int] = Field(description="Patches of each tile.")
    splits: dict[str, int] = Field(description="Patches of each split.")
    start: datetime.date = Field(description="Day of the first acquisition, UTC.")
    end: datetime.date = Field(description="Day of the last one.")
    representations: dict[str, int]
    sample: SampleSummary | None


class HeadSummary(BaseModel):
    """A classifier of a model."""

    name: str
    classes: list[str]
    representation: str


class ModelSummary(BaseModel):
    """What a model reads and gives."""

    artifact: ArtifactName
    name: str
    schema_version: int
    bands: list[str]
    patch_size: int
    representations: dict[str, int]
    heads: list[HeadSummary]
    provenance: dict[str, str]


class ModelsAnswer(BaseModel):
    """The models that are served: one."""

    models: list[ModelSummary]


class Health(BaseModel):
    """A state in one word."""

    status: str


class FieldProblem(BaseModel):
    """One parameter that is wrong."""

    location: str
    message: str


class Problem(BaseModel):
    """An error as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
