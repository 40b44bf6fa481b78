"""The made ground: the same wherever one looks, with every class common and coherent."""

import numpy as np
import numpy.typing as npt
import pytest

from s2pairs.landscape import CLASSES, Ground, Kind, Window, blocks, ground
from s2pairs.noise import Positions, fraction, hashed, noise, noise_at, salt
from s2pairs.parcels import plots, voronoi
from s2pairs.tiles import TileId

EPSG, SEED = 32631, 0
PLACE = Window(30_003, -490_017, 1024, 1024)


@pytest.fixture(scope="module")
def land() -> Ground:
    return ground(PLACE, EPSG, SEED)


def assert_same(ours: Ground, theirs: Ground, part: tuple[slice, slice]) -> None:
    for name in Ground.__slots__:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name)[part])


def test_a_small_window_is_a_crop_of_a_large_one(land: Ground) -> None:
    # The corner of a block of computation (512 pixels) lies inside.
    small = Window(PLACE.column + 300, PLACE.row + 390, 150, 260)
    assert_same(ground(small, EPSG, SEED), land, (slice(390, 540), slice(300, 560)))


def test_many_small_windows_are_crops_too(land: Ground) -> None:
    rng = np.random.default_rng(1)
    for row, column in rng.integers(0, 1024 - 40, (16, 2)):
        small = Window(PLACE.column + int(column), PLACE.row + int(row), 40, 40)
        part = (slice(row, row + 40), slice(column, column + 40))
        assert_same(ground(small, EPSG, SEED), land, part)


def test_overlapping_tiles_show_the_same_ground() -> None:
    west, east = TileId.parse("31TCJ"), TileId.parse("31TDJ")
    of_east = Window.of_tile(east, 70, 90)
    of_west = Window.of_tile(west, 10_980, 10_980)
    # The eastern tile begins 9,990 or so pixels from the western one's left edge.
    column, row = of_east.column - of_west.column, of_east.row - of_west.row
    assert 9_900 < column < 10_980 - 90
    shared = Window(of_west.column + column - 40, of_west.row + row, 70, 130)
    seen_from_west = ground(shared, west.epsg, SEED)
    assert_same(ground(of_east, east.epsg, SEED), seen_from_west, (slice(0, 70), slice(40, 130)))


def test_zone_and_seed_make_another_ground(land: Ground) -> None:
    small = Window(PLACE.column, PLACE.row, 200, 200)
    here = land.landcover[:200, :200]
    for other in (ground(small, EPSG + 1, SEED), ground(small, EPSG, SEED + 1)):
        assert np.mean(other.landcover == here) < 0.8


def test_blocks_cover_a_window_once() -> None:
    counted = np.zeros((PLACE.height, PLACE.width), int)
    for part, place in blocks(PLACE, 512):
        counted[place] += 1
        assert counted[place].shape == (part.height, part.width)
        rows, columns = place
        assert (part.row, part.column) == (PLACE.row + rows.start, PLACE.column + columns.start)
    assert (counted == 1).all()


def majority(landcover: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The most frequent class of each 64 by 64 patch."""
    high, wide = (side // 64 for side in landcover.shape)
    parts = landcover[: high * 64, : wide * 64].reshape(high, 64, wide, 64).swapaxes(1, 2)
    counts = np.stack([(parts == index).sum(axis=(2, 3)) for index in range(len(CLASSES))])
    return np.asarray(counts.argmax(axis=0))


def test_classes_are_patchy_and_coherent(land: Ground) -> None:
    patches = majority(land.landcover)
    shares = np.bincount(patches.ravel(), minlength=len(CLASSES)) / patches.size
    assert (shares > 0).sum() == 7  # all but roads, which are thin
    assert shares.max() < 0.5
    # Neighbouring patches agree far more often than patches drawn at random, and yet often differ.
    agree = np.mean(patches[:, 1:] == patches[:, :-1])
    assert np.sum(shares**2) + 0.2 < agree < 0.9
    same = np.mean(land.landcover[:, 1:] == land.landcover[:, :-1])
    assert same > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_every_class_is_common_over_twenty_kilometres(seed: int) -> None:
    window = Window.of_tile(TileId.parse("31TCJ"), 2000, 2000)
    patches = majority(ground(window, EPSG, seed).landcover)
    shares = np.bincount(patches.ravel(), minlength=len(CLASSES)) / patches.size
    for name, share in zip(CLASSES, shares, strict=True):
        assert share >= 0.04 or name == "road", (name, share)


def test_a_parcel_has_one_class_and_the_size_of_a_field(land: Ground) -> None:
    ids, first, inverse, counts = np.unique(
        land.parcel, return_index=True, return_inverse=True, return_counts=True
    )
    fields = ids != 0
    kind_of_first = land.kind.ravel()[first][inverse.reshape(land.kind.shape)]
    inside = land.parcel != 0
    assert inside.mean() > 0.3
    assert (land.kind == kind_of_first)[inside].all()
    hectares = counts[fields] / 100
    assert 0.5 < np.median(hectares) < 10
    assert hectares.max() < 60
    assert not inside[np.isin(land.kind, (Kind.WATER, Kind.TILED_ROOF, Kind.ROCK))].any()


def test_textures_and_relief_belong_to_their_kinds(land: Ground) -> None:
    water = land.kind == Kind.WATER
    assert not land.slope_east[water].any()
    assert not land.soil[water].any()

    def roughness(values: npt.NDArray[np.int8], of: npt.NDArray[np.bool_]) -> float:
        both = of[:, 1:] & of[:, :-1]
        return float(np.abs(np.diff(values.astype(int), axis=1))[both].mean())

    forest, meadow = np.isin(land.kind, (Kind.BROADLEAF, Kind.CONIFER)), land.kind == Kind.MEADOW
    assert roughness(land.canopy, forest) > 1.5 * roughness(land.canopy, meadow)
    roofs, wheat = land.kind == Kind.TILED_ROOF, land.kind == Kind.WHEAT
    assert roughness(land.soil, roofs) > 2 * roughness(land.soil, wheat)


def test_noise_has_unit_deviation_and_does_not_depend_on_the_window() -> None:
    columns: Positions = np.arange(-2000.0, 2000, 5) + 0.5
    rows: Positions = np.arange(-490_000.0, -486_000, 5) + 0.5
    field = noise(columns, rows, 12, 7)
    assert field.shape == (800, 800)
    assert abs(field.mean()) < 0.03
    assert field.std() == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(noise(columns[100:140], rows[7:9], 12, 7), field[7:9, 100:140])
    x, y = np.meshgrid(columns[100:140], rows[:50])
    np.testing.assert_allclose(noise_at(x, y, 12, 7), field[:50, 100:140], atol=2e-6)


def test_noise_is_smooth_at_its_scale() -> None:
    columns, rows = np.arange(0, 400, 0.5), np.arange(0, 20, 1.0)
    field = noise(columns, rows, 40, 3)
    step = np.diff(field, axis=1)
    bend = np.diff(step, axis=1)
    assert np.abs(step).max() < 0.08
    assert np.abs(bend).max() < 0.002  # a kink at a lattice point would show here


def test_hashes_are_uniform_and_unrelated_between_neighbours() -> None:
    column, row = np.meshgrid(np.arange(-300, 300), np.arange(-300, 300))
    values = fraction(hashed(column, row, salt("test")))
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    expected = values.size / 50
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 20 < chi_square < 90  # 49 degrees of freedom
    for shifted in (values[1:], values[:, 1:]):
        original = values[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(original.ravel(), shifted.ravel())[0, 1]) < 0.01


def cells_around(origin: tuple[int, int]) -> tuple[npt.NDArray[np.float32], ...]:
    x, y = np.meshgrid(np.arange(200, dtype=np.float32), np.arange(160, dtype=np.float32))
    bend = 3 * noise(np.arange(200.0), np.arange(160.0), 40, 1)
    return x + bend, y - bend


def test_voronoi_cells_agree_with_brute_force() -> None:
    origin = (31_000, -480_000)
    x, y = cells_around(origin)
    cells = voronoi(x, y, origin, 40, 5)
    distance = np.hypot(
        x[..., None] - cells.site_x, y[..., None] - cells.site_y
    )  # to every site there is
    order = np.argsort(distance, axis=-1)
    np.testing.assert_array_equal(cells.site, order[..., 0])
    first, second = order[..., 0], order[..., 1]
    # The distance to the bisector of the two nearest sites, by projection.
    ax, ay, bx, by = (t[i] for i in (first, second) for t in (cells.site_x, cells.site_y))
    along = np.stack([bx - ax, by - ay]) / np.hypot(bx - ax, by - ay)
    to_middle = np.stack([(ax + bx) / 2 - x, (ay + by) / 2 - y])
    np.testing.assert_allclose(cells.border, (along * to_middle).sum(axis=0), atol=0.02)


def test_plots_are_rectangles_that_tile_their_cell() -> None:
    origin = (31_000, -480_000)
    x, y = cells_around(origin)
    cells = voronoi(x, y, origin, 70, 5)
    field = plots(cells, (8, 12), (16, 24), 9)
    assert (field.edge >= -1e-3).all()
    assert field.edge.max() < 12 * 1.6 / 2
    for key in np.unique(field.key)[:40]:
        inside = field.key == key
        assert np.ptp(field.centre_x[inside]) < 0.02  # one centre a plot
        reach = np.hypot(x[inside] - field.centre_x[inside], y[inside] - field.centre_y[inside])
        assert reach.max() <= np.hypot(12 * 1.6, 24 * 1.6) / 2 + 0.01


def test_the_window_of_a_tile_begins_at_its_corner() -> None:
    tile = TileId.parse("33LXH")  # southern hemisphere
    window = Window.of_tile(tile, 6, 12)
    left, top = tile.upper_left()
    assert window.columns[0] * 10 == left + 5
    assert window.rows[0] * 10 == -top + 5
    assert (len(window.rows), len(window.columns)) == (6, 12)
