"""What a STAC item says of a Sentinel-2 product; the catalogue of Sentinel Hub speaks STAC too.

Providers agree on little but the provider's own product name, so that is asked first and their
properties after it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from s2pairs.errors import SceneError, TileError
from s2pairs.scenes import Grid, utc
from s2pairs.tiles import PIXEL_SIZE_M, TILE_SIZE_PX, TileId

_PRODUCT = re.compile(
    r"(?P<satellite>S2[A-Z])_MSI(?P<level>L1C|L2A)_(?P<acquired>\d{8}T\d{6})"
    r"_N(?P<baseline>\d{4})_R(?P<orbit>\d{3})_T(?P<tile>\d\d[A-Z]{3})_(?P<generated>\d{8}T\d{6})",
    re.ASCII,
)
_DATATAKE = re.compile(r"G(?P<satellite>S2[A-Z])_(?P<acquired>\d{8}T\d{6})_(?P<orbit>\d{6})_N")
_TILE_PROPERTIES = ("grid:code", "s2:mgrs_tile", "mgrs:tile")
_LEVELS = {"S2MSI1C": "L1C", "L1C": "L1C", "LEVEL-1C": "L1C"} | {
    "S2MSI2A": "L2A",
    "L2A": "L2A",
    "LEVEL-2A": "L2A",
}

Properties = Mapping[str, Any]

MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
)
"""What reading an item raises that has another shape than the one expected."""


@dataclass(frozen=True)
class Described:
    """A product as an item describes it. Times are to the second where a name is their source."""

    product: str
    tile: TileId
    level: str
    acquired: datetime
    generated: datetime
    datatake: str
    baseline: str
    """Empty where nothing says it."""


def tile_of(item_id: str, properties: Properties) -> str | None:
    """The tile's name, unchecked; None where the item does not say it."""
    name = _product_name(item_id, properties)
    if name:
        return name["tile"]
    for key in _TILE_PROPERTIES:
        found = re.search(r"(?<!\d)(\d\d?[A-Z]{3})$", str(properties.get(key, "")), re.ASCII)
        if found:
            return found[1].zfill(5)
    return None


def grid_codes(tile: TileId) -> tuple[str, ...]:
    """What `grid:code` may be: Earth Search writes the zones 1 to 9 with one digit."""
    return tuple(dict.fromkeys(f"MGRS-{name}" for name in (tile.name, tile.name.lstrip("0"))))


def describe(item_id: str, properties: Properties) -> Described:
    """What the item says of its product; `SceneError` where it does not say enough.

    `acquired` is the start of the datatake, one moment for all tiles of a pass. The `datetime` of
    an item is another, that of its tile.
    """
    name = _product_name(item_id, properties)
    if name:
        acquired = _compact(name["acquired"])
        return Described(
            product=name[0],
            tile=_tile(name["tile"]),
            level=name["level"],
            acquired=acquired,
            generated=_compact(name["generated"]),
            datatake=f"{name['satellite']}_{name['acquired']}_R{name['orbit']}",
            baseline=f"{name['baseline'][:2]}.{name['baseline'][2:]}",
        )
    return _by_properties(item_id, properties)


def _product_name(item_id: str, properties: Properties) -> re.Match[str] | None:
    for text in (properties.get("s2:product_uri"), item_id, properties.get("title")):
        found = _PRODUCT.fullmatch(str(text or "").removesuffix(".SAFE"))
        if found:
            return found
    return None


def _by_properties(item_id: str, properties: Properties) -> Described:
    tile, level = tile_of(item_id, properties), None
    for key in ("processing:level", "s2:processing_level", "s2:product_type", "product:type"):
        level = level or _LEVELS.get(str(properties.get(key, "")).upper())
    if tile is None or level is None:
        raise SceneError(
            "the item says neither by s2:product_uri nor by grid:code and processing:level what "
            "product it is of"
        )
    take = _DATATAKE.match(str(properties.get("s2:datatake_id", "")))
    moment = _moment(properties, "datetime")
    return Described(
        product=item_id,
        tile=_tile(tile),
        level=level,
        acquired=_compact(take["acquired"]) if take else moment,
        generated=_moment(properties, "s2:generation_time", "created", "datetime"),
        datatake=take[0].removesuffix("_N")
        if take
        else f"{properties.get('platform', '')}_{moment:%Y%m%dT%H%M%S}",
        baseline=_baseline(properties),
    )


def _baseline(properties: Properties) -> str:
    for key in ("s2:processing_baseline", "processing:version"):
        if re.fullmatch(r"\d\d\.\d\d", str(properties.get(key, "")), re.ASCII):
            return str(properties[key])
    return ""


def _tile(name: str) -> TileId:
    try:
        return TileId.parse(name)
    except TileError as error:
        raise SceneError(str(error)) from error


def _compact(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise SceneError(f"{text!r} is no moment: {error}") from error


def _moment(properties: Properties, *keys: str) -> datetime:
    for key in keys:
        if properties.get(key):
            try:
                return utc(str(properties[key]))
            except ValueError as error:
                raise SceneError(f"{key} is no moment: {error}") from error
    raise SceneError(f"the item has no {' nor '.join(keys)}")


def cloud_cover(properties: Properties) -> float:
    """Percent of the product's pixels; `SceneError` where the item does not say it."""
    try:
        value = float(properties.get("eo:cloud_cover", math.nan))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise SceneError("the item has no eo:cloud_cover")
    return value


def stated_grid(properties: Properties, tile: TileId) -> Grid:
    """The grid by `proj:bbox`, which is the product's; the whole tile's where it is not said.

    `SceneError` where it lies elsewhere than the tile.
    """
    usual = usual_grid(tile)
    if "proj:bbox" not in properties:
        return usual
    code = str(properties.get("proj:code", "")).removeprefix("EPSG:")
    try:
        west, south, east, north = (float(each) for each in properties["proj:bbox"])
        sides = (north - south) / PIXEL_SIZE_M, (east - west) / PIXEL_SIZE_M
        epsg = int(properties.get("proj:epsg") or code)
        grid = Grid(epsg, west, north, round(sides[0]), round(sides[1]))
    except (TypeError, ValueError) as error:
        raise SceneError(f"proj:bbox and proj:epsg say no grid: {error!r}") from error
    placed = (grid.epsg, grid.left, grid.top) == (usual.epsg, usual.left, usual.top)
    if not placed or sides != (grid.height, grid.width) or grid.height > usual.height:
        raise SceneError(f"it lies at {grid}, the tile at {usual}")
    return grid


def usual_grid(tile: TileId) -> Grid:
    """The grid of a whole product of the tile."""
    left, top = tile.upper_left()
    return Grid(tile.epsg, float(left), float(top), TILE_SIZE_PX, TILE_SIZE_PX)


def bounds(tile: TileId) -> tuple[float, float, float, float]:
    """West, south, east, north of the tile in degrees; west > east across the 180th meridian."""
    from rasterio.warp import transform_bounds

    left, top = tile.upper_left()
    side = TILE_SIZE_PX * PIXEL_SIZE_M
    west, south, east, north = transform_bounds(
        f"EPSG:{tile.epsg}", "EPSG:4326", left, top - side, left + side, top
    )
    return west, south, east, north


def boxes(tile: TileId) -> list[tuple[float, float, float, float]]:
    """As `bounds`, in two where the tile lies across the 180th meridian."""
    west, south, east, north = bounds(tile)
    if west <= east:
        return [(west, south, east, north)]
    return [(west, south, 180.0, north), (-180.0, south, east, north)]


def coverage(properties: Properties, geometry: Mapping[str, Any] | None, grid: Grid) -> float:
    """The part of the grid with data, 0 to 1: the stated share of no-data, else the footprint.

    1 where the item says neither: it only serves to compare products of one tile.
    """
    try:
        empty = float(properties["s2:nodata_pixel_percentage"]) / 100
        if 0 <= empty <= 1:
            return 1 - empty
    except (KeyError, TypeError, ValueError):
        pass
    try:
        area = sum(_area(ring, grid.epsg) for ring in _outlines(geometry or {}))
    except MALFORMED:
        return 1.0
    share = area / (grid.height * grid.width * PIXEL_SIZE_M**2)
    return min(1.0, share) if share > 0 and math.isfinite(share) else 1.0


def _outlines(geometry: Mapping[str, Any]) -> list[Sequence[Sequence[float]]]:
    """The outer rings of a GeoJSON polygon or of several."""
    polygons = geometry["coordinates"]
    return [polygon[0] for polygon in ([polygons] if geometry["type"] == "Polygon" else polygons)]


def _area(ring: Sequence[Sequence[float]], epsg: int) -> float:
    """Square metres inside a ring of longitudes and latitudes."""
    from rasterio.warp import transform

    longitude, latitude = np.array([point[:2] for point in ring], dtype=np.float64).T
    x, y = (np.array(axis) for axis in transform("EPSG:4326", f"EPSG:{epsg}", longitude, latitude))
    x, y = x - x.mean(), y - y.mean()
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
