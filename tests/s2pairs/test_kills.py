"""SIGKILL at random moments, and a full disk: the same command ends with the same bytes."""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from s2pairs import filling
from s2pairs.build import Request, build
from s2pairs.checking import check
from s2pairs.cube import open_cube
from s2pairs.errors import CubeError
from s2pairs.ledger import damage, recorded_digests
from s2pairs.storage import store_at
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

TILES = ("31TCJ", "19KDQ")
SOURCE = Places(
    tuple(l1c(tile, day, size=896) for tile in TILES for day in ("2020-01-03", "2020-03-10"))
)
REQUEST = Request(tuple(map(TileId.parse, TILES)), ("B04",), dates=2, regions=49, region_size=128)


def make(path: Path, most_bytes: int = 0) -> None:
    """Build, one shard a task; `most_bytes` is the longest file that may be written."""
    filling.TASK_BYTES = 1
    if most_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    build(REQUEST, SOURCE, path, workers=2, progress=lambda *_: None)


def started(path: Path, most_bytes: int = 0) -> BaseProcess:
    """A process of its own, forked from one that has imported what a build needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.s2pairs.test_kills", "zarr", "scipy.fft", "rasterio.warp"]
    )
    process = context.Process(target=make, args=(path, most_bytes))
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A cube that was built without interruption, and the seconds that took."""
    folder = tmp_path_factory.mktemp("whole")
    started(folder / "first.zarr").join()  # the first start imports
    begun = time.monotonic()
    process = started(folder / "cube.zarr")
    process.join()
    assert process.exitcode == 0
    assert open_cube(folder / "cube.zarr").shards >= 5
    return folder / "cube.zarr", time.monotonic() - begun


def what_the_ledger_says_is_true(path: Path) -> int:
    """How many shards stand, after each was read back."""
    if not (path / "zarr.json").exists():
        return 0
    rows = recorded_digests(store_at(path), range(16))
    stand = [shard for shard, row in enumerate(rows) if any(row)]
    assert [damage(path, shard) for shard in stand] == [None] * len(stand)
    return len(stand)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30])
def test_kills_at_random_moments(whole: tuple[Path, float], tmp_path: Path, kills: int) -> None:
    wanted, seconds = bytes_of(whole[0]), whole[1]
    path = tmp_path / "cube.zarr"
    draw = np.random.default_rng(kills)
    hit = 0
    stood = set()
    while hit < kills:
        process = started(path)
        process.join(draw.uniform(0, seconds))
        if process.exitcode is None:
            process.kill()
            hit += 1
        process.join()
        stood.add(what_the_ledger_says_is_true(path))
        if process.exitcode == 0:  # it was quicker; begin again
            assert bytes_of(path) == wanted
            shutil.rmtree(path)
    make(path)
    assert bytes_of(path) == wanted
    assert not [found for found, _, _ in check(path) if found]
    assert kills < 30 or len(stood) >= 3  # and the moments did differ


def test_a_limit_on_files_stops_a_build_and_what_stands_stays(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    """As a full disk does, the kernel refuses to write on: here past the length of a shard."""
    path = tmp_path / "cube.zarr"
    process = started(path, most_bytes=100_000)
    process.join()
    assert process.exitcode == 1
    assert what_the_ledger_says_is_true(path) == 0
    assert not list(path.rglob("*.new"))
    make(path)
    assert bytes_of(path) == bytes_of(whole[0])


@pytest.fixture
def small_disk(whole: tuple[Path, float], tmp_path: Path) -> Iterator[Path]:
    """A disk for two thirds of the cube."""
    size = sum(file.stat().st_size for file in whole[0].rglob("*") if file.is_file()) * 2 // 3
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(whole: tuple[Path, float], small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "cube.zarr"
    with pytest.raises(CubeError, match=r"cannot write .*No space left.*so make room and run the"):
        make(path)
    stood = what_the_ledger_says_is_true(path)
    assert 0 < stood < open_cube(whole[0]).shards
    assert not list(path.rglob("*.new"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    make(path)
    assert bytes_of(path) == bytes_of(whole[0])
