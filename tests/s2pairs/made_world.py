"""One made world that every source is asked for: whatever differs is told by its source alone.

Two tiles of neighbouring zones whose ground overlaps; dates before and after baseline 04.00, an
old one processed again, a datatake processed twice, two passes of one day, clouds, a half-empty
swath; a product without one of its bands and one whose image is cut short.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from scipy.ndimage import gaussian_filter, zoom

from s2pairs.bands import band
from s2pairs.safe_writer import L1CProduct, write_l1c
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.worlds import l1c

TILES = (TileId.parse("30TYL"), TileId.parse("31TBF"))
BANDS = ("B04", "B03", "B02", "B08")
SIZE = 448
DATES = 3
_DAYS = (
    ("2021-07-30", "05.00", 0.5),  # processed again
    ("2021-09-28", "02.09", 0.0),
    ("2021-11-22", "03.01", 1.5),
    ("2022-01-16", "03.01", 0.0),
    ("2022-03-17", "04.00", 0.2),
    ("2022-05-11", "04.00", 35.0),
)
# Reflectance at the top of the atmosphere of water, forest, crop and bare soil.
_GROUND = {
    "B02": (0.075, 0.080, 0.095, 0.130),
    "B03": (0.050, 0.060, 0.090, 0.140),
    "B04": (0.030, 0.035, 0.060, 0.180),
    "B08": (0.012, 0.220, 0.350, 0.240),
}
_HALF = 3  # which day is half outside the swath


@dataclass(frozen=True)
class World:
    """The folder of products, and which of them were harmed."""

    folder: Path
    without_band: str
    cut_short: str

    def catalogue(self) -> SafeCatalogue:
        return SafeCatalogue(self.folder, BANDS)

    def numbers(self, product: str, name: str) -> npt.NDArray[np.uint16]:
        """Digital numbers of a whole band, by rasterio alone."""
        (path,) = self.folder.glob(f"{product}.SAFE/GRANULE/*/IMG_DATA/*_{name}.jp2")
        with rasterio.open(path) as image:
            return np.asarray(image.read(1))


def make_world(folder: Path) -> World:
    """The same bytes each time; six dates a tile and two products more."""
    folder.mkdir(parents=True)
    products = [
        l1c(tile.name, day, baseline=baseline, cloud=cloud, size=SIZE)
        for tile in TILES
        for day, baseline, cloud in _DAYS
    ]
    again = l1c("30TYL", "2021-09-28", baseline="05.00", size=SIZE, generated_days_later=900)
    later = l1c("31TBF", "2021-09-28", baseline="02.09", cloud=1.9, size=SIZE, hour=11)
    for product in (*products, again, later):
        write_l1c(folder, product, {name: made_numbers(product, name) for name in BANDS})
    without_band, cut_short = _name(products[4]), _name(products[len(_DAYS) + 2])
    (image,) = folder.glob(f"{without_band}.SAFE/GRANULE/*/IMG_DATA/*_B08.jp2")
    image.unlink()
    (image,) = folder.glob(f"{cut_short}.SAFE/GRANULE/*/IMG_DATA/*_B03.jp2")
    image.write_bytes(image.read_bytes()[:-2000])
    return World(folder, without_band, cut_short)


def made_numbers(product: L1CProduct, name: str) -> npt.NDArray[np.uint16]:
    """Fields of four kinds of ground, brighter and noisier from date to date; some of it clouded.

    With the offset of 04.00 a few pixels reflect less than nothing, as sensor noise does it.
    """
    seed = [product.tile.zone, *product.tile.name.encode()]
    rough = np.random.default_rng(seed).normal(size=(SIZE // 16, SIZE // 16))
    kind = np.digitize(zoom(gaussian_filter(rough, 1), 16, order=0), (-0.25, 0, 0.25))
    day = np.random.default_rng([product.acquired.toordinal(), band(name).band_id, *seed])
    reflectance = np.take(_GROUND[name], kind) * day.uniform(0.9, 1.15)
    reflectance += day.normal(0, 0.003, (SIZE // 16, SIZE // 16)).repeat(16, 0).repeat(16, 1)
    clouded = round(product.cloud_cover / 100 * SIZE)
    reflectance[:, :clouded] = 0.6 + day.normal(0, 0.02, (SIZE, 1))
    offset = product.add_offset.get(name, 0)
    numbers = np.clip(np.rint(reflectance * 10_000) - offset, 1, 65534).astype(np.uint16)
    if offset:
        numbers[200, 100:110] = 960
    numbers[10, 200:204] = 65535
    if product.acquired.date().isoformat() == _DAYS[_HALF][0]:
        numbers[:, SIZE // 2 + 30 :] = 0
    return numbers


def _name(product: L1CProduct) -> str:
    return product.name.removesuffix(".SAFE")


__all__ = ["BANDS", "DATES", "SIZE", "TILES", "World", "made_numbers", "make_world"]
