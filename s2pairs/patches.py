"""From the grids of tiles to patches: regions, patches, and a split by ground. Reads no pixel."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from s2pairs.errors import S2PairsError
from s2pairs.scenes import Grid
from s2pairs.tiles import PIXEL_SIZE_M, TileId

PATCH_PX = 64
PATCH_M = PATCH_PX * PIXEL_SIZE_M
SPLITS = ("train", "validation", "test")
SPLIT_GAP_M = 1_000
LONGEST_PERIOD_M = 50_000
_BLOCK_PX = 1024  # side of a code block (JPEG 2000 tile) of the provider's 10 m images
_VALIDATION_ENDS, _TRAIN_ENDS = 0.15, 0.85

# Between centres, in metres on the ground. Two squares are at least g apart, edge to edge, if
# their centres are at least g plus one diagonal apart, however they are turned; a metre of a UTM
# grid is up to 0.04 % longer than one on the ground.
_DIAGONAL_M = PATCH_M * 2**0.5 / 0.9996
_GAP_BETWEEN_CENTRES_M = SPLIT_GAP_M / 0.9996 + _DIAGONAL_M

# Of WGS 84.
_SEMI_MAJOR_M, _ECCENTRICITY_SQUARED = 6_378_137.0, 6.69437999014e-3


@dataclass(frozen=True)
class PatchTable:
    """One row a patch: tile after tile, region after region, within a region row after row."""

    tile: npt.NDArray[np.str_]
    region: npt.NDArray[np.int32]
    """Number of the region on its tile's grid of regions, row after row."""
    row: npt.NDArray[np.int32]
    """Pixel row, on the tile's 10 m grid, of the patch's upper left pixel; `col` alike."""
    col: npt.NDArray[np.int32]
    epsg: npt.NDArray[np.int32]
    x: npt.NDArray[np.float64]
    """UTM easting of the patch's centre in metres; `y` is the northing."""
    y: npt.NDArray[np.float64]
    split: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.tile)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "PatchTable":
        return PatchTable(**{name: column[rows] for name, column in vars(self).items()})


def choose_patches(
    grids: Mapping[TileId, Grid],
    *,
    regions: int,
    region_size: int,
    seed: int,
    usable: Mapping[TileId, Collection[int]] | None = None,
) -> PatchTable:
    """Patches of 64 x 64 pixels in up to `regions` regions a tile, split by ground.

    Regions of `region_size` pixels lie on a regular grid and never overlap; which of them is
    drawn by `seed` and the tile's name alone, so another tile in the list changes nothing. With
    `usable`, numbers of regions by tile, the draw goes on until it has `regions` of these. Where
    tiles overlap, the ground belongs to the tile that stands first. No two patches of different
    splits are closer than `SPLIT_GAP_M`, edge to edge. A tile that has no region is an error; one
    whose ground all belongs to earlier tiles has no patch.
    """
    check_region_size(region_size)
    for tile, grid in grids.items():
        if min(grid.height, grid.width) < region_size:
            raise S2PairsError(
                f"tile {tile} has {grid.height} x {grid.width} pixels, less than a region of "
                f"{region_size}; try a smaller --region-size or leave the tile out"
            )
    tables = []
    for tile, grid in grids.items():
        drawn = draw_regions(tile, grid, region_size, seed)
        wanted = [each for each in drawn if usable is None or each.number in usable[tile]]
        tables.append(_patches_of_tile(tile, grid, in_order_of_blocks(wanted[:regions])))
    period = min(LONGEST_PERIOD_M, *(grid.width_m for grid in grids.values()))
    table = _without_ground_twice(join_tables(tables))
    return split_by_ground(table, period)


def check_region_size(pixels: int) -> None:
    """`S2PairsError` unless regions of this side can be cut into patches."""
    if pixels < PATCH_PX or pixels % PATCH_PX:
        raise S2PairsError(
            f"region size {pixels} is not a multiple of {PATCH_PX} pixels; try 512, or {PATCH_PX} "
            "for regions of one patch"
        )


class Region(NamedTuple):
    """A square of pixels: its number on the tile's grid of regions, its upper left pixel, side."""

    number: int
    row: int
    col: int
    size: int


def draw_regions(tile: TileId, grid: Grid, size: int, seed: int) -> list[Region]:
    """All regions of a tile, in the order in which `seed` and the tile's name draw them."""
    rows, columns = grid.height // size, grid.width // size
    drawn = np.random.default_rng([seed, *tile.name.encode()]).permutation(rows * columns)
    return [Region(n, n // columns * size, n % columns * size, size) for n in drawn.tolist()]


def in_order_of_blocks(regions: Sequence[Region]) -> list[Region]:
    """Regions in the order of the blocks that images are coded in.

    What is read together is then decoded together.
    """
    return sorted(regions, key=lambda each: (each.row // _BLOCK_PX, each.col // _BLOCK_PX, each))


def _patches_of_tile(tile: TileId, grid: Grid, regions: Sequence[Region]) -> PatchTable:
    corners = [
        (number, row + down, col + right)
        for number, row, col, size in regions
        for down in range(0, size, PATCH_PX)
        for right in range(0, size, PATCH_PX)
    ]
    region, row, col = np.array(corners, dtype=np.int32).reshape(-1, 3).T
    count = len(corners)
    return PatchTable(
        tile=np.full(count, tile.name),
        region=region,
        row=row,
        col=col,
        epsg=np.full(count, grid.epsg, dtype=np.int32),
        x=(grid.left + col * PIXEL_SIZE_M + PATCH_M / 2).astype(np.float64),
        y=(grid.top - row * PIXEL_SIZE_M - PATCH_M / 2).astype(np.float64),
        split=np.full(count, "", dtype=f"<U{max(map(len, SPLITS))}"),
    )


def join_tables(tables: Sequence[PatchTable]) -> PatchTable:
    columns = [vars(table) for table in tables]
    return PatchTable(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


def _without_ground_twice(table: PatchTable) -> PatchTable:
    """Drop each patch that may overlap one of an earlier tile."""
    from scipy.spatial import cKDTree

    points = _on_the_globe(table)
    names = list(dict.fromkeys(table.tile))
    keep = np.ones(len(table), dtype=bool)
    for earlier, name in enumerate(names[1:], start=1):
        before = np.isin(table.tile, names[:earlier]) & keep
        here = table.tile == name
        nearest, _ = cKDTree(points[before]).query(
            points[here], distance_upper_bound=2 * _DIAGONAL_M
        )
        keep[here] = nearest >= _DIAGONAL_M
    return table.take(keep)


def split_by_ground(table: PatchTable, period_m: float) -> PatchTable:
    """The patches that stay, with their split: stripes of easting that repeat every `period_m`.

    Counted from each 100 km line of the UTM grid, the first 15 % of a period are for validation,
    70 % for training, the last 15 % for testing. Easting is that of the ground and not of the
    tile, so tiles that overlap agree. Then patches too near another split are dropped: of
    training where they are near validation or test, of validation where they are near test.
    """
    position = table.x % 100_000 % period_m / period_m
    split = np.where(
        position < _VALIDATION_ENDS,
        "validation",
        np.where(position < _TRAIN_ENDS, "train", "test"),
    )
    points = _on_the_globe(table)
    train, validation, test = (split == name for name in SPLITS)
    keep = ~(train & _near(points, validation | test)) & ~(validation & _near(points, test))
    columns = {**vars(table), "split": split}
    return PatchTable(**columns).take(keep)


def without_conflicts(table: PatchTable, before: PatchTable) -> npt.NDArray[np.bool_]:
    """Which patches of `table` can stand beside those of `before`.

    Not one that may overlap any of these, nor one that is too near to one of another split.
    """
    points, others = _on_the_globe(table), _on_the_globe(before)
    joint = np.concatenate([points, others])
    behind = np.arange(len(joint)) >= len(points)
    keep = ~_near(joint, behind, _DIAGONAL_M)[: len(points)]
    for split in SPLITS:
        elsewhere = behind & np.concatenate([np.zeros(len(points), bool), before.split != split])
        keep &= ~((table.split == split) & _near(joint, elsewhere)[: len(points)])
    return keep


def _near(
    points: npt.NDArray[np.float64],
    others: npt.NDArray[np.bool_],
    distance: float = _GAP_BETWEEN_CENTRES_M,
) -> npt.NDArray[np.bool_]:
    """Which points (n, 3) have one of `others` nearer than `distance`, by default the gap."""
    from scipy.spatial import cKDTree

    if not others.any():
        return np.zeros(len(points), dtype=bool)
    nearest, _ = cKDTree(points[others]).query(points, distance_upper_bound=2 * distance)
    return np.asarray(nearest < distance)


def _on_the_globe(table: PatchTable) -> npt.NDArray[np.float64]:
    """Patch centres (n, 3) in metres from the centre of the Earth, so that zones compare."""
    from rasterio.warp import transform

    longitude = np.empty(len(table))
    latitude = np.empty(len(table))
    for epsg in np.unique(table.epsg):
        of_zone = table.epsg == epsg
        lon, lat = transform(f"EPSG:{epsg}", "EPSG:4326", table.x[of_zone], table.y[of_zone])
        longitude[of_zone], latitude[of_zone] = np.radians(lon), np.radians(lat)
    radius = _SEMI_MAJOR_M / np.sqrt(1 - _ECCENTRICITY_SQUARED * np.sin(latitude) ** 2)
    return np.stack(
        [
            radius * np.cos(latitude) * np.cos(longitude),
            radius * np.cos(latitude) * np.sin(longitude),
            radius * (1 - _ECCENTRICITY_SQUARED) * np.sin(latitude),
        ],
        axis=1,
    )
