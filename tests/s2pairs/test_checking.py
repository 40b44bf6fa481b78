"""Damage of every kind, and mending it: what comes out is what was built, byte for byte."""

import shutil
from pathlib import Path

import pytest

from s2pairs import filling
from s2pairs.build import Request, build
from s2pairs.checking import Repaired, check, repair
from s2pairs.cube import open_cube
from s2pairs.errors import CubeError
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

TILES = ("31TCJ", "19KDQ")
DAYS = ("2020-01-01", "2020-06-01")
SOURCE = Places(tuple(l1c(tile, day, size=896) for tile in TILES for day in DAYS))
REQUEST = Request(
    tiles=tuple(map(TileId.parse, TILES)), bands=("B04",), dates=2, regions=49, region_size=128
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "cube.zarr"
    report = build(REQUEST, SOURCE, path, workers=2, progress=lambda *_: None)
    assert report.shards >= 5
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cube.zarr"))


def mend(path: Path, source: Places = SOURCE) -> Repaired:
    return repair(path, lambda *_: source, workers=2, progress=lambda *_: None)


def damages(path: Path) -> list[str]:
    return [str(damage) for damage, _, _ in check(path) if damage]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_whole_cube_is_left_alone(path: Path, whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert mend(path) == Repaired(open_cube(path).shards, 0, (), ())
    after = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert after == before
    assert bytes_of(path) == bytes_of(whole)


def test_only_what_is_broken_is_rebuilt(path: Path, whole: Path) -> None:
    (path / "reflectance" / "c.1.0.0.0.0").unlink()
    flip(path / "mask" / "c.2.0.0.0", 300)
    (path / "dy" / "c.3.0").write_bytes(b"")
    (path / "shard_sha256" / "c.0.0.0").unlink()
    untouched = (path / "reflectance" / "c.4.0.0.0.0").stat().st_mtime_ns
    assert [each.partition(":")[0] for each in damages(path)] == [f"shard {n}" for n in range(4)]
    done = mend(path)
    assert (done.rebuilt, done.remaining) == (4, ())
    assert bytes_of(path) == bytes_of(whole)
    assert (path / "reflectance" / "c.4.0.0.0.0").stat().st_mtime_ns == untouched


@pytest.mark.parametrize(
    "lost", ["zarr.json", "x/zarr.json", "product/c/0/0", "tile/c/0", "reflectance/zarr.json"]
)
def test_coordinates_and_metadata_come_back_from_their_copy(
    path: Path, whole: Path, lost: str
) -> None:
    file = path / lost
    file.unlink() if lost == "tile/c/0" else flip(file, file.stat().st_size // 2)
    done = mend(path)
    assert done.put_back == ("coordinates and attributes, from their copy",)
    assert bytes_of(path) == bytes_of(whole)


def test_lost_folders_come_back(path: Path, whole: Path) -> None:
    for lost in ("x", "mask", "dy"):
        shutil.rmtree(path / lost)
    done = mend(path)
    assert (done.rebuilt, done.remaining) == (open_cube(path).shards, ())
    assert bytes_of(path) == bytes_of(whole)


def test_the_copy_is_checked_and_made_anew(path: Path, whole: Path) -> None:
    flip(path / "shard_sha256" / "plan.zip", 200)
    (damage,) = damages(path)
    assert "the copy of its coordinates" in damage
    assert mend(path).put_back == ("the copy of coordinates and attributes",)
    assert bytes_of(path) == bytes_of(whole)


def test_coordinates_without_a_copy_are_lost(path: Path) -> None:
    (path / "x" / "zarr.json").unlink()
    (path / "shard_sha256" / "plan.zip").unlink()
    with pytest.raises(CubeError, match="so is their copy; remove it and build it again"):
        mend(path)


def test_what_a_source_does_not_have_remains_and_the_rest_is_mended(path: Path) -> None:
    last = open_cube(path).shards - 1
    for shard in (0, last):
        (path / "reflectance" / f"c.{shard}.0.0.0.0").unlink()
    done = mend(path, Places(SOURCE.products[:2]))
    assert done.rebuilt == 1
    (remaining,) = done.remaining
    assert remaining.startswith(f"shard {last}: S2A_MSIL1C_20200")
    assert "_T19KDQ_" in remaining
    assert "is not in the source" in remaining


def test_other_pixels_under_the_same_name_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / "reflectance" / "c.0.0.0.0.0").unlink()
    before = bytes_of(path)
    monkeypatch.setattr(filling, "stored_from_dn", lambda dn, *_: dn)
    (remaining,) = mend(path).remaining
    assert "comes out otherwise than it was built" in remaining
    assert bytes_of(path) == before


def test_a_repair_holds_the_cube(path: Path) -> None:
    from s2pairs.lock import held

    with held(path), pytest.raises(CubeError, match="is being built by process"):
        mend(path)
