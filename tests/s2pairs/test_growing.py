"""Further tiles, further dates, two cubes as one: against cubes that were built so at once."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from s2pairs.build import Request, build
from s2pairs.checking import check, repair
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import CubeError
from s2pairs.growing import Grown, append_dates, append_tiles, merge
from s2pairs.patches import SPLIT_GAP_M
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

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
    return append_tiles(path, [B], SOURCE, out, workers=2, progress=lambda *_: None)


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
        SOURCE,
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
    assert repair(more.path, lambda _: SOURCE, workers=1, progress=lambda *_: None).rebuilt == 1
    assert bytes_of(tmp_path / "more.zarr") == before
    again = append_dates(
        more.path,
        2,
        None,
        None,
        SOURCE,
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
