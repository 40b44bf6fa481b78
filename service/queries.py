"""What a client says: query parameters, and pixels as JSON."""

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
FlatData = TypeAliasType("FlatData", _Row)


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
        None,
        ge=0,
        le=65535,
        examples=[2],  # with that of `col` a pixel of the document's image, whatever the model
        description="Row of the query pixel, from 0 at the top.",
    )
    col: int | None = Field(
        None,
        ge=0,
        le=65535,
        examples=[5],
        description="Column of the query pixel, from 0 at the left.",
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
        "as the limits allow; for the mean with mode=fast 16 at most.",
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
