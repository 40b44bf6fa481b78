"""A made world with every trouble at once, as folders and as archives: one cube, byte for byte.

Two tiles of neighbouring zones whose ground overlaps; both eras of offsets and masks, an old
product processed again, a copy, a datatake twice, two passes of a day, clouds, a half-empty swath,
a deleted band, an image cut short.
"""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from s2pairs.build import Request, build, choose, plan
from s2pairs.cube import Cube, open_cube
from s2pairs.masks import CLOUD
from s2pairs.safe_writer import L1CMasks, L1CProduct, write_l1c
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import dn_of_place, l1c

TILES = (TileId.parse("30TYL"), TileId.parse("31TBF"))
BANDS = ("B04", "B02")
SIZE = 448
DAYS = (
    ("2021-07-30", "05.00", 0.5),
    ("2021-09-28", "02.09", 0.0),
    ("2021-11-22", "03.01", 1.5),
    ("2022-01-16", "03.01", 0.0),
    ("2022-03-17", "04.00", 0.2),
    ("2022-05-11", "04.00", 35.0),
)
HALF_EMPTY = "2022-01-16"


def numbers(product: L1CProduct, name: str) -> np.ndarray:
    made = dn_of_place(product, name)
    if f"{product.acquired:%Y-%m-%d}" == HALF_EMPTY:
        made[:, SIZE // 2 :] = 0
    return made


def clouds(product: L1CProduct) -> np.ndarray:
    """Cells of 60 m in a chessboard of ten by ten, another one for each day."""
    rows, columns = np.indices(product.shape(60)) // 10
    return np.asarray((rows + columns + product.acquired.day) % 2 == 0)


def write(folder: Path, product: L1CProduct) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    opaque = clouds(product)
    masks = L1CMasks(opaque, ~(opaque | True), ~(opaque | True), opaque | True)
    return write_l1c(folder, product, {name: numbers(product, name) for name in BANDS}, masks)


def packed(folder: Path, target: Path, method: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target / f"{folder.name}.zip", "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, L1CProduct]:
    """By name; `_FOLDERS` and `_ARCHIVES` below the folder that each test asks for."""
    folder = tmp_path_factory.mktemp("world")
    made = [
        l1c(tile.name, day, baseline=baseline, cloud=cloud, size=SIZE)
        for tile in TILES
        for day, baseline, cloud in DAYS
    ]
    made.append(l1c("30TYL", "2021-09-28", baseline="05.00", size=SIZE, generated_days_later=900))
    made.append(l1c("31TBF", "2021-09-28", cloud=1.9, size=SIZE, hour=11))
    paths = [write(folder / "folders", product) for product in made]
    (image,) = paths[4].glob("GRANULE/*/IMG_DATA/*_B02.jp2")
    image.unlink()
    (image,) = paths[len(DAYS) + 2].glob("GRANULE/*/IMG_DATA/*_B04.jp2")
    image.write_bytes(image.read_bytes()[:-2000])
    shutil.copytree(paths[0], folder / "folders" / "again" / paths[0].name)
    for number, path in enumerate(paths):
        method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
        packed(path, folder / "archives", method)
    packed(paths[0], folder / "archives" / "again", zipfile.ZIP_STORED)
    _PLACES["folder"] = folder
    return {product.name.removesuffix(".SAFE"): product for product in made}


_PLACES: dict[str, Path] = {}


def request(*tiles: TileId) -> Request:
    return Request(tiles=tiles, bands=BANDS, dates=3, regions=100, region_size=64)


def cube_of(source: str) -> Cube:
    out = _PLACES["folder"] / f"{source}.zarr"
    catalogue = SafeCatalogue(_PLACES["folder"] / source, BANDS)
    build(request(*TILES), catalogue, out, workers=1, progress=lambda *_: None)
    return open_cube(out)


def test_folders_and_archives_make_one_cube(products: dict[str, L1CProduct]) -> None:
    one, other = cube_of("folders"), cube_of("archives")
    assert bytes_of(one.path) == bytes_of(other.path)
    reasons = [text.partition(": ")[2] for text in one.attributes["products_left_out"]]
    for said in (
        *("band B02 is missing", "B04.jp2 is cut short", "a copy: the same product"),
        *("same datatake as S2A_MSIL1C_20210928T105601_N0500", "same day as", "too cloudy: 35.0 %"),
    ):
        assert any(said in reason for reason in reasons), said
    assert len(one.attributes["products"]) == 6
    alone = request(TILES[1])
    of_second = choose(alone, SafeCatalogue(_PLACES["folder"] / "folders", BANDS))
    # what the first tile has too is kept once
    assert 0 < (one.tile == "31TBF").sum() < len(plan(alone, of_second).table)
    for patch, masks in enumerate(one.read_masks(np.arange(len(one)))):
        rows, columns = one.row[patch] + np.arange(64), one.col[patch] + np.arange(64)
        place = np.ix_(rows, columns)
        stored = one.read([patch])[0]
        for date, name in enumerate(one.product[patch].tolist()):
            product = products[name]
            assert product.tile.name == one.tile[patch]
            offset = 1000 if product.baseline < "04.00" else 0
            for band, which in enumerate(BANDS):
                dn = numbers(product, which)[place].astype(int)
                truth = np.where(dn == 0, 0, dn + offset)
                np.testing.assert_array_equal(stored[date, band], truth)
            cloudy = clouds(product)[np.ix_(rows // 6, columns // 6)]
            np.testing.assert_array_equal((masks[date] & CLOUD) > 0, cloudy)
            empty = (numbers(product, "B04")[place] == 0).mean()
            assert one.valid_fraction[patch, date] == np.float32(1 - empty)
