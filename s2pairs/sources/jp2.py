"""Band images: are they whole, do they lie where they should, and their pixels on the 10 m grid."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from s2pairs.errors import SceneError
from s2pairs.scenes import Grid, PixelWindow
from s2pairs.sources.archive import opened
from s2pairs.tiles import PIXEL_SIZE_M

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def driver_of(path: str) -> str:
    """GDAL's driver by the end of a name, to open with it and no other: a VRT and its like, by
    whatever name, lead to further files."""
    lower = path.lower()
    if lower.endswith(".nc"):
        return "netCDF"
    return "JP2OpenJPEG" if lower.endswith((".jp2", ".j2k")) else "GTiff"


def check_complete(location: str) -> None:
    """Raise `SceneError` if a JP2 file was cut short, without decoding it.

    A JP2 file is a row of boxes (ISO/IEC 15444-1, annex I): four bytes of length, four of type;
    length 1 means that eight more bytes hold it, 0 that the box reaches the end of the file. The
    codestream in box `jp2c` ends with the marker FF D9, which is looked for where a file can be
    read from its end: not in an archive, whose directory has the sizes.
    """
    name = location.rpartition("/")[2]
    with opened(location) as (file, size):
        end = _end_of_codestream(file, size)
        whole = end is not None
        if end is not None and not location.startswith("/vsi"):
            file.seek(end - 2)
            whole = file.read(2) == b"\xff\xd9"
    if not whole:
        raise SceneError(f"{name} is cut short or no JPEG 2000 file ({size} bytes)")


def _end_of_codestream(file: Any, size: int) -> int | None:
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16])
        end = start + length if length else size
        if end > size or end < start + 8:
            return None
        if kind == b"jp2c":
            return end
        start = end
    return None


def check_grid(location: str, grid: Grid, kind: str = "uint16") -> None:
    """Raise `SceneError` unless a band file covers exactly the ground that the metadata say."""
    import rasterio

    try:
        with rasterio.open(location, driver=driver_of(location)) as file:
            check_lies_on(file, grid, kind)
    except rasterio.errors.RasterioError as error:
        name = location.rpartition("/")[2]
        raise SceneError(f"{name} cannot be opened: {error}") from error


def check_lies_on(file: "DatasetReader", grid: Grid, kind: str = "uint16") -> None:
    """Raise `SceneError` unless an open image covers exactly the ground of the grid."""
    name = file.name.rpartition("/")[2]
    step, pixels = file.transform.a, (file.height, file.width)
    corner = (file.transform.c, file.transform.f)
    epsg = file.crs.to_epsg() if file.crs else None
    kinds = file.dtypes
    if kinds != (kind,):
        raise SceneError(f"{name} holds {kinds}, expected one layer of {kind}")
    if step % PIXEL_SIZE_M or not step:
        raise SceneError(f"{name} has pixels of {step:g} m, expected 10, 20 or 60")
    factor = round(step) // PIXEL_SIZE_M
    covers = tuple(math.ceil(length / factor) for length in (grid.height, grid.width))
    if (epsg, corner, pixels) != (grid.epsg, (grid.left, grid.top), covers):
        raise SceneError(
            f"{name} lies at {epsg} {corner} with {pixels} pixels of {step:g} m; its "
            f"metadata say {grid.epsg} {(grid.left, grid.top)} with {covers}"
        )


def grid_of(file: "DatasetReader") -> Grid:
    """The 10 m grid under an open image; `SceneError` if that is not square and north up in UTM."""
    step, epsg = file.transform.a, file.crs.to_epsg() if file.crs else None
    upright = file.transform.b == file.transform.d == 0 and file.transform.e == -step
    if not upright or step <= 0 or step % PIXEL_SIZE_M or epsg is None:
        name = file.name.rpartition("/")[2]
        raise SceneError(f"{name} lies on no UTM grid of 10, 20 or 60 m: {file.crs} {step:g} m")
    factor = round(step) // PIXEL_SIZE_M
    left, top = file.transform.c, file.transform.f
    return Grid(epsg, left, top, file.height * factor, file.width * factor)


def read_band(location: str, windows: Sequence[PixelWindow]) -> list[npt.NDArray[np.uint16]]:
    """Digital numbers (height, width) of one band file in each window of 10 m pixels.

    Coarser bands are repeated, not interpolated: each 10 m pixel has the number of the coarse
    pixel that it lies in, and no-data spreads to no neighbour. The file is opened once, so that
    windows in one block of it cost one decoding. `SceneError` if the file is broken or ends
    before a window does.
    """
    import rasterio

    try:
        with rasterio.open(location, driver=driver_of(location)) as file:
            return [read_window(file, window) for window in windows]
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{location} cannot be read: {error}") from error


def read_window(file: "DatasetReader", window: PixelWindow, layer: int = 1) -> npt.NDArray[Any]:
    """A layer of an open image (height, width) in a window of 10 m pixels."""
    from rasterio.windows import Window

    factor = round(file.transform.a) // PIXEL_SIZE_M
    top, left = window.row // factor, window.col // factor
    bottom = math.ceil((window.row + window.height) / factor)
    right = math.ceil((window.col + window.width) / factor)
    if bottom > file.height or right > file.width:
        raise SceneError(f"{file.name} has no pixels at {window}")
    coarse = file.read(layer, window=Window(left, top, right - left, bottom - top))
    if factor == 1:
        return np.asarray(coarse)
    fine = coarse.repeat(factor, axis=0).repeat(factor, axis=1)
    row, col = window.row - top * factor, window.col - left * factor
    return np.ascontiguousarray(fine[row : row + window.height, col : col + window.width])
