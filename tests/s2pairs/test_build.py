"""From products to a cube: each pixel, each case of offset and no-data, and what a build tells."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from s2pairs.bands import band, reflectance_from_stored
from s2pairs.build import Report, Request, build
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import SceneError, SourceError
from s2pairs.patches import SPLITS
from s2pairs.safe_writer import L1CProduct, write_l1c
from s2pairs.scenes import Grid, Listing
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.worlds import dn_of_place, l1c, write_places

TILE = TileId.parse("31TCJ")


def request(**changes: object) -> Request:
    usual = Request(tiles=(TILE,), bands=("B04",), dates=2, regions=9, region_size=128)
    return replace(usual, **changes)  # type: ignore[arg-type]


def make(folder: Path, wanted: Request, *, workers: int = 2, name: str = "cube.zarr") -> Cube:
    build_at(folder, wanted, workers=workers, name=name)
    return open_cube(folder / name)


def build_at(folder: Path, wanted: Request, *, workers: int = 2, name: str = "cube.zarr") -> Report:
    catalogue = SafeCatalogue(folder / "products", wanted.bands)
    return build(wanted, catalogue, folder / name, workers=workers, progress=lambda *_: None)


@pytest.mark.parametrize("bands", [("B04", "B03", "B02", "B08"), ("B8A", "B02", "B01")])
def test_each_pixel_tells_its_place_date_and_band(tmp_path: Path, bands: tuple[str, ...]) -> None:
    """The truth is computed from (tile, row, column, day, band); nothing of the reader is used."""
    days = {"2019-02-01": "02.07", "2019-06-15": "05.00", "2022-10-20": "04.00"}
    products = [
        l1c(tile, day, baseline=baseline, size=512)
        for tile in ("31TCJ", "19KDQ")
        for day, baseline in days.items()
    ]
    write_places(tmp_path / "products", products, bands)
    cube = make(
        tmp_path,
        request(tiles=(TILE, TileId.parse("19KDQ")), bands=bands, dates=3, regions=16),
    )
    made = {product.name.removesuffix(".SAFE"): product for product in products}
    assert set(cube.tile) == {"31TCJ", "19KDQ"}
    assert len(cube) == 64
    stored = cube.read(np.arange(len(cube)))
    for patch in range(len(cube)):
        rows = cube.row[patch] + np.arange(64)
        columns = cube.col[patch] + np.arange(64)
        for date in range(3):
            product = made[cube.product[patch, date]]
            assert product.tile.name == cube.tile[patch]
            assert cube.acquired[patch, date] == np.datetime64(
                product.acquired.replace(tzinfo=None)
            )
            for index, name in enumerate(bands):
                step = band(name).resolution_m // 10
                dn = dn_of_place(product, name)[np.ix_(rows // step, columns // step)]
                offset = 0 if product.baseline < "04.00" else -1000
                truth = np.maximum(dn.astype(int) + offset + 1000, 1)
                np.testing.assert_array_equal(stored[patch, date, index], truth)


def write_flat(
    folder: Path, product: L1CProduct, dn: npt.NDArray[np.uint16], bands: tuple[str, ...] = ("B04",)
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_l1c(folder, product, dict.fromkeys(bands, dn))


def test_mixed_baselines_give_equal_reflectance(tmp_path: Path) -> None:
    """One landscape, three processings; the last is an old scene that was reprocessed."""
    reflectance = np.random.default_rng(0).integers(-900, 12_000, (256, 256))  # times 10,000
    reflectance[0, :5] = [-999, -1, 0, 1, 12_000]
    for day, baseline, offset in (
        ("2022-02-01", "04.00", -1000),
        ("2023-02-01", "05.09", -1000),
        ("2017-02-01", "05.00", -1000),
    ):
        dn = (reflectance - offset).astype(np.uint16)
        write_flat(tmp_path / "products", l1c(day=day, baseline=baseline), dn)
    positive = np.maximum(reflectance, 1)  # before 04.00 a product cannot say less
    write_flat(tmp_path / "products", l1c(day="2018-02-01"), positive.astype(np.uint16))
    cube = make(tmp_path, request(dates=4))
    values = reflectance_from_stored(cube.read(np.arange(len(cube))))[:, :, 0]
    assert sorted(set(cube.acquired[0].astype("datetime64[Y]").astype(str))) == [
        *("2017", "2018", "2022", "2023")
    ]
    for patch in range(len(cube)):
        row, col = cube.row[patch], cube.col[patch]
        truth = reflectance[row : row + 64, col : col + 64] / 10_000
        for date, product in enumerate(cube.product[patch]):
            held = np.maximum(truth, 1e-4) if "_N0209_" in product else truth
            np.testing.assert_allclose(values[patch, date], held, atol=1e-6)


def test_no_data_saturated_and_dark_pixels(tmp_path: Path) -> None:
    dn = np.full((128, 128), 3000, dtype=np.uint16)
    dn[0, :6] = [0, 1, 999, 1000, 1001, 65535]
    write_flat(tmp_path / "products", l1c(day="2020-01-01", size=128), dn)
    write_flat(tmp_path / "products", l1c(day="2022-06-01", size=128, baseline="04.00"), dn)
    cube = make(tmp_path, request())
    (corner,) = np.flatnonzero((cube.row == 0) & (cube.col == 0))
    before, after = cube.read([corner])[0, :, 0, 0, :6]
    assert before.tolist() == [0, 1001, 1999, 2000, 2001, 65535]
    assert after.tolist() == [0, 1, 999, 1000, 1001, 65535]
    assert np.isnan(reflectance_from_stored(after)).tolist() == [True, *5 * [False]]
    np.testing.assert_allclose(cube.valid_fraction[corner], 1 - 1 / 4096)


def test_a_half_empty_swath_gives_its_valid_fraction(tmp_path: Path) -> None:
    whole = np.full((256, 256), 2000, dtype=np.uint16)
    half = whole.copy()
    half[:, 96:] = 0
    write_flat(tmp_path / "products", l1c(day="2020-01-01"), whole)
    write_flat(tmp_path / "products", l1c(day="2020-06-01"), half)
    cube = make(tmp_path, request())
    for patch in range(len(cube)):
        expected = {0: 1.0, 64: 0.5}.get(int(cube.col[patch]), 0.0)
        assert cube.valid_fraction[patch].tolist() == [1.0, expected]


def test_no_data_in_one_band_alone_counts(tmp_path: Path) -> None:
    bands = ("B04", "B03")
    dn = np.full((128, 128), 2000, dtype=np.uint16)
    empty = dn.copy()
    empty[:32] = 0
    for day in ("2020-01-01", "2020-06-01"):
        (tmp_path / "products").mkdir(exist_ok=True)
        write_l1c(tmp_path / "products", l1c(day=day, size=128), {"B04": dn, "B03": empty})
    cube = make(tmp_path, request(bands=bands))
    assert set(cube.valid_fraction[cube.row == 0].ravel().tolist()) == {0.5}


def test_a_datatake_twice_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "products"
    old, new = (
        l1c(day="2020-01-01", size=128),
        l1c(day="2020-01-01", size=128, baseline="05.00", generated_days_later=900),
    )
    write_places(folder, [old, new, l1c(day="2020-06-01", size=128)], ("B04",))
    cube = make(tmp_path, request())
    assert cube.product[0, 0] == new.name.removesuffix(".SAFE")
    assert any(
        text.startswith(old.name.removesuffix(".SAFE")) and "same datatake" in text
        for text in cube.attributes["products_left_out"]
    )
    with pytest.raises(SourceError, match="1 same datatake"):
        build_at(tmp_path, request(dates=3), name="three.zarr")


def test_the_build_goes_on_without_broken_products_and_says_so(tmp_path: Path) -> None:
    days = ["2020-01-01", "2020-03-01", "2020-05-01", "2020-07-01"]
    products = [l1c(day=day, size=128) for day in days]
    folders = write_places(tmp_path / "products", products, ("B04",))
    (image,) = folders[1].glob("GRANULE/*/IMG_DATA/*_B04.jp2")
    image.write_bytes(image.read_bytes()[:-500])
    (folders[2] / "MTD_MSIL1C.xml").write_text("<xml")
    cube = make(tmp_path, request())
    assert cube.attributes["products"] == [
        folder.name.removesuffix(".SAFE") for folder in (folders[0], folders[3])
    ]
    first, second = cube.attributes["products_left_out"]
    assert "cut short" in first
    assert "cannot be read" in second
    with pytest.raises(SourceError, match=r"31TCJ has 2 usable dates of the 3 .* 2 unusable"):
        build_at(tmp_path, request(dates=3), name="three.zarr")


def test_a_product_that_breaks_while_it_is_read_stops_the_build(tmp_path: Path) -> None:
    days = ["2020-01-01", "2020-03-01"]
    folders = write_places(tmp_path / "products", [l1c(day=d, size=128) for d in days], ("B04",))
    catalogue = SafeCatalogue(tmp_path / "products", ("B04",))
    (image,) = folders[1].glob("GRANULE/*/IMG_DATA/*_B04.jp2")

    class Breaking(SafeCatalogue):
        def scenes(self, tile: TileId) -> Listing:
            listing = catalogue.scenes(tile)
            image.write_bytes(image.read_bytes()[:900])  # after it was found in order
            return listing

    breaking = Breaking(tmp_path / "products", ("B04",))
    with pytest.raises(SceneError, match=r"_B04\.jp2 cannot be read.*; replace that"):
        build(request(), breaking, tmp_path / "c.zarr", workers=1, progress=lambda *_: None)
    assert not (tmp_path / "c.zarr.lock").exists()


def test_products_of_one_tile_share_a_grid(tmp_path: Path) -> None:
    write_places(
        tmp_path / "products",
        [l1c(day="2020-01-01", size=128), l1c(day="2020-06-01", size=256)],
        ("B04",),
    )
    with pytest.raises(SourceError, match="do not share one pixel grid"):
        build_at(tmp_path, request())


def test_the_attributes_say_where_the_pixels_are_from(tmp_path: Path) -> None:
    days = ["2019-12-31", "2020-06-01", "2021-01-01"]
    folders = write_places(tmp_path / "products", [l1c(day=d, size=128) for d in days], ("B04",))
    for folder in folders[::2]:  # as if a genuine centre had processed these
        (granule,) = folder.glob("GRANULE/*/MTD_TL.xml")
        granule.write_text(granule.read_text().replace("_TL_SIM__", "_TL_SGS__"))
    cube = make(tmp_path, request(dates=3, end=datetime(2022, 1, 1, tzinfo=UTC)))
    assert cube.attributes["notice"] == (
        "contains simulated data; contains modified Copernicus Sentinel data [2019], [2021]"
    )
    assert cube.attributes["creator"].startswith("crossmi ")
    assert cube.attributes["quantification"] == 10_000
    assert cube.parameters["end"] == "2022-01-01T00:00:00+00:00"
    assert cube.parameters["tiles"] == ["31TCJ"]


def test_what_was_asked_for_and_is_not_there_is_told(tmp_path: Path) -> None:
    """Products of two tiles, the second of which is said to lie where the first one does."""
    names = ("31TCJ", "31TDJ")
    products = [l1c(tile, day, size=128) for tile in names for day in ("2020-01-01", "2020-06-01")]
    write_places(tmp_path / "products", products, ("B04",))

    class OnOnePlace(SafeCatalogue):
        def scenes(self, tile: TileId) -> Listing:
            grid = Grid(TILE.epsg, *TILE.upper_left(), 128, 128)
            return Listing(tuple(replace(s, grid=grid) for s in super().scenes(tile).scenes), ())

    wanted = request(tiles=tuple(map(TileId.parse, names)))
    catalogue = OnOnePlace(tmp_path / "products", wanted.bands)
    report = build(wanted, catalogue, tmp_path / "c.zarr", workers=1, progress=lambda *_: None)
    (split,) = set(open_cube(tmp_path / "c.zarr").split)
    absent = ", ".join(name for name in SPLITS if name != split)
    assert report.remarks == (
        "no patch of 31TDJ, whose ground belongs to the tiles before or lies between splits",
        f"no patch for {absent}",
    )
