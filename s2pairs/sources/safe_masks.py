"""The masks inside `.SAFE` products: vector and raster, Level-1C and Level-2A.

What there is depends on level and baseline. Level-2A has the scene classification (SCL, 20 m),
which knows clouds, their shadows, cirrus, snow and no-data. Level-1C has opaque clouds and cirrus
on a 60 m grid, before baseline 04.00 as polygons (`MSK_CLOUDS_B00.gml`), from it on as three
layers (`MSK_CLASSI_B00.jp2`, the third is snow and ice); it knows no shadows. Where detectors saw
the ground stands in `MSK_DETFOO_Bxx`, again polygons or raster, one file a band. Level-2A without
SCL has, from baseline 04.00 on, a cloud probability (`MSK_CLDPRB_20m.jp2`).
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.errors import SceneError
from s2pairs.masks import CLOUD, NO_DATA, Flags, from_cloud_classes, from_scene_classes
from s2pairs.scenes import Grid, PixelWindow
from s2pairs.sources.archive import read_bytes
from s2pairs.sources.jp2 import check_complete, check_grid, read_band
from s2pairs.tiles import PIXEL_SIZE_M

KINDS = ("SCL", "MSK_CLASSI", "MSK_CLOUDS", "MSK_CLDPRB", "MSK_DETFOO")
_STEP = 6  # 10 m pixels along a cell of the masks of Level-1C
_LIKELY_PERCENT = 50
_KEPT = 12  # scenes; a mask of a whole tile at 60 m is 3.3 MB


def read_masks(
    masks: Mapping[str, str], grid: Grid, windows: Sequence[PixelWindow]
) -> list[Flags] | None:
    """Flags (height, width) in each window of 10 m pixels, None if there is no mask of clouds.

    `masks` are paths by kind, one of `KINDS`. A cell of 60 or 20 m gives its flags to
    all pixels in it. `SceneError` if a file is broken or lies elsewhere.
    """
    if "SCL" in masks:
        classes = read_band(masks["SCL"], windows)
        return [from_scene_classes(each.astype(np.uint8)) for each in classes]
    if not {"MSK_CLASSI", "MSK_CLOUDS", "MSK_CLDPRB"} & set(masks):
        return None
    coarse = _coarse_flags(tuple(sorted(masks.items())), grid)
    return [_window_of(coarse, window) for window in windows]


@lru_cache(maxsize=_KEPT)
def _coarse_flags(masks: tuple[tuple[str, str], ...], grid: Grid) -> Flags:
    """Flags of a whole product in cells of 60 m; kept, since many tasks ask for parts of it."""
    paths = dict(masks)
    shape = ceil(grid.height / _STEP), ceil(grid.width / _STEP)
    flags = np.zeros(shape, dtype=np.uint8)
    if "MSK_CLASSI" in paths:
        flags |= from_cloud_classes(*_raster(paths["MSK_CLASSI"], (1, 2, 3), grid))
    elif "MSK_CLOUDS" in paths:
        burnt = _burnt(paths["MSK_CLOUDS"], grid, shape)
        nothing = np.zeros(shape, dtype=np.uint8)
        flags |= from_cloud_classes(
            burnt.get("OPAQUE", nothing), burnt.get("CIRRUS", nothing), nothing
        )
    if "MSK_CLDPRB" in paths:
        (percent,) = _raster(paths["MSK_CLDPRB"], (1,), grid)
        flags[percent >= _LIKELY_PERCENT] |= CLOUD
    if "MSK_DETFOO" in paths:
        flags[_unseen(paths["MSK_DETFOO"], grid, shape)] |= NO_DATA
    return flags


def _unseen(path: str, grid: Grid, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if path.endswith(".gml"):
        detectors = _burnt(path, grid, shape).values()
        return np.asarray(~np.any([np.zeros(shape, dtype=np.uint8), *detectors], axis=0))
    return np.asarray(_raster(path, (1,), grid)[0] == 0)


def _window_of(coarse: Flags, window: PixelWindow) -> Flags:
    rows = (window.row + np.arange(window.height)) // _STEP
    columns = (window.col + np.arange(window.width)) // _STEP
    return coarse[np.ix_(rows, columns)]


def _raster(path: str, layers: Sequence[int], grid: Grid) -> npt.NDArray[np.uint8]:
    """Layers (layer, rows, columns) of an image of the product, at 60 m."""
    import rasterio

    try:
        with rasterio.open(path) as file:
            if file.count < max(layers):
                raise SceneError(f"{path} has {file.count} layers, expected {max(layers)}")
            sizes = [(ceil(grid.height / step), ceil(grid.width / step)) for step in (1, 2, _STEP)]
            if file.shape not in sizes:
                raise SceneError(f"{path} has {file.shape} pixels, expected one of {sizes}")
            return np.asarray(file.read(layers, out_shape=(len(layers), *sizes[-1])))
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path} cannot be read: {error}") from error


def _burnt(path: str, grid: Grid, shape: tuple[int, int]) -> dict[str, npt.NDArray[np.uint8]]:
    """Cells of 60 m whose middle lies in a polygon, 1 or 0, by the type of the mask."""
    from affine import Affine
    from rasterio.features import rasterize

    cell = _STEP * PIXEL_SIZE_M
    to_ground = Affine(cell, 0, grid.left, 0, -cell, grid.top)
    return {
        kind: rasterize(polygons, out_shape=shape, transform=to_ground, dtype="uint8")
        for kind, polygons in _polygons(path, grid.epsg, read_bytes(path)).items()
    }


def _polygons(path: str, epsg: int, content: bytes) -> dict[str, list[dict[str, Any]]]:
    """GeoJSON polygons of an `eop:Mask`, by `maskType`; an empty mask has none."""
    try:
        root = ET.fromstring(content)
        found: dict[str, list[dict[str, Any]]] = {}
        for feature in _all(root, "MaskFeature"):
            kind = next(_all(feature, "maskType")).text or ""
            for polygon in _all(feature, "Polygon"):
                rings = [_ring(ring) for ring in _all(polygon, "posList")]
                found.setdefault(kind.strip(), []).append({"type": "Polygon", "coordinates": rings})
    except (ET.ParseError, ValueError, LookupError, StopIteration) as error:
        raise SceneError(f"{path} cannot be read: {error!r}") from error
    for envelope in _all(root, "Envelope"):
        if not envelope.get("srsName", "").endswith(f":{epsg}"):
            raise SceneError(f"{path} is in {envelope.get('srsName')}, its product in EPSG:{epsg}")
    return found


def _all(element: ET.Element, name: str) -> Any:
    return (each for each in element.iter() if each.tag.rpartition("}")[2] == name)


def _ring(element: ET.Element) -> list[tuple[float, float]]:
    """Corners of a ring in metres; outlines of detectors have heights besides, which go."""
    step = int(element.get("srsDimension", "2"))
    numbers = np.array((element.text or "").split(), dtype=np.float64).reshape(-1, step)
    return [(float(x), float(y)) for x, y in numbers[:, :2]]


def check_mask(kind: str, location: str, grid: Grid) -> None:
    """Raise `SceneError` if a mask was cut short or is of another size than its product."""
    name = location.rpartition("/")[2]
    if location.endswith(".gml"):
        if not read_bytes(location).rstrip().endswith(b"Mask>"):
            raise SceneError(f"{name} is cut short")
        return
    check_complete(location)
    if kind == "SCL":
        check_grid(location, grid, "uint8")
