"""Builds begun again: after a kill, a failure, damage or a change, and by two at once."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from s2pairs.build import build, choose, plan
from s2pairs.checking import check
from s2pairs.cube import create, open_cube, open_unchanged
from s2pairs.errors import CubeError, SceneError
from s2pairs.masks import Flags
from s2pairs.scenes import PixelWindow, Scene
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.s2pairs.test_build import TILE, build_at, make, request
from tests.worlds import Places, l1c, write_places


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of products that make a cube of several shards."""
    folder = tmp_path_factory.mktemp("many")
    products = [
        l1c(tile, day, size=1024)
        for tile in ("31TCJ", "19KDQ")
        for day in ("2020-01-01", "2020-06-01")
    ]
    write_places(folder / "products", products, ("B04",))
    (folder / "tiles.txt").write_text("31TCJ\n19KDQ\n")
    return folder


MANY = request(tiles=(TILE, TileId.parse("19KDQ")), regions=64)


_ONE_SHARD_A_TASK = """
import time
from s2pairs import build, cli, filling

def slow(task, fill=build.fill):
    time.sleep(0.2)
    return fill(task)

filling.TASK_BYTES, build.fill = 1, slow
cli.main()
"""  # so that there is a middle to stop in, however late one comes to look


def command(folder: Path, name: str, *more: str) -> list[str]:
    words = "build --dates 2 --regions 64 --region-size 128 --bands B04 --workers 1"
    return [
        *(sys.executable, "-c", _ONE_SHARD_A_TASK, *words.split()),
        *("--tiles", str(folder / "tiles.txt"), "--source", f"safe:{folder / 'products'}"),
        *("--out", str(folder / name), *more),
    ]


def ledger_rows(path: Path) -> list[int]:
    return [int(file.name.split(".")[1]) for file in (path / "shard_sha256").glob("c.*")]


def kill_after(folder: Path, name: str, rows: int) -> None:
    """Start a build, wait until the ledger has so many rows, and kill it."""
    path = folder / name
    with subprocess.Popen(command(folder, name), stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while process.poll() is None and len(ledger_rows(path)) < rows:
            assert time.monotonic() < limit
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_build_resumes_to_the_same_bytes(many: Path) -> None:
    whole = build_at(many, MANY, name="whole.zarr", workers=2)
    assert whole.shards >= 6
    path = many / "killed.zarr"
    for rows in (1, 3):
        kill_after(many, "killed.zarr", rows)
        # Whatever the ledger says is true at any moment, and readers refuse the rest.
        recorded = ledger_rows(path)
        assert recorded
        assert all(map(open_unchanged(path).ledger.stands, recorded))
        with pytest.raises(CubeError, match="unfinished"):
            open_cube(path)
        assert path.with_name("killed.zarr.lock").exists()
    stood = len(ledger_rows(path))
    report = build_at(many, MANY, name="killed.zarr")
    assert stood <= report.already_built < report.shards
    assert bytes_of(path) == bytes_of(many / "whole.zarr")
    assert not path.with_name("killed.zarr.lock").exists()
    assert build_at(many, MANY, name="killed.zarr").already_built == report.shards


class FailsWhileAnotherReads(SafeCatalogue):
    """The first read fails as soon as a second one has begun, which then takes its time."""

    first = threading.Lock()
    begun = threading.Event()

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        if self.first.acquire(blocking=False):
            assert self.begun.wait(60)
            raise SceneError("broken on purpose")
        self.begun.set()
        time.sleep(1)
        return super().read(scene, band, windows)


def test_a_failed_build_unlocks_when_its_last_task_has_ended(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2pairs.filling.TASK_BYTES", 1)
    catalogue = FailsWhileAnotherReads(many / "products", MANY.bands)
    path = many / "failed.zarr"
    with pytest.raises(SceneError, match="on purpose; replace that product"):
        build(MANY, catalogue, path, workers=2, progress=lambda *_: None)
    assert ledger_rows(path)  # the task that was running has written its shard
    stopped = bytes_of(path)
    time.sleep(3)
    assert bytes_of(path) == stopped


def test_damaged_shards_are_mended_by_the_same_build(many: Path) -> None:
    build_at(many, MANY, name="mended.zarr")
    path = many / "mended.zarr"
    before = bytes_of(path)
    (path / "reflectance" / "c.1.0.0.0.0").unlink()
    flipped = bytearray(before["reflectance/c.2.0.0.0.0"])
    flipped[1000] ^= 1
    (path / "reflectance" / "c.2.0.0.0.0").write_bytes(flipped)
    (path / "valid_fraction" / "c.3.0").unlink()
    assert [d.shard for d, _, _ in check(path) if d] == [1, 2, 3]
    report = build_at(many, MANY, name="mended.zarr")
    assert report.already_built == report.shards - 3
    assert bytes_of(path) == before


def test_the_number_of_workers_changes_no_byte(many: Path) -> None:
    for workers in (1, 4):
        build_at(many, MANY, workers=workers, name=f"workers{workers}.zarr")
    assert bytes_of(many / "workers1.zarr") == bytes_of(many / "workers4.zarr")


def test_a_second_build_stops_at_once_and_ctrl_c_can_be_resumed(many: Path) -> None:
    path = many / "twice.zarr"
    with subprocess.Popen(command(many, path.name), stderr=subprocess.PIPE, text=True) as first:
        limit = time.monotonic() + 120
        while not ledger_rows(path):
            assert time.monotonic() < limit
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(CubeError, match=f"is being built by process {first.pid} on "):
                build_at(many, MANY, name=path.name)
        finally:
            first.send_signal(signal.SIGINT)
            first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "interrupted; the same command resumes it" in errors
    assert "Traceback" not in errors
    assert build_at(many, MANY, name=path.name).already_built >= 1
    assert not [damage for damage, _, _ in check(path) if damage]


def test_other_parameters_need_another_cube(many: Path) -> None:
    build_at(many, MANY, name="once.zarr")
    with pytest.raises(CubeError, match="regions was 64, now 9; seed was 0, now 1; use the same"):
        build_at(many, replace(MANY, regions=9, seed=1), name="once.zarr")
    (many / "file.zarr").write_text("mine")
    (many / "folder.zarr").mkdir()
    for name in ("file.zarr", "folder.zarr"):
        with pytest.raises(CubeError, match="is not a cube"):
            build_at(many, MANY, name=name)
    assert (many / "file.zarr").read_text() == "mine"
    assert not any((many / "folder.zarr").iterdir())


LITTLE = request(regions=1, region_size=64)


def test_what_comes_to_a_source_and_is_not_chosen_changes_nothing(tmp_path: Path) -> None:
    products = [l1c(day=day, size=128) for day in ("2020-01-01", "2020-06-01")]
    path = tmp_path / "cube.zarr"
    build(LITTLE, Places(tuple(products)), path, workers=1, progress=lambda *_: None)
    (path / "mask" / "c.0.0.0.0").unlink()  # as if it had been stopped before the end
    more = Places((*products, l1c(day="2020-03-01", size=128, cloud=60)))
    report = build(LITTLE, more, path, workers=1, progress=lambda *_: None)
    assert (report.already_built, report.left_out) == (0, 1)
    assert report.left_out_because[0].endswith(": too cloudy: 60.0 % > 2 %")
    assert open_cube(path).attributes["products_left_out"] == []
    assert not [damage for damage, _, _ in check(path) if damage]


def test_a_cube_that_was_replaced_meanwhile_is_not_called_ours(tmp_path: Path) -> None:
    """As in object storage, where no lock holds."""
    products = tuple(l1c(day=day, size=128) for day in ("2020-01-01", "2020-06-01"))
    path = tmp_path / "cube.zarr"

    class Meanwhile(Places):
        def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
            if scene.acquired.month == 6:
                other = replace(LITTLE, seed=1)
                shutil.rmtree(path)
                create(path, plan(other, choose(other, self)))
            return super().masks(scene, windows)

    with pytest.raises(CubeError, match=r"another build, of other .*, has put its cube at"):
        build(LITTLE, Meanwhile(products), path, workers=1, progress=lambda *_: None)


def test_a_source_that_changed_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "products"
    write_places(folder, [l1c(day=d, size=128) for d in ("2020-01-01", "2020-06-01")], ("B04",))
    make(tmp_path, request())
    write_places(folder, [l1c(day="2020-06-01", size=128, baseline="05.00")], ("B04",))
    with pytest.raises(CubeError, match=r"begun from other products; what differs: S2A_.*N0209"):
        make(tmp_path, request())
