"""Maps of classes on the ground of a cube, as rasters beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mimodel.errors import DataError
from s2pairs.cube import Cube

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Categorical rasters of the tiles of a cube, on their grids. Made by `open_class_maps`."""

    cube: Cube
    classes: tuple[str, ...]
    """Names by value; what a raster holds beyond them is no class."""
    files: Mapping[str, Path]
    """By tile; a tile may have none."""

    def read(self, places: npt.NDArray[np.int64]) -> Iterator[tuple[int, Classes]]:
        """Each of the cube's patches `places` whose tile has a raster, with its classes (64, 64)
        by value, -1 for none."""
        from rasterio.windows import Window

        for tile in np.unique(self.cube.tile[places]):
            if tile not in self.files:
                continue
            with _raster(self.files[tile]) as raster:
                for place in places[self.cube.tile[places] == tile]:
                    window = Window(self.cube.col[place], self.cube.row[place], 64, 64)
                    values = raster.read(1, window=window).astype(np.int64)
                    known = (values >= 0) & (values < len(self.classes))
                    yield int(place), np.where(known, values, -1)


def open_class_maps(cube: Cube, labels: Path) -> ClassMaps:
    """The rasters `<tile>.tif` in `labels` for the tiles of `cube`.

    The band tag `classes` is a JSON list of class names by value, the same in all. A raster that
    does not lie on its tile's grid, or no raster at all, is a `DataError`.
    """
    files: dict[str, Path] = {}
    classes: Sequence[str] = ()
    for tile, place in zip(*np.unique(cube.tile, return_index=True), strict=True):
        file = labels / f"{tile}.tif"
        if not file.is_file():
            continue
        with _raster(file) as raster:
            named = _class_names(raster)
            _check_grid(raster, cube, int(place))
        if classes and named != classes:
            raise DataError(f"{file} names other classes than its neighbours in {labels}")
        files[str(tile)], classes = file, named
    if not files:
        raise DataError(
            f"{labels} has no raster for the tiles of {cube.path}; expected files such as "
            f"{cube.tile[0]}.tif"
        )
    return ClassMaps(cube, tuple(classes), files)


@contextmanager
def _raster(file: Path) -> Iterator[Any]:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(file) as raster:
            yield raster
    except (RasterioError, ValueError) as error:
        raise DataError(f"cannot read the class map {file}: {error}") from error


def _class_names(raster: Any) -> list[str]:
    named = json.loads(raster.tags(1).get("classes", "[]"))
    if not named or not isinstance(named, list):
        raise DataError(f"{raster.name} does not name its classes in the band tag 'classes'")
    return [str(name) for name in named]


def _check_grid(raster: Any, cube: Cube, place: int) -> None:
    """Refuse a raster whose pixel (row, col) is not the ground that the cube has there."""
    grid = raster.transform
    centre = grid.c + grid.a * (cube.col[place] + 32), grid.f + grid.e * (cube.row[place] + 32)
    same = np.allclose((*centre, grid.b, grid.d), (cube.x[place], cube.y[place], 0, 0), atol=0.5)
    if not same or raster.crs is None or raster.crs.to_epsg() != cube.epsg[place]:
        raise DataError(
            f"{raster.name} does not lie on the 10 m grid of its tile (EPSG:{cube.epsg[place]}); "
            "warp it there first, nearest neighbour"
        )
