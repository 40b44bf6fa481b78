"""Regions, patches and the split, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from s2pairs.errors import S2PairsError
from s2pairs.patches import (
    PATCH_M,
    SPLITS,
    PatchTable,
    choose_patches,
    draw_regions,
    in_order_of_blocks,
)
from s2pairs.scenes import Grid
from s2pairs.tiles import TileId


def grids(*names: str, size: int = 1024) -> dict[TileId, Grid]:
    tiles = [TileId.parse(name) for name in names]
    return {tile: Grid(tile.epsg, *tile.upper_left(), size, size) for tile in tiles}


def overlapping_regions(regions: list[tuple[int, int, int, int]]) -> int:
    return sum(
        abs(a[1] - b[1]) < a[3] and abs(a[2] - b[2]) < a[3]
        for number, a in enumerate(regions)
        for b in regions[:number]
    )


def test_regions_never_overlap_and_stay_inside() -> None:
    ((tile, grid),) = grids("31TCJ", size=10980).items()
    regions = draw_regions(tile, grid, 512, seed=3)[:100]
    assert len(regions) == 100
    assert overlapping_regions(regions) == 0
    assert all(row + size <= 10980 and col + size <= 10980 for _, row, col, size in regions)


def test_a_seed_draws_the_same_regions_and_another_seed_others() -> None:
    ((tile, grid),) = grids("31TCJ", size=10980).items()
    first = draw_regions(tile, grid, 512, seed=3)
    assert draw_regions(tile, grid, 512, seed=3) == first
    assert draw_regions(tile, grid, 512, seed=4) != first
    assert draw_regions(TileId.parse("31TDJ"), grid, 512, seed=3) != first
    assert {each.number for each in first} == set(range(441))
    blocks = [(each.row // 1024, each.col // 1024) for each in in_order_of_blocks(first)]
    assert blocks == sorted(blocks)


def test_another_tile_far_away_changes_nothing() -> None:
    options = {"regions": 7, "region_size": 256, "seed": 1}
    alone = choose_patches(grids("31TCJ"), **options)
    both = choose_patches(grids("31TCJ", "19KDQ"), **options)
    of_first = both.take(both.tile == "31TCJ")
    for name in vars(alone):
        np.testing.assert_array_equal(getattr(alone, name), getattr(of_first, name))


def test_patches_lie_where_they_say() -> None:
    ((tile, grid),) = grids("19KDQ").items()
    table = choose_patches({tile: grid}, regions=9, region_size=256, seed=0)
    left, top = tile.upper_left()
    np.testing.assert_array_equal(table.x, left + 10 * table.col + 320)
    np.testing.assert_array_equal(table.y, top - 10 * table.row - 320)
    assert not (table.row % 64).any()
    assert not (table.col % 64).any()
    np.testing.assert_array_equal(table.region, table.row // 256 * 4 + table.col // 256)
    places = set(zip(table.row.tolist(), table.col.tolist(), strict=True))
    assert len(places) == len(table)


def outlines(table: PatchTable) -> tuple[np.ndarray, np.ndarray]:
    """Points along each patch's outline (n, 36), in the UTM zone of the first patch."""
    side = np.linspace(-PATCH_M / 2, PATCH_M / 2, 9)
    ends = np.full(9, PATCH_M / 2)
    x = table.x[:, None] + np.concatenate([side, side, ends, -ends])
    y = table.y[:, None] + np.concatenate([ends, -ends, side, side])
    for epsg in set(table.epsg.tolist()) - {table.epsg[0]}:
        of_zone = table.epsg == epsg
        moved = transform(
            f"EPSG:{epsg}", f"EPSG:{table.epsg[0]}", *(values[of_zone].ravel() for values in (x, y))
        )
        x[of_zone], y[of_zone] = (np.reshape(values, (-1, 36)) for values in moved)
    return x, y


def edge_distance(ax: np.ndarray, ay: np.ndarray, bx: np.ndarray, by: np.ndarray) -> float:
    """Metres from outline to outline; 0 where a point of one lies inside the other's bounds."""
    inside = (
        (bx > ax.min() + 40) & (bx < ax.max() - 40) & (by > ay.min() + 40) & (by < ay.max() - 40)
    )
    return 0.0 if inside.any() else float(cdist(np.c_[ax, ay], np.c_[bx, by]).min())


def shifted(tile: str, east: int, north: int, size: int) -> dict[TileId, Grid]:
    """A made product of a tile whose corner is moved, so that small ones can overlap."""
    name = TileId.parse(tile)
    left, top = name.upper_left()
    return {name: Grid(name.epsg, left + east, top + north, size, size)}


WORLDS = {
    "one tile": grids("31TCJ"),
    "overlapping tiles of a zone": grids("31TCJ", size=1280) | shifted("31TDJ", -93_000, 250, 1280),
    "overlapping tiles of two zones": grids("31TGJ", size=1280)
    # 31TGJ begins at 699960 E, 4900020 N; the same ground in zone 32 is near 228 km E
    | shifted("32TKP", 25_000, 0, 1280),
}


def move_onto(target: Grid, epsg: int, size: int) -> Grid:
    """A grid of another zone whose corner lies in the middle of `target`."""
    middle_x, middle_y = target.left + target.width * 5, target.top - target.height * 5
    (x,), (y,) = transform(f"EPSG:{target.epsg}", f"EPSG:{epsg}", [middle_x], [middle_y])
    return Grid(epsg, round(x / 10) * 10, round(y / 10) * 10, size, size)


def world(name: str) -> dict[TileId, Grid]:
    made = dict(WORLDS[name])
    if name == "overlapping tiles of two zones":
        west, east = made
        made[east] = move_onto(made[west], east.epsg, 1280)
    return made


@pytest.mark.parametrize("name", WORLDS)
def test_splits_keep_a_kilometre_apart_and_no_ground_comes_twice(name: str) -> None:
    table = choose_patches(world(name), regions=25, region_size=256, seed=0)
    assert set(table.split) == set(SPLITS)
    x, y = outlines(table)
    centres = np.c_[x.mean(axis=1), y.mean(axis=1)]
    smallest = np.inf
    for a, b in cKDTree(centres).query_pairs(2_500):
        distance = edge_distance(x[a], y[a], x[b], y[b])
        if table.split[a] != table.split[b]:
            smallest = min(smallest, distance)
        if table.tile[a] != table.tile[b]:
            assert distance > 0
    assert 1_000 <= smallest < 1_600


def test_overlap_really_happens_in_these_worlds() -> None:
    """Otherwise the test above shows nothing."""
    for name in list(WORLDS)[1:]:
        tiles = world(name)
        apart = sum(
            len(choose_patches({tile: grid}, regions=25, region_size=256, seed=0))
            for tile, grid in tiles.items()
        )
        assert len(choose_patches(tiles, regions=25, region_size=256, seed=0)) < apart - 20


def test_a_whole_tile_splits_about_70_15_15() -> None:
    table = choose_patches(grids("31TCJ", size=10980), regions=441, region_size=512, seed=0)
    share = {name: (table.split == name).mean() for name in SPLITS}
    assert 0.6 < share["train"] < 0.75
    assert 0.1 < share["validation"] < 0.25
    assert 0.13 < share["test"] < 0.2
    # of 441 regions of 64 patches, the gaps cost less than a sixth
    assert len(table) > 441 * 64 * 5 / 6


def test_neighbours_agree_on_the_ground_of_each_split() -> None:
    """Both tiles of an overlap put one place into one split: where both keep it, and alone."""
    first, second = grids("31TCJ", size=10980), grids("31TDJ", size=10980)
    a = choose_patches(first, regions=441, region_size=512, seed=0)
    b = choose_patches(second, regions=441, region_size=512, seed=0)
    both = (b.x <= a.x.max()) & (b.x >= b.x.min())
    compared = set()
    for name in SPLITS:
        for x in np.unique(b.x[both & (b.split == name)]):
            nearest = np.abs(a.x - x).argmin()
            if abs(a.x[nearest] - x) < 320:
                compared.add(name)
                assert a.split[nearest] == name
    assert compared  # the overlap of 10 km is less than a period: not every split lies in it


def test_a_region_must_hold_whole_patches_and_fit() -> None:
    with pytest.raises(S2PairsError, match="not a multiple of 64"):
        choose_patches(grids("31TCJ"), regions=1, region_size=100, seed=0)
    small = grids("31TCJ", size=1024) | grids("19KDQ", size=256)
    with pytest.raises(S2PairsError, match="tile 19KDQ has 256 x 256 pixels, less than a region"):
        choose_patches(small, regions=1, region_size=512, seed=0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(64, 3000),
    width=st.integers(64, 3000),
    patches=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_regions_tile_the_grid_and_patches_tile_regions(
    height: int, width: int, patches: int, seed: int
) -> None:
    tile, size = TileId.parse("19KDQ"), 64 * patches
    grid = Grid(tile.epsg, *tile.upper_left(), height, width)
    regions = draw_regions(tile, grid, size, seed)
    assert len(regions) == (height // size) * (width // size)
    count = np.zeros((height, width), dtype=np.uint8)
    for _, row, col, side in regions:
        count[row : row + side, col : col + side] += 1
    whole = count[: height // size * size, : width // size * size]
    assert (whole == 1).all()
    assert count.sum() == whole.sum()


def test_only_usable_regions_are_drawn_and_in_the_same_order() -> None:
    tiles = grids("31TCJ", size=1024)
    (tile,) = tiles
    usable = {tile: {0, 3, 5, 6, 9, 12, 15}}
    options = {"region_size": 256, "seed": 4}
    table = choose_patches(tiles, regions=4, usable=usable, **options)
    drawn = [each.number for each in draw_regions(tile, tiles[tile], 256, 4)]
    expected = [number for number in drawn if number in usable[tile]][:4]
    assert set(table.region.tolist()) <= set(expected)
    more = choose_patches(tiles, regions=100, usable=usable, **options)
    assert set(more.region.tolist()) <= usable[tile]
    assert set(table.region.tolist()) <= set(more.region.tolist())
