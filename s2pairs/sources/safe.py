"""Products on disk in the layout of the provider: `.SAFE` folders and zip archives of them.

Level-1C and Level-2A. Archives are read in place. Products of before December 2016, which hold
several tiles, are read tile by tile.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError, SourceError
from s2pairs.masks import Flags
from s2pairs.scenes import LeftOut, Listing, PixelWindow, Scene, Wanted
from s2pairs.sources.archive import Archive, product_name, size_of
from s2pairs.sources.jp2 import check_complete, check_grid, read_band
from s2pairs.sources.reading_cost import cost_of_image
from s2pairs.sources.safe_masks import check_mask, read_masks
from s2pairs.sources.safe_product import read_scene, tiles_inside
from s2pairs.tiles import TileId

_TILE_IN_NAME = re.compile(r"_T([0-9]{2}[A-Z]{3})_", re.ASCII)
_ARCHIVE = re.compile(r"S2[A-Z]_.*\.zip|.*\.SAFE\.zip", re.ASCII)


class SafeCatalogue:
    """The products below one folder, for the bands that a cube wants."""

    def __init__(self, folder: Path, bands: Sequence[str]) -> None:
        if not folder.is_dir() and not _ARCHIVE.fullmatch(folder.name):
            raise SourceError(f"{folder} is not a folder of .SAFE products")
        self._bands = tuple(bands)
        self._of_tile: dict[str, list[Path]] = {}
        self._unreadable: list[LeftOut] = []
        for path in _products(folder):
            self._enter(path)
        if not self._of_tile and not self._unreadable:
            raise SourceError(
                f"{folder} holds no .SAFE product; expected folders such as "
                "S2A_MSIL1C_20200717T221941_N0209_R029_T01LAC_20200717T234135.SAFE, "
                "or such archives with .zip behind the name"
            )

    def scenes(self, tile: TileId) -> Listing:
        """The usable products of a tile; a broken or incomplete one is left out with its reason."""
        scenes: list[Scene] = []
        left_out = list(self._unreadable)
        for path in self._of_tile.get(tile.name, []):
            try:
                scenes.append(self._scene(path, tile))
            except SceneError as error:
                left_out.append(LeftOut(product_name(path), f"unusable: {error}"))
        return Listing(tuple(scenes), tuple(left_out))

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Digital numbers (height, width) of a band in each window; see `read_band`."""
        return read_band(scene.assets[band], windows)

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What the product's own masks say of the pixels in each window; see `read_masks`."""
        return read_masks(scene.masks, scene.grid, windows)

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """The blocks of the band files that the windows touch, and the masks, which are small."""
        total = ReadCost(sum(size_of(location) for location in scene.masks.values()), 0)
        for name in bands:
            file = scene.assets[name]
            total += cost_of_image(
                file, name, scene.grid, windows, size=size_of(file), over_http=False
            )
        return total

    def cost_of_listing(self, tile: TileId, wanted: Wanted) -> ReadCost:
        """Next to nothing: metadata, and the ends of files."""
        return ReadCost(0, 0)

    def _enter(self, path: Path) -> None:
        match = _TILE_IN_NAME.search(path.name)
        try:
            tiles = [match[1]] if match else tiles_inside(Archive.open(path))
        except SceneError as error:
            self._unreadable.append(LeftOut(product_name(path), f"unusable: {error}"))
            return
        for tile in tiles:
            self._of_tile.setdefault(tile, []).append(path)

    def _scene(self, path: Path, tile: TileId) -> Scene:
        scene = read_scene(Archive.open(path), tile, self._bands)
        if scene.tile != tile:
            raise SceneError(f"its metadata are of tile {scene.tile}")
        for location in scene.assets.values():
            check_complete(location)
            check_grid(location, scene.grid)
        for kind, location in scene.masks.items():
            check_mask(kind, location, scene.grid)
        return scene


def _products(folder: Path) -> Iterator[Path]:
    """Every product at or below `folder`, sorted by name; no folder `.SAFE` is looked into."""
    if folder.suffix == ".SAFE" or not folder.is_dir():
        yield folder
        return
    found = []
    for root, names, files in os.walk(folder):
        found += [Path(root, name) for name in names if name.endswith(".SAFE")]
        found += [Path(root, name) for name in files if _ARCHIVE.fullmatch(name)]
        names[:] = [name for name in names if not name.endswith(".SAFE")]
    yield from sorted(found, key=lambda path: (path.name, path))
