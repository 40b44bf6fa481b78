"""Random pairs for training, in pairs a second: from the cube, and from scenes as others read them.

What reads of pairs go for is beside it: a step of training on as many pairs, by test_training.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray

from benchmarks.products import BANDS, DATES, Products
from s2pairs.build import build
from s2pairs.cube import Cube, open_cube

PAIRS = 64
pytestmark = pytest.mark.benchmark(group=f"{PAIRS} random pairs of dates")


@pytest.fixture(scope="module")
def cube(products: Products, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    out = tmp_path_factory.mktemp("cube") / "cube.zarr"
    build(products.request, products.catalogue, out, workers=2, progress=lambda *_: None)
    return open_cube(out)


@pytest.fixture(scope="module")
def images(products: Products, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The scenes of the cube as COGs with the four bands as layers, deflated, blocks of 512."""
    folder = tmp_path_factory.mktemp("cogs")
    made = []
    for number, (scene, _) in enumerate(products.windows):
        layers = []
        for band in BANDS:
            with rasterio.open(scene.assets[band]) as image:
                layers.append(image.read(1))
                profile = {"crs": image.crs, "transform": image.transform}
        stack = np.stack(layers)
        made.append(folder / f"date{number}.tif")
        count, height, width = stack.shape
        with rasterio.open(
            made[-1],
            "w",
            driver="COG",
            compress="deflate",
            predictor=2,
            blocksize=512,
            dtype="uint16",
            count=count,
            height=height,
            width=width,
            **profile,
        ) as out:
            out.write(stack)
    return made


def measured(benchmark: Any, read: Callable[[], int], rounds: int) -> None:
    """`read` gives PAIRS pairs; the median is told in pairs a second too."""
    assert benchmark.pedantic(read, rounds=rounds, warmup_rounds=1) == PAIRS
    benchmark.extra_info["pairs_per_second"] = round(PAIRS / benchmark.stats.stats.median, 1)


# affine warns of what torchgeo does with it
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_by_torchgeo(benchmark: Any, images: list[Path]) -> None:
    """The baseline: a random place by RandomGeoSampler, read at two of the dates."""
    from torchgeo.datasets import RasterDataset
    from torchgeo.samplers import RandomGeoSampler

    scenes = [RasterDataset(paths=[str(path)]) for path in images]
    sampler = RandomGeoSampler(scenes[0], size=64, length=PAIRS)
    draw = np.random.default_rng(0)

    def read() -> int:
        got = 0
        for place in sampler:
            one, other = draw.choice(DATES, 2, replace=False)
            first, second = scenes[one][place]["image"], scenes[other][place]["image"]
            got += first.shape == second.shape == (len(BANDS), 64, 64)
        return got

    measured(benchmark, read, rounds=3)


def test_by_xarray(benchmark: Any, cube: Cube) -> None:
    """A second baseline: the same cube read by xarray and zarr, raw values."""
    stored = xarray.open_zarr(cube.path, chunks=None, mask_and_scale=False).reflectance
    draw = np.random.default_rng(0)

    def read() -> int:
        places = xarray.DataArray(draw.integers(len(cube), size=2 * PAIRS), dims="look")
        dates = xarray.DataArray(draw.integers(cube.dates, size=2 * PAIRS), dims="look")
        return len(stored.isel(patch=places, date=dates).values) // 2

    measured(benchmark, read, rounds=3)


def test_by_cube(benchmark: Any, cube: Cube) -> None:
    draw = np.random.default_rng(0)

    def read() -> int:
        x, y = draw.integers(cube.dates, size=(2, PAIRS))
        return len(cube.read_pairs(draw.integers(len(cube), size=PAIRS), x, y)[0])

    measured(benchmark, read, rounds=20)
