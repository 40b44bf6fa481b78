"""SIGKILL at random moments, and a full disk: the same command ends with the same bytes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from s2pairs import filling
from s2pairs.build import Request, build
from s2pairs.checking import check
from s2pairs.cube import open_cube, open_unchanged
from s2pairs.errors import CubeError
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, l1c

ROOT = Path(__file__).parents[2]
TILES = ("31TCJ", "19KDQ")
SOURCE = Places(
    tuple(l1c(tile, day, size=896) for tile in TILES for day in ("2020-01-03", "2020-03-10"))
)
REQUEST = Request(tuple(map(TileId.parse, TILES)), ("B04",), dates=2, regions=49, region_size=128)


def make(path: Path) -> None:
    """Build, one shard a task."""
    usual, filling.TASK_BYTES = filling.TASK_BYTES, 1
    try:
        build(REQUEST, SOURCE, path, workers=2, progress=lambda *_: None)
    finally:
        filling.TASK_BYTES = usual


@contextmanager
def started(path: Path, before: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """A build in a process of its own that has imported all it needs and now begins."""
    program = (
        "import sys, pathlib, zarr, scipy.fft, scipy.optimize, rasterio.warp\n"
        "from tests.s2pairs.test_kills import make\n"
        f"{before}\n"
        "print('begins', flush=True)\n"
        f"make(pathlib.Path({str(path)!r}))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        yield process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A cube that was built without interruption, and the seconds that took."""
    path = tmp_path_factory.mktemp("whole") / "cube.zarr"
    with started(path) as process:
        begun = time.monotonic()
        assert process.wait() == 0
        seconds = time.monotonic() - begun
    assert open_cube(path).shards >= 5
    return path, seconds


def what_the_ledger_says_is_true(path: Path) -> int:
    """How many shards stand, after each was read back."""
    if not (path / "zarr.json").exists():
        return 0
    ledger = open_unchanged(path).ledger
    stand = [shard for shard, row in enumerate(ledger.digests(range(16))) if any(row)]
    assert [ledger.damage(shard) for shard in stand] == [None] * len(stand)
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
        with started(path) as process:
            try:
                process.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                hit += 1
        stood.add(what_the_ledger_says_is_true(path))
        if process.returncode == 0:  # it was quicker; begin again
            assert bytes_of(path) == wanted
            shutil.rmtree(path)
    make(path)
    assert bytes_of(path) == wanted
    assert not [found for found, _, _ in check(path) if found]
    assert kills < 30 or len(stood) >= 3  # and the moments did differ


@pytest.mark.slow
def test_a_limit_on_files_stops_a_build_and_what_stands_stays(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    """As on a full disk, the kernel refuses to write on: here past 100 kB of a file."""
    path = tmp_path / "cube.zarr"
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    )
    with started(path, limited) as process:
        assert process.wait() == 1
    assert what_the_ledger_says_is_true(path) == 0
    assert not list(path.rglob("*.new"))
    make(path)
    assert bytes_of(path) == bytes_of(whole[0])


@pytest.fixture
def small_disk(whole: tuple[Path, float], tmp_path: Path) -> Iterator[Path]:
    """A disk for two thirds of the cube; only root may mount one, so others skip."""
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
