"""Scenes of a cube with the class of every pixel: squares of neighbouring patches, put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mimodel.data.landcover import ClassMaps, open_class_maps
from mimodel.data.sentinel2 import band_indices, read_cube, reading_a_cube, usable_dates
from mimodel.errors import DataError
from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube

_PATCH = 64
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """One place at several dates."""

    reflectance: npt.NDArray[np.float32]
    """(date, band, H, W), NaN where there is no data."""
    label: npt.NDArray[np.int64]
    """(H, W): the class of each pixel's ground, -1 for none."""
    tile: str
    classes: tuple[str, ...]


def labelled_scenes(
    path: Path,
    labels: Path,
    *,
    bands: Sequence[str],
    size: int,
    dates: int,
    min_valid: float,
    split: str = "test",
) -> list[LabelledScene]:
    """Squares of `size` pixels that lie wholly in a split, without overlap, at up to `dates` dates
    of those that all their patches have seen in the same product.

    `labels` is a folder of categorical rasters, as in `landcover.open_class_maps`. No scene at all
    is a `DataError`.
    """
    if size < _PATCH or size % _PATCH:
        raise DataError(f"the side of a scene is a multiple of {_PATCH} pixels, and {size} is none")
    cube = read_cube(path)
    maps = open_class_maps(cube, labels)
    index = band_indices(cube, bands)
    usable = usable_dates(cube, min_valid)
    scenes = []
    for square in _squares(cube, split, size // _PATCH):
        product = cube.product[square.ravel()]
        common = usable[square.ravel()].all(0) & (product == product[0]).all(0)
        chosen = np.flatnonzero(common)
        if len(chosen) and str(cube.tile[square[0, 0]]) in maps.files:
            kept = chosen[np.linspace(0, len(chosen) - 1, min(dates, len(chosen))).astype(int)]
            scenes.append(_scene(cube, maps, square, kept, index))
    if not scenes:
        raise DataError(
            f"{path} has no square of {size} pixels of the {split} split that {labels} covers; try "
            "a smaller size"
        )
    return scenes


def _squares(cube: Cube, split: str, side: int) -> list[npt.NDArray[np.int64]]:
    """Patches (side, side) of squares in the grids of their tiles, taken row by row."""
    free = {
        (str(cube.tile[place]), int(cube.row[place]), int(cube.col[place])): int(place)
        for place in np.flatnonzero(np.asarray(cube.split) == split)
    }
    steps = range(0, side * _PATCH, _PATCH)
    squares = []
    for tile, row, col in sorted(free):
        corners = [(tile, row + down, col + right) for down in steps for right in steps]
        if all(corner in free for corner in corners):
            square = np.array([free.pop(corner) for corner in corners])
            squares.append(square.reshape(side, side))
    return squares


def _scene(
    cube: Cube,
    maps: ClassMaps,
    square: npt.NDArray[np.int64],
    dates: npt.NDArray[np.int64],
    bands: Sequence[int],
) -> LabelledScene:
    with reading_a_cube():
        stored = cube.read(square.ravel())[:, dates][:, :, bands]
    found = dict(maps.read(square.ravel()))
    ground = np.stack([found[int(place)] for place in square.ravel()])
    return LabelledScene(
        reflectance=_joined(reflectance_from_stored(stored), len(square)),
        label=_joined(ground, len(square)),
        tile=str(cube.tile[square[0, 0]]),
        classes=maps.classes,
    )


def _joined(patches: npt.NDArray[_Value], side: int) -> npt.NDArray[_Value]:
    """(patch, ..., row, col) of a square, row by row, as one (..., row, col)."""
    grid = patches.reshape(side, side, *patches.shape[1:])
    joined: npt.NDArray[_Value] = np.block([list(row) for row in grid])
    return joined
