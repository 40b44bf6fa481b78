"""Further tiles, further dates, two cubes as one: against cubes that were built so at once."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from s2pairs.build import Request, build
from s2pairs.checking import check, repair
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import CubeError, S2PairsError, SourceError
from s2pairs.growing import Grown, append_dates, append_tiles, merge
from s2pairs.patches import SPLIT_GAP_M
from s2pairs.scenes import Scene, Wanted
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, dn_of_place, l1c

A, B, NEAR = (TileId.parse(name) for name in ("31TCJ", "19KDQ", "31TDJ"))
DAYS = ("2020-01-03", "2020-03-10", "2020-06-01", "2021-02-05", "2019-02-20")
SOURCE = Places(tuple(l1c(tile.name, day, size=768) for tile in (A, B) for day in DAYS))
FIRST = Request(
    tiles=(A,),
    bands=("B04", "B08"),
    dates=3,
    regions=36,
    region_size=128,
    start=datetime(2020, 1, 1, tzinfo=UTC),
    end=datetime(2021, 1, 1, tzinfo=UTC),
)
QUIET = {"workers": 2, "progress": lambda *_: None}


def made(path: Path, request: Request = FIRST) -> Cube:
    build(request, SOURCE, path, workers=2, progress=lambda *_: None)
    return open_cube(path)


def appended(path: Path, out: Path) -> Grown:
    return append_tiles(path, [B], lambda *_: SOURCE, out, workers=2, progress=lambda *_: None)


def same_content(one: Cube, other: Cube) -> None:
    everything = np.arange(len(one))
    for name, column in vars(one.table).items():
        np.testing.assert_array_equal(getattr(other, name), column)
    np.testing.assert_array_equal(one.product, other.product)
    np.testing.assert_array_equal(one.acquired, other.acquired)
    np.testing.assert_array_equal(one.read(everything), other.read(everything))
    np.testing.assert_array_equal(one.read_masks(everything), other.read_masks(everything))
    for name, values in one.measures.items():
        np.testing.assert_array_equal(values, other.measures[name])


def test_tiles_appended_are_tiles_built_at_once(tmp_path: Path) -> None:
    at_once = made(tmp_path / "at_once.zarr", replace(FIRST, tiles=(A, B)))
    made(tmp_path / "cube.zarr")
    before = (tmp_path / "cube.zarr" / "reflectance" / "c.0.0.0.0.0").stat()
    grown = appended(tmp_path / "cube.zarr", tmp_path / "cube.zarr")
    cube = open_cube(tmp_path / "cube.zarr")
    assert (grown.patches, grown.dates, grown.left_out) == (len(at_once), 3, 0)
    same_content(cube, at_once)
    # these plans are alike to the letter, so the cubes are to the byte
    assert bytes_of(cube.path) == bytes_of(at_once.path)  # type: ignore[arg-type]
    # what was there was linked, not written again
    assert (tmp_path / "cube.zarr" / "reflectance" / "c.0.0.0.0.0").stat().st_ino == before.st_ino
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at_once.zarr", "cube.zarr"]
    assert appended(tmp_path / "cube.zarr", tmp_path / "cube.zarr").added == 0


@pytest.mark.slow
def test_dates_appended_are_the_dates_of_a_longer_period_in_order(tmp_path: Path) -> None:
    cube = made(tmp_path / "cube.zarr")
    old = cube.read(np.arange(len(cube)))
    grown = append_dates(
        cube.path,
        2,
        None,
        None,
        lambda *_: SOURCE,
        tmp_path / "more.zarr",
        **QUIET,  # type: ignore[arg-type]
    )
    more = open_cube(tmp_path / "more.zarr")
    assert (grown.patches, grown.dates, grown.added) == (len(cube), 5, 2)
    assert more.acquired[0].astype("datetime64[D]").astype(str).tolist() == sorted(DAYS)
    np.testing.assert_array_equal(more.read(np.arange(len(cube)))[:, 1:4], old)
    whole = replace(FIRST, dates=5, start=None, end=None)
    same_content(more, made(tmp_path / "at_once.zarr", whole))
    # and what was appended can be mended
    before = bytes_of(tmp_path / "more.zarr")
    (tmp_path / "more.zarr" / "mask" / "c.0.0.0.0").unlink()
    assert repair(more.path, lambda *_: SOURCE, workers=1, progress=lambda *_: None).rebuilt == 1
    assert bytes_of(tmp_path / "more.zarr") == before
    again = append_dates(
        more.path,
        2,
        None,
        None,
        lambda *_: SOURCE,
        more.path,
        **QUIET,  # type: ignore[arg-type]
    )
    assert again.added == 0


def test_merged_cubes_have_the_pixels_of_both(tmp_path: Path) -> None:
    one = made(tmp_path / "a.zarr")
    other = made(tmp_path / "b.zarr", replace(FIRST, tiles=(B,)))
    out = tmp_path / "c.zarr"
    grown = merge([one.path, other.path], out, workers=2, progress=lambda *_: None)
    assert (grown.added, grown.left_out) == (len(other), 0)
    cube = open_cube(out)
    same_content(cube, made(tmp_path / "at_once.zarr", replace(FIRST, tiles=(A, B))))
    assert cube.attributes["products"] == [
        *one.attributes["products"],
        *other.attributes["products"],
    ]
    assert not [damage for damage, _, _ in check(out) if damage]
    # again it goes on from what stands; the same cube twice is that cube
    assert merge([one.path, other.path], out, workers=2, progress=lambda *_: None) == grown
    twice = merge([one.path, one.path], tmp_path / "t.zarr", workers=2, progress=lambda *_: None)
    assert (twice.patches, twice.added, twice.left_out) == (len(one), 0, len(one))


@pytest.mark.slow
def test_cubes_of_two_kinds_are_not_merged(tmp_path: Path) -> None:
    small = replace(FIRST, regions=4)
    one = made(tmp_path / "a.zarr", small)
    for change, said in (({"bands": ("B08",)}, "bands differ"), ({"dates": 2}, "number of dates")):
        other = made(tmp_path / f"{said}.zarr", replace(small, tiles=(B,), **change))  # type: ignore[arg-type]
        with pytest.raises(CubeError, match=said):
            merge([one.path, other.path], tmp_path / "c.zarr", workers=1, progress=lambda *_: None)
    merged = merge([one.path, one.path], tmp_path / "m.zarr", workers=1, progress=lambda *_: None)
    with pytest.raises(CubeError, match="was merged from cubes"):
        appended(Path(merged.path), tmp_path / "no.zarr")


def test_ground_and_splits_hold_across_cubes() -> None:
    """Neighbouring tiles overlap by 9.8 km; by brute force over all pairs of patches."""
    from s2pairs.patches import choose_patches, join_tables, without_conflicts
    from s2pairs.scenes import Grid

    first, second = (
        choose_patches(
            {tile: Grid(tile.epsg, *tile.upper_left(), 1_024, 10_980)},
            regions=10,
            region_size=1024,
            seed=seed,
        )
        for tile, seed in ((A, 0), (NEAR, 1))
    )
    kept = second.take(without_conflicts(second, first))
    assert 0 < len(kept) < len(second)
    both = join_tables([first, kept])
    # the same zone, so distances are plain; edge to edge along the axes
    for row in range(len(first), len(both)):
        apart = np.maximum(abs(first.x - both.x[row]) - 640, abs(first.y - both.y[row]) - 640)
        assert apart.min() >= 0
        assert apart[first.split != both.split[row]].min(initial=np.inf) >= SPLIT_GAP_M
    # and nothing was left out without need: half a kilometre more would be too far
    gone = second.take(~without_conflicts(second, first))
    for row in range(len(gone)):
        apart = np.hypot(first.x - gone.x[row], first.y - gone.y[row])
        other = first.split != gone.split[row]
        assert apart.min() < 906 or apart[other].min() < SPLIT_GAP_M + 906


@pytest.mark.parametrize("renamed", [False, True])
def test_a_replacement_that_was_cut_off_goes_on(tmp_path: Path, renamed: bool) -> None:
    """Killed before or between the two renames: nothing is lost, the same command ends it."""
    path = tmp_path / "cube.zarr"
    made(path, replace(FIRST, regions=4))
    appended(path, tmp_path / ".cube.zarr.grown")
    (tmp_path / ".cube.zarr.grown.lock").unlink(missing_ok=True)
    wanted = bytes_of(tmp_path / ".cube.zarr.grown")
    if renamed:
        path.rename(tmp_path / ".cube.zarr.replaced")
    assert appended(path, path).patches == len(open_cube(path))
    assert bytes_of(path) == wanted
    assert [each.name for each in tmp_path.iterdir()] == ["cube.zarr"]


SMALL = replace(FIRST, dates=2, regions=1, region_size=64, start=None, end=None)
"""Of scenes of 128 x 128 pixels."""


def little(*days: str, tile: TileId = A) -> Places:
    return Places(tuple(l1c(tile.name, day, size=128) for day in days))


def more_dates(path: Path, source: Places, out: Path, count: int = 1) -> Grown:
    return append_dates(
        path, count, None, None, lambda *_: source, out, workers=1, progress=lambda *_: None
    )


class Failing(Places):
    """Breaks as soon as pixels of the date are read."""

    def read(self, scene, band, windows):  # type: ignore[no-untyped-def]
        raise S2PairsError("broken on purpose")


def test_a_half_built_cube_never_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    path, beside = tmp_path / "cube.zarr", tmp_path / ".cube.zarr.grown"
    days = ("2020-01-03", "2020-03-10")
    build(SMALL, little(*days), path, workers=1, progress=lambda *_: None)
    before = bytes_of(path)
    everything = (*little(*days, "2020-06-01").products, *little(*days, tile=B).products)
    with pytest.raises(S2PairsError, match="on purpose"):
        more_dates(path, Failing(everything), path)
    assert (beside / "zarr.json").exists()
    # an append that has nothing to do
    nothing = append_tiles(
        path, [A], lambda *_: Places(everything), path, workers=1, progress=lambda *_: None
    )
    assert nothing.added == 0
    assert bytes_of(path) == before
    # and another one, for which what lies there is of no use
    append_tiles(
        path, [B], lambda *_: Places(everything), path, workers=1, progress=lambda *_: None
    )
    assert open_cube(path).parameters["tiles"] == [A.name, B.name]
    assert [each.name for each in tmp_path.iterdir()] == ["cube.zarr"]


def test_a_cube_grows_several_times_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    days = ["2020-01-03", "2020-03-10", "2020-06-01", "2020-09-04", "2020-11-20"]
    build(SMALL, little(*days[:2]), path, workers=1, progress=lambda *_: None)
    for added in (1, 2):
        more_dates(path, little(*days[: 2 * added + 1]), path, count=added)
        cube = open_cube(path)
        known = days[: 2 * added + 1]
        assert cube.acquired[0].astype("datetime64[D]").astype(str).tolist() == known
        for date, day in enumerate(known):
            row, col = cube.row[0], cube.col[0]
            truth = dn_of_place(l1c(A.name, day, size=128), "B04")[row : row + 64, col : col + 64]
            np.testing.assert_array_equal(cube.read([0])[0, date, 0], truth + 1000)


def test_dates_of_the_cube_are_not_added_in_another_guise(tmp_path: Path) -> None:
    """Another baseline of a datatake, and another pass of a day; of the source the rest is left."""
    path = tmp_path / "cube.zarr"
    days = ("2020-01-03", "2020-03-10")
    build(SMALL, little(*days), path, workers=1, progress=lambda *_: None)
    again = Places(
        (
            l1c(A.name, days[0], size=128, baseline="05.00", generated_days_later=900),
            l1c(A.name, days[1], size=128, hour=12, cloud=0),
        )
    )
    with pytest.raises(SourceError, match=r"0 usable dates of the 1 needed.*2 its day is in the"):
        more_dates(path, again, tmp_path / "no.zarr")
    new = l1c(A.name, "2020-06-01", size=128)
    out = tmp_path / "more.zarr"
    more_dates(path, Places((*little(*days).products, *again.products, new)), out)
    cube = open_cube(out)
    assert cube.acquired[0].astype("datetime64[D]").astype(str).tolist() == [*days, "2020-06-01"]
    told = cube.attributes["products_left_out"]
    assert [each.partition(": ")[2] for each in told] == 2 * ["its day is in the cube"]


class ClearBy(Places):
    """The upper half of a tile is clear in odd months, the lower half in even ones and in March."""

    def masks(self, scene: Scene, windows):  # type: ignore[no-untyped-def]
        month = scene.acquired.month
        upper, lower = month % 2 == 1, month % 2 == 0 or month == 3
        return [
            np.full((w.height, w.width), 0 if (upper if w.row < 64 else lower) else 4, np.uint8)
            for w in windows
        ]


def test_dates_are_added_to_regions_where_each_lacks_them(tmp_path: Path) -> None:
    request = replace(SMALL, regions=4, choice="region")
    months = ("01", "02", "03", "04")
    first = ClearBy(little(*(f"2020-{month}-10" for month in months)).products)
    path = tmp_path / "cube.zarr"
    build(request, first, path, workers=1, progress=lambda *_: None)
    assert set((open_cube(path).row < 64).tolist()) == {True, False}
    # in the upper half two days are new, and in the lower one nothing is
    lacking = ClearBy((*first.products, *little("2020-05-10", "2020-07-10").products))
    with pytest.raises(SourceError, match=r"regions of .* further days that are clear there: 2 of"):
        more_dates(path, lacking, tmp_path / "no.zarr", count=2)
    more = ClearBy((*lacking.products, *little("2020-06-10").products))
    more_dates(path, more, tmp_path / "more.zarr")
    cube = open_cube(tmp_path / "more.zarr")
    assert (cube.clear_fraction == 1).all()
    for row, acquired in zip(cube.row, cube.acquired, strict=True):
        assert len(set(acquired.astype("datetime64[D]").tolist())) == 3, row


def test_what_is_added_is_alike(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    build(SMALL, little("2020-01-03", "2020-03-10"), path, workers=1, progress=lambda *_: None)

    class Surface(Places):
        def scenes(self, tile):  # type: ignore[no-untyped-def]
            listing = super().scenes(tile)
            return replace(listing, scenes=tuple(replace(s, level="L2A") for s in listing.scenes))

    class Elsewhere(Places):
        def scenes(self, tile):  # type: ignore[no-untyped-def]
            listing = super().scenes(tile)
            grid = replace(listing.scenes[0].grid, left=listing.scenes[0].grid.left + 640)
            return replace(listing, scenes=tuple(replace(s, grid=grid) for s in listing.scenes))

    new = little("2020-06-01").products
    with pytest.raises(CubeError, match="the level differ: L1C in the first, L2A in the second"):
        more_dates(path, Surface(new), tmp_path / "no.zarr")
    with pytest.raises(SourceError, match=r"its pixels begin at \(300640, .*take the source of"):
        more_dates(path, Elsewhere(new), tmp_path / "no.zarr")


def test_a_source_is_opened_for_what_will_be_chosen_from(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    period = {"start": datetime(2020, 1, 1, tzinfo=UTC), "end": datetime(2021, 1, 1, tzinfo=UTC)}
    source = Places(
        (
            *little("2020-01-03", "2020-03-10").products,
            *little("2020-01-03", "2020-03-10", tile=B).products,
        )
    )
    build(replace(SMALL, **period), source, path, workers=1, progress=lambda *_: None)
    asked: list[tuple[tuple[str, ...], Wanted]] = []

    def opened(bands, wanted):  # type: ignore[no-untyped-def]
        asked.append((tuple(bands), wanted))
        return source

    append_tiles(path, [B], opened, path, workers=1, progress=lambda *_: None)
    assert asked.pop() == (SMALL.bands, Wanted(2.0, *period.values()))
    (path / "mask" / "c.0.0.0.0").unlink()
    repair(path, opened, workers=1, progress=lambda *_: None)
    bands, wanted = asked.pop()
    assert (bands, wanted.max_cloud) == (SMALL.bands, 100.0)
    assert (f"{wanted.start:%m-%d}", f"{wanted.end:%m-%d}") == ("01-02", "03-11")
