"""The index of a cube for others: GeoParquet of its patches, and a STAC collection of its products.

Needs crossmi[export].
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from s2pairs.bands import band
from s2pairs.cube import Cube
from s2pairs.errors import S2PairsError
from s2pairs.patches import PATCH_M, PATCH_PX
from s2pairs.tiles import PIXEL_SIZE_M

if TYPE_CHECKING:
    import geopandas
    import pystac
    from shapely.geometry.base import BaseGeometry

PATCHES_FILE, LOOKS_FILE = "patches.parquet", "looks.parquet"
_DEGREES = 4326


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    patches: int
    looks: int
    items: int


def export(cube: Cube, out: Path) -> Exported:
    """Write `patches.parquet`, `looks.parquet` and a STAC collection into the folder `out`.

    Patches are GeoParquet, one row a patch, its square as a polygon in WGS 84; looks are plain
    Parquet, one row a patch and date. The collection has one item a product, with its ground in
    the cube as geometry, and links the cube and both tables. `S2PairsError` if `out` cannot be
    written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        patches = patch_table(cube)
        patches.to_parquet(out / PATCHES_FILE, write_covering_bbox=True)
        looks = _write_looks(cube, out / LOOKS_FILE)
        items = _write_collection(cube, patches, out)
    except OSError as error:
        raise S2PairsError(f"cannot write into {out}: {error}; choose another --out") from error
    return Exported(out, len(patches), looks, items)


def patch_table(cube: Cube) -> "geopandas.GeoDataFrame":
    """One row a patch: its coordinates in the cube, its products, and its square in WGS 84."""
    import geopandas
    import pandas

    return geopandas.GeoDataFrame(
        {
            "patch": np.arange(len(cube)),
            **vars(cube.table),
            "first_acquired": _utc(cube.acquired.min(axis=1)),
            "last_acquired": _utc(cube.acquired.max(axis=1)),
            "least_valid_fraction": cube.valid_fraction.min(axis=1),
            "least_clear_fraction": cube.clear_fraction.min(axis=1),
            "largest_shift_px": _largest(cube.shift),
        },
        geometry=pandas.concat(list(_squares(cube))).sort_index().to_numpy(),
        crs=_DEGREES,
    )


def _utc(moments: npt.NDArray[np.datetime64]) -> Any:
    import pandas

    return pandas.to_datetime(moments, utc=True)


def _largest(shift: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The largest of each patch's dates; NaN where none could be told."""
    told = np.where(np.isnan(shift), -1, shift).max(axis=1)
    return np.where(told < 0, np.nan, told).astype(np.float32)


def _squares(cube: Cube) -> Iterator["geopandas.GeoSeries"]:
    """The patches' squares in WGS 84, UTM zone by zone, each with the patches' numbers as index."""
    import geopandas
    import shapely

    half = PATCH_M / 2
    for epsg in np.unique(cube.epsg).tolist():
        rows = np.flatnonzero(cube.epsg == epsg)
        x, y = cube.x[rows], cube.y[rows]
        boxes = shapely.box(x - half, y - half, x + half, y + half)
        yield geopandas.GeoSeries(boxes, index=rows, crs=int(epsg)).to_crs(_DEGREES)


def _write_looks(cube: Cube, path: Path) -> int:
    import pandas

    patch, date = np.indices((len(cube), cube.dates)).reshape(2, -1)
    measures = {name: values.ravel() for name, values in cube.measures.items()}
    looks = pandas.DataFrame(
        {
            "patch": patch,
            "date": date,
            "acquired": _utc(cube.acquired.ravel()),
            # few names, each many times
            "product": pandas.Categorical(cube.product.ravel().tolist()),
            **measures,
        }
    )
    looks.to_parquet(path, index=False)
    return len(looks)


def _write_collection(cube: Cube, patches: "geopandas.GeoDataFrame", out: Path) -> int:
    import pystac

    items = list(_items(cube, patches))
    boxes = np.array([item.bbox for item in items])
    moments = [item.datetime for item in items if item.datetime]
    collection = pystac.Collection(
        id=f"s2pairs-{cube.digest[:12]}",
        title=str(cube.attributes.get("title", "")),
        description=(
            f"{len(cube)} patches of {PATCH_PX} x {PATCH_PX} pixels of {PIXEL_SIZE_M} m at "
            f"{cube.dates} dates, {cube.attributes['level']}; {cube.attributes['notice']}"
        ),
        license="other",
        extent=pystac.Extent(
            pystac.SpatialExtent([[*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]]),
            pystac.TemporalExtent([[min(moments), max(moments)]]),
        ),
        extra_fields={"s2pairs:digest": cube.digest},
    )
    for key, asset in _assets(cube).items():
        collection.add_asset(key, asset)
    collection.add_items(items)
    collection.normalize_hrefs(str(out / "stac"))
    collection.make_all_asset_hrefs_relative()
    collection.save(pystac.CatalogType.SELF_CONTAINED)
    return len(items)


def _assets(cube: Cube) -> dict[str, "pystac.Asset"]:
    import pystac

    place = str(cube.path.resolve()) if isinstance(cube.path, Path) else cube.path
    table = "application/vnd.apache.parquet"
    bands = [
        {"name": name, "eo:center_wavelength": band(name).wavelength_nm / 1000}
        for name in cube.bands
    ]
    return {
        "cube": pystac.Asset(
            place, "cube", None, "application/vnd.zarr; version=3", ["data"], {"bands": bands}
        ),
        "patches": pystac.Asset(f"../{PATCHES_FILE}", "patches", None, table, ["metadata"]),
        "looks": pystac.Asset(f"../{LOOKS_FILE}", "patches by date", None, table, ["metadata"]),
    }


def _items(cube: Cube, patches: "geopandas.GeoDataFrame") -> Iterator["pystac.Item"]:
    """One item a product, in order of name."""
    import pystac

    names = np.array(cube.product.ravel().tolist())
    products, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    inverse = inverse.reshape(cube.product.shape)
    for number, product in enumerate(products.tolist()):
        rows = np.flatnonzero((inverse == number).any(axis=1))
        ground = _ground(patches, rows)
        moment = cube.acquired.ravel()[first[number]].astype("datetime64[ms]").astype(datetime)
        yield pystac.Item(
            id=product,
            geometry=json.loads(_geojson(ground)),
            bbox=list(ground.bounds),
            datetime=moment.replace(tzinfo=UTC),
            properties={
                "s2:mgrs_tile": str(cube.tile[rows[0]]),
                "s2:product_uri": product,
                "processing:level": {"L1C": "L1C", "L2A": "L2A"}[cube.attributes["level"]],
                "s2pairs:patches": len(rows),
            },
        )


def _ground(patches: "geopandas.GeoDataFrame", rows: npt.NDArray[np.intp]) -> "BaseGeometry":
    return patches.geometry.iloc[rows].union_all().convex_hull


def _geojson(shape: "BaseGeometry") -> str:
    import shapely

    return str(shapely.to_geojson(shape))
