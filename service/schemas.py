"""What goes over the wire: query parameters, JSON bodies, answers, problems."""

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
        None,
        pattern=BANDS_PATTERN,
        description="Bands of the upload in their order, such as B02,B03,B04,B08. Default: the "
        "model's own, in its order. Extra bands are left out.",
    )
    scale: float | None = Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Reflectance of one digital number. Integer pixels need it.",
    )
    offset: float = Field(
        0.0, ge=-1, le=1, allow_inf_nan=False, description="Reflectance of the digital number 0."
    )
    nodata: float | None = Field(
        None,
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
        "as the service takes.",
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
        "that are nearer to these. 0.5 is ordinary, above 0.99 one in a hundred of such patches. "
        "null where the model was not calibrated (`mimodel probe` does it)."
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
