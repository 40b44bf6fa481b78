"""Two sources of one world, compared: what is chosen, and every pixel of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import stored_from_dn
from s2pairs.build import Request, build
from s2pairs.cube import Cube, open_cube
from s2pairs.scenes import Catalogue, Listing, PixelWindow, Scene
from s2pairs.tiles import TileId
from tests.s2pairs.made_world import BANDS, DATES, SIZE, TILES

MAX_CLOUD = 2.0
WHOLE = PixelWindow(0, 0, SIZE, SIZE)
WINDOWS = [WHOLE, PixelWindow(3, 61, 64, 7)]


Numbers = list[npt.NDArray[np.uint16]]


class Remembering:
    """A catalogue that lists each tile and reads each window once: images take their time."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.masks = catalogue.masks
        self._listings: dict[TileId, Listing] = {}
        self._read: dict[
            tuple[str, str, tuple[PixelWindow, ...]], list[npt.NDArray[np.uint16]]
        ] = {}

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        key = scene.product, band, tuple(windows)
        if key not in self._read:
            self._read[key] = self._catalogue.read(scene, band, windows)
        return self._read[key]

    def scenes(self, tile: TileId) -> Listing:
        if tile not in self._listings:
            self._listings[tile] = self._catalogue.scenes(tile)
        return self._listings[tile]


def stored(catalogue: Catalogue, scene: Scene, band: str) -> list[npt.NDArray[np.uint16]]:
    """What a cube would hold, in each of `WINDOWS`."""
    read = catalogue.read(scene, band, WINDOWS)
    return [stored_from_dn(dn, scene.add_offset[band], scene.quantification) for dn in read]


def cube_of(catalogue: Catalogue, out: Path) -> Cube:
    request = Request(
        tiles=TILES,
        bands=("B08", "B02"),
        dates=DATES,
        regions=9,
        region_size=128,
        max_cloud=MAX_CLOUD,
    )
    build(request, catalogue, out, workers=2, progress=lambda *_: None)
    return open_cube(out)


def assert_same_listing(
    ours: Catalogue, theirs: Catalogue, tiles: Sequence[TileId] = TILES
) -> None:
    """The same products are usable and unusable, and look the same to the second."""
    for tile in tiles:
        one, other = ours.scenes(tile), theirs.scenes(tile)
        assert [scene.product for scene in one.scenes] == [scene.product for scene in other.scenes]
        assert [e.product for e in one.left_out] == [e.product for e in other.left_out]
        for a, b in zip(one.scenes, other.scenes, strict=True):
            assert (a.tile, a.level, a.baseline) == (b.tile, b.level, b.baseline)
            assert a.acquired == b.acquired.replace(microsecond=0)
            assert a.generated == b.generated.replace(microsecond=0)
            assert abs(a.cloud_cover - b.cloud_cover) < 1e-6
            if (
                a.cloud_cover <= MAX_CLOUD
            ):  # the others are not opened, and seem to be of a whole tile
                assert abs(a.coverage - b.coverage) < 1e-3


def assert_same_pixels(ours: Catalogue, theirs: Catalogue, tiles: Sequence[TileId] = TILES) -> None:
    """Every stored pixel of every scene that a build may choose."""
    compared = 0
    for tile in tiles:
        others = {scene.product: scene for scene in theirs.scenes(tile).scenes}
        for scene in ours.scenes(tile).scenes:
            if scene.cloud_cover > MAX_CLOUD:
                continue
            other = others[scene.product]
            assert scene.grid == other.grid
            for band in BANDS:
                pairs = zip(stored(ours, scene, band), stored(theirs, other, band), strict=True)
                for one, two in pairs:
                    np.testing.assert_array_equal(one, two)
                    compared += one.size
    assert compared > 20 * SIZE * SIZE * len(tiles)


def assert_same_cubes(one: Cube, other: Cube) -> None:
    """Places, splits, products, pixels, valid fractions; moments to the second."""
    for name in ("tile", "region", "row", "col", "epsg", "x", "y", "split"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.product, other.product)
    assert (one.acquired.astype("M8[s]") == other.acquired.astype("M8[s]")).all()
    places = np.arange(len(one))
    assert len(one) > 0
    np.testing.assert_array_equal(one.read(places), other.read(places))
    np.testing.assert_array_equal(one.valid_fraction, other.valid_fraction)
