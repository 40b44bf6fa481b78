"""Building, checking and reading a cube, against the least work that could do."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray

from s2pairs.build import Request, build
from s2pairs.checking import check
from s2pairs.cube import Cube, open_cube
from s2pairs.simulate import simulate
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId

TILE = TileId.parse("31TCJ")
BANDS = ("B04", "B03", "B02", "B08")
WORKERS = 2
PAIRS = 64


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dates of 1536 x 1536 pixels: more than one code block a band."""
    folder = tmp_path_factory.mktemp("made")
    period = {"start": date(2020, 3, 1), "end": date(2020, 9, 30)}
    simulate([TILE], folder, size=1536, dates=3, cloudy_dates=0, **period)
    return folder


def built(products: Path, out: Path) -> Cube:
    request = Request(tiles=(TILE,), bands=BANDS, dates=3)
    build(request, SafeCatalogue(products, BANDS), out, workers=WORKERS, progress=lambda *_: None)
    return open_cube(out)


@pytest.fixture(scope="module")
def cube(products: Path, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return built(products, tmp_path_factory.mktemp("cube") / "cube.zarr")


@pytest.mark.benchmark(group="build three dates of 1536 x 1536 from JPEG 2000")
class TestBuild:
    def test_decoding_alone(self, benchmark: Any, products: Path) -> None:
        """The baseline: each band read whole by rasterio, on as many threads."""

        def decode(path: Path) -> int:
            with rasterio.open(path) as image:
                return int(image.read(1).size)

        images = sorted(products.glob("*.SAFE/GRANULE/*/IMG_DATA/*_B*.jp2"))
        with ThreadPoolExecutor(WORKERS) as pool:
            sizes = benchmark.pedantic(lambda: list(pool.map(decode, images)), rounds=3)
        assert sum(sizes) == 3 * 4 * 1536**2

    def test_build(self, benchmark: Any, products: Path, tmp_path: Path) -> None:
        names = itertools.count()
        made = benchmark.pedantic(
            lambda: built(products, tmp_path / f"{next(names)}.zarr"), rounds=3
        )
        assert made.shards == -(-len(made) // 64)


@pytest.mark.benchmark(group=f"{PAIRS} random pairs of dates")
class TestPairs:
    def test_by_xarray(self, benchmark: Any, cube: Cube) -> None:
        """The baseline: the same cube read by xarray and zarr, raw values."""
        stored = xarray.open_zarr(cube.path, chunks=None, mask_and_scale=False).reflectance
        draw = np.random.default_rng(0)

        def read() -> Any:
            places = xarray.DataArray(draw.integers(len(cube), size=2 * PAIRS), dims="look")
            dates = xarray.DataArray(draw.integers(cube.dates, size=2 * PAIRS), dims="look")
            return stored.isel(patch=places, date=dates).values

        assert benchmark.pedantic(read, rounds=5, warmup_rounds=1).shape[0] == 2 * PAIRS

    def test_by_cube(self, benchmark: Any, cube: Cube) -> None:
        draw = np.random.default_rng(0)

        def read() -> Any:
            x, y = draw.integers(cube.dates, size=(2, PAIRS))
            return cube.read_pairs(draw.integers(len(cube), size=PAIRS), x, y)

        assert len(benchmark.pedantic(read, rounds=20, warmup_rounds=1)[0]) == PAIRS


@pytest.mark.benchmark(group="every byte of a cube")
class TestCheck:
    def test_reading_alone(self, benchmark: Any, cube: Cube) -> None:
        """The baseline: the files' bytes, read and dropped."""
        files = [path for path in cube.path.rglob("*") if path.is_file()]
        assert benchmark(lambda: sum(len(path.read_bytes()) for path in files)) > 10**6

    def test_check(self, benchmark: Any, cube: Cube) -> None:
        assert not any(damage for damage, *_ in benchmark(lambda: list(check(cube.path))))
