"""From products to a cube: each pixel, each case of offset and no-data, kills and two at once."""

import shutil
import signal
import subprocess
import sys
import threading
import time
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

from s2pairs.bands import BANDS, band, reflectance_from_stored
from s2pairs.build import Report, Request, build, choose, plan
from s2pairs.checking import check
from s2pairs.cube import Cube, create, open_cube, open_unchanged
from s2pairs.errors import CubeError, SceneError, SourceError
from s2pairs.masks import Flags
from s2pairs.patches import SPLITS, draw_regions
from s2pairs.safe_writer import L1CProduct, usual_offsets, write_l1c
from s2pairs.scenes import Grid, Listing, PixelWindow, Scene
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.s2pairs.files import bytes_of
from tests.worlds import Places, dn_of_place, l1c, write_places

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
