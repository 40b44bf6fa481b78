"""Building and checking a cube, against the least work that could do."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rasterio

from benchmarks.products import BANDS, Products, repeated_cube
from s2pairs.build import build
from s2pairs.checking import check
from s2pairs.cube import Cube
from s2pairs.scenes import PixelWindow
from s2pairs.sources.jp2 import read_window

WORKERS = 2
READERS = 4  # as `check` has them
SHARDS = 160


@pytest.mark.benchmark(group="build a cube of three dates from JPEG 2000")
class TestBuild:
    """At 1536 pixels a side, what a build does once weighs more than in a tile of full size."""

    def test_decoding_alone(self, benchmark: Any, products: Products) -> None:
        """The baseline: the windows that the cube needs, each band opened once, on as many threads.

        Windows come in the order of the blocks, so a block is decoded once.
        """
        windows = products.windows

        def decode(path: str, some: list[PixelWindow]) -> int:
            with rasterio.open(path) as image:
                return sum(read_window(image, window).size for window in some)

        def every() -> int:
            jobs = [(scene.assets[band], some) for scene, some in windows for band in BANDS]
            with ThreadPoolExecutor(WORKERS) as pool:
                return sum(pool.map(decode, *zip(*jobs, strict=True)))

        assert benchmark.pedantic(every, rounds=3) >= len(BANDS) * 64 * 64

    def test_build(self, benchmark: Any, products: Products, tmp_path: Path) -> None:
        names = itertools.count()

        def make() -> int:
            out = tmp_path / f"{next(names)}.zarr"
            request, source = products.request, products.catalogue
            return build(request, source, out, workers=WORKERS, progress=lambda *_: None).shards

        assert benchmark.pedantic(make, rounds=3) > 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """640 MB, so that what a check does once weighs little, as in cubes to train on."""
    return repeated_cube(tmp_path_factory.mktemp("large") / "cube.zarr", SHARDS)


def forgotten(folder: Path) -> None:
    """Have the operating system drop what it remembers of the files, so that the disk is read."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def remembered(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(
            forgotten,
            id="from the disk",
            marks=pytest.mark.benchmark(group="every byte of a cube, from the disk"),
        ),
        pytest.param(
            remembered,
            id="from memory",
            marks=pytest.mark.benchmark(group="every byte of a cube, from the page cache"),
        ),
    ],
)
class TestCheck:
    def test_reading_alone(
        self, benchmark: Any, large: Cube, before: Callable[[Path], None]
    ) -> None:
        """The baseline: the files' bytes, read and dropped, by as many threads."""
        folder = Path(large.path)
        files = [path for path in folder.rglob("*") if path.is_file()]

        def read() -> int:
            with ThreadPoolExecutor(READERS) as pool:
                return sum(pool.map(lambda path: len(path.read_bytes()), files))

        benchmark.extra_info["bytes"] = sum(path.stat().st_size for path in files)
        assert benchmark.pedantic(read, setup=lambda: before(folder), rounds=3) > SHARDS * 10**6

    def test_check(self, benchmark: Any, large: Cube, before: Callable[[Path], None]) -> None:
        def run() -> list[Any]:
            return [damage for damage, *_ in check(large.path) if damage]

        assert not benchmark.pedantic(run, setup=lambda: before(Path(large.path)), rounds=3)
