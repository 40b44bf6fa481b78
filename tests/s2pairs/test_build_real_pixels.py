"""Real pixels wrapped as products come through a build unchanged, each on its ground."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import from_bounds

from s2pairs.bands import BANDS, reflectance_from_stored
from s2pairs.patches import draw_regions
from s2pairs.safe_writer import L1CProduct, usual_offsets, write_l1c
from s2pairs.scenes import Grid
from s2pairs.tiles import TileId
from tests.s2pairs.test_build import make, request

# Real pixels: the Boadella reservoir, 12 dates. The area lies in the south-east of tile 31TDG, so
# a product has to reach that far from the tile's corner; the rest of it is no-data.
BOADELLA = TileId.parse("31TDG")
BOADELLA_SHAPE = (1280, 8704)
BOADELLA_ORDER = [each.name for each in BANDS if each.name != "B10"]
WITH_OFFSET = {"2022-03-08": "04.00", "2022-06-01": "05.09"}


def boadella_product(day: str) -> L1CProduct:
    acquired = datetime.fromisoformat(day).replace(hour=10, minute=46, tzinfo=UTC)
    baseline = WITH_OFFSET.get(day, "02.09")
    return L1CProduct(
        tile=BOADELLA,
        spacecraft="S2A",
        acquired=acquired,
        generated=acquired + timedelta(hours=5),
        baseline=baseline,
        relative_orbit=8,
        absolute_orbit=23_000 + acquired.toordinal() % 1000,
        cloud_cover=1.0,
        sun_zenith=40.0,
        sun_azimuth=150.0,
        add_offset=usual_offsets(baseline),
        height=BOADELLA_SHAPE[0],
        width=BOADELLA_SHAPE[1],
    )


def on_the_tile(path: Path, name: str) -> npt.NDArray[np.int16]:
    """One band of a genuine file on the tile's 10 m grid, nearest neighbour; 0 is no-data."""
    target = np.zeros(BOADELLA_SHAPE, dtype=np.int16)
    left, top = BOADELLA.upper_left()
    with rasterio.open(path) as file:
        reproject(
            file.read(1 + BOADELLA_ORDER.index(name)),
            target,
            src_transform=file.transform,
            src_crs=file.crs,
            dst_transform=Affine(10, 0, left, 0, -10, top),
            dst_crs=f"EPSG:{BOADELLA.epsg}",
            resampling=Resampling.nearest,
        )
    return target


def seed_that_draws(numbers: set[int]) -> int:
    grid = Grid(BOADELLA.epsg, *BOADELLA.upper_left(), *BOADELLA_SHAPE)
    for seed in range(100_000):
        drawn = draw_regions(BOADELLA, grid, 256, seed)[: len(numbers)]
        if {number for number, *_ in drawn} == numbers:
            return seed
    raise AssertionError("no such seed")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("bands", "chosen"),
    [
        pytest.param(("B04",), (0, 5, 10, 11), id="red at four dates"),
        pytest.param(("B04", "B03", "B02", "B08"), range(12), id="all", marks=pytest.mark.slow),
    ],
)
def test_real_pixels_wrapped_as_products(
    crossmi_data: Path, tmp_path: Path, bands: tuple[str, ...], chosen: Sequence[int]
) -> None:
    folder = tmp_path / "products"
    folder.mkdir()

    def wrap(day: str, values: dict[str, npt.NDArray[np.int16]]) -> Path:
        offset = -1000 if day in WITH_OFFSET else 0
        dn = {
            name: np.where(value > 0, value - offset, 0).astype(np.uint16)
            for name, value in values.items()
        }
        return write_l1c(folder, boadella_product(day), dn)

    there = sorted((crossmi_data / "s2" / "eotdl_boadella").glob("*.tif"))
    files = [there[number] for number in chosen]
    days = [path.stem.removeprefix("Boadella_") for path in files]
    # In this thread alone: rasterio silences a warning of `reproject` for the whole process, so in
    # two threads one of them may see it.
    pixels = [{name: on_the_tile(path, name) for name in bands} for path in files]
    with ThreadPoolExecutor(2) as pool:
        wrapped = list(zip(days, pool.map(wrap, days, pixels), pixels, strict=True))
    # The two regions of 256 pixels at row 1024 that hold the area, of 34 in each row of regions.
    wanted = request(tiles=(BOADELLA,), bands=bands, dates=len(files), regions=2, region_size=256)
    cube = make(tmp_path, replace(wanted, seed=seed_that_draws({4 * 34 + 32, 4 * 34 + 33})))
    assert len(cube) == 32
    assert cube.acquired[0].astype("datetime64[D]").astype(str).tolist() == [
        day for day, *_ in wrapped
    ]
    reflectance = reflectance_from_stored(cube.read(np.arange(32)))
    for date, (day, product, values) in enumerate(wrapped):
        for index, name in enumerate(bands):
            (image,) = product.glob(f"GRANULE/*/IMG_DATA/*_{name}.jp2")
            with rasterio.open(image) as file:
                assert file.crs.to_epsg() == 32631
                for patch, (x, y) in enumerate(zip(cube.x, cube.y, strict=True)):
                    ground = from_bounds(x - 320, y - 320, x + 320, y + 320, file.transform)
                    dn = file.read(1, window=ground).astype(float)
                    meant = (dn - (1000 if day in WITH_OFFSET else 0)) / 10_000
                    meant[dn == 0] = np.nan
                    np.testing.assert_allclose(reflectance[patch, date, index], meant, atol=1e-6)
                    row, col = cube.row[patch], cube.col[patch]
                    genuine = values[name][row : row + 64, col : col + 64]
                    assert ((genuine > 0) == ~np.isnan(meant)).all()
                    np.testing.assert_allclose(meant[genuine > 0], genuine[genuine > 0] / 10_000)
    inside = cube.valid_fraction[:, -1]
    assert (inside > 0.99).sum() >= 16  # wholly inside the area
    assert ((inside > 0) & (inside < 0.99)).any()  # and some on its edge
