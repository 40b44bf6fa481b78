"""What the service answers: results, and problems."""

import datetime

from pydantic import BaseModel, Field


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
    start: datetime.date | None = Field(
        description="Day of the first acquisition, UTC; null where no look has data."
    )
    end: datetime.date | None = Field(description="Day of the last one.")
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
