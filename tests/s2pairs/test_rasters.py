"""Folders of rasters: names, settings, numbers, grids, offsets, and real exports of three kinds."""

import math
import pickle
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import h5py
import mgrs
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform

from s2pairs.bands import BANDS, reflectance_from_stored, stored_from_dn
from s2pairs.build import Request, build
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import SourceError
from s2pairs.masks import CLOUD, SHADOW
from s2pairs.scenes import Listing, PixelWindow, Scene
from s2pairs.sources.rasters import RastersCatalogue
from s2pairs.sources.rasters_files import _time_of
from s2pairs.tiles import TileId, tile_at
from tests.s2pairs.made_world import BANDS as RGBN
from tests.s2pairs.made_world import TILES, World
from tests.s2pairs.same_pixels import WINDOWS, Remembering

TILE = TileId.parse("31TDG")
UTM = {"crs": "EPSG:32631", "transform": Affine(10, 0, 480000, 0, -10, 4690000)}
B12 = tuple(band.name for band in BANDS if band.name != "B10")


def write(
    path: Path, layers: Mapping[str, npt.NDArray[np.generic]], **profile: object
) -> npt.NDArray[np.generic]:
    """A GeoTIFF whose layers are described by their bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stack = np.stack(list(layers.values()))
    count, height, width = stack.shape
    options = {**UTM, "dtype": stack.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", driver="GTiff", **{**options, **profile}) as image:
        image.write(stack)
        image.descriptions = tuple(layers)
    return stack


def ground(seed: int = 0, size: int = 128) -> npt.NDArray[np.uint16]:
    """Numbers of dark and bright ground without an offset."""
    draw = np.random.default_rng(seed)
    return draw.integers(150, 3000, (size, size)).astype(np.uint16)


def stored(catalogue: RastersCatalogue, scene: Scene, band: str) -> npt.NDArray[np.uint16]:
    window = PixelWindow(0, 0, scene.grid.height, scene.grid.width)
    (dn,) = catalogue.read(scene, band, [window])
    return stored_from_dn(dn, scene.add_offset[band], scene.quantification)


def listed(
    folder: Path, bands: tuple[str, ...] = ("B04", "B08"), tile: TileId = TILE
) -> tuple[RastersCatalogue, Listing]:
    catalogue = RastersCatalogue(folder, bands)
    return catalogue, catalogue.scenes(tile)


def test_a_file_a_date_with_described_layers(tmp_path: Path) -> None:
    stacks = {
        day: write(tmp_path / f"L2A_{day}.tif", {"B04": ground(seed), "B08": ground(seed + 9)})
        for seed, day in enumerate(("2020-01-13", "20210630"))
    }
    catalogue, listing = listed(tmp_path)
    assert [scene.acquired for scene in listing.scenes] == [
        datetime(2020, 1, 13, tzinfo=UTC),
        datetime(2021, 6, 30, tzinfo=UTC),
    ]
    for scene, stack in zip(listing.scenes, stacks.values(), strict=True):
        assert (scene.level, scene.cloud_cover, scene.coverage) == ("L2A", 0.0, 1.0)
        assert (scene.grid.epsg, scene.grid.left, scene.grid.top) == (32631, 480000, 4690000)
        for band, truth in zip(("B04", "B08"), stack, strict=True):
            np.testing.assert_array_equal(stored(catalogue, scene, band), truth + 1000)


def test_a_file_a_band_by_a_pattern_and_coarser_bands(tmp_path: Path) -> None:
    fine, coarse = ground(1), ground(2, 64)
    at_20_m = Affine(20, 0, 480000, 0, -20, 4690000)
    write(tmp_path / "a" / "T31TDG_20200113T104411_B04.tif", {"?": fine})
    write(tmp_path / "a" / "T31TDG_20200113T104411_B11.tif", {"?": coarse}, transform=at_20_m)
    (tmp_path / "rasters.yaml").write_text('files: "*/T{tile}_{date}_{band}.tif"\nlevel: L1C\n')
    write(tmp_path / "other_2020-01-13.tif", {"B04": fine})
    catalogue, listing = listed(tmp_path, ("B04", "B11"))
    (scene,) = listing.scenes
    assert scene.acquired == datetime(2020, 1, 13, 10, 44, 11, tzinfo=UTC)
    assert scene.level == "L1C"
    np.testing.assert_array_equal(stored(catalogue, scene, "B04"), fine + 1000)
    sent = pickle.loads(pickle.dumps(catalogue))  # as tasks are to workers
    np.testing.assert_array_equal(stored(sent, scene, "B04"), fine + 1000)
    truth = coarse.repeat(2, 0).repeat(2, 1) + 1000
    np.testing.assert_array_equal(stored(catalogue, scene, "B11"), truth)


@pytest.mark.parametrize(
    ("numbers", "settings", "truth"),
    [
        (np.array([0, 1, 5000, 65535], np.uint16), "", [0, 1001, 6000, 65535]),
        (np.array([-300, 0, 1, 5000], np.int16), "nodata: -9999\n", [700, 1000, 1001, 6000]),
        (np.array([0, 1000, 1500, 900], np.uint16), "offset: -0.1\n", [0, 1000, 1500, 900]),
        (np.array([np.nan, -0.02, 0.0, 0.5], np.float32), "", [0, 800, 1000, 6000]),
        (
            np.array([0.0, 20, 50, 100], np.float32),
            "scale: 0.01\nnodata: 0\n",
            [0, 3000, 6000, 11000],
        ),
        (
            np.array([255, 10, 200, 0], np.uint8),
            "scale: 0.005\nnodata: 255\n",
            [0, 1500, 11000, 1000],
        ),
    ],
)
def test_what_numbers_mean(
    tmp_path: Path, numbers: npt.NDArray[np.generic], settings: str, truth: list[int]
) -> None:
    """The meaning of a cube: 0 no-data, 1000 no reflectance, 11000 all of it, 65535 saturated."""
    offset = "" if "offset" in settings else "offset: 0\n"
    (tmp_path / "rasters.yaml").write_text(f"level: L2A\n{settings}{offset}")
    layer = np.tile(numbers, (64, 16))
    write(tmp_path / "x_2020-01-13.tif", {"B04": layer})
    catalogue, listing = listed(tmp_path, ("B04",))
    np.testing.assert_array_equal(stored(catalogue, listing.scenes[0], "B04")[7, :4], truth)


def test_the_scale_and_offset_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "L2A_2020-01-13.tif"
    write(path, {"B04": ground() + np.uint16(1000)})
    with rasterio.open(path, "r+") as image:
        image.scales, image.offsets, image.nodata = (0.0001,), (-0.1,), 7
    catalogue, listing = listed(tmp_path, ("B04",))
    np.testing.assert_array_equal(stored(catalogue, listing.scenes[0], "B04"), ground() + 1000)


@pytest.mark.parametrize(
    ("kind", "scale", "offset", "numbers", "truth"),
    [
        (np.float32, 0.0001, -0.1, [1000, 2000, 9000], [1000, 2000, 9000]),
        (np.float32, 1.0, -0.1, [0.1, 0.2, 0.9], [1000, 2000, 9000]),
        (np.float32, 0.0001, 0.0, [1000, 2000, 9000], [2000, 3000, 10000]),
        (np.uint16, 1.0, -1000.0, [1000, 2000, 9000], [1000, 2000, 9000]),
        (np.uint16, 1.0, -0.1, [1000, 2000, 9000], [1000, 2000, 9000]),
        (np.uint16, 0.00005, -0.05, [1000, 2000, 9000], [1000, 1500, 5000]),
        (np.uint16, 0.0001, -1000.0, [1000, 2000, 9000], None),
        (np.float32, 1.0, -1000.0, [1000, 2000, 9000], None),
        (np.uint16, -1.0, 0.0, [1000, 2000, 9000], None),
        (np.float32, 1.0, math.nan, [0.1, 0.2, 0.9], None),
    ],
)
def test_scale_and_offset_are_a_pair(
    tmp_path: Path,
    kind: type[np.generic],
    scale: float,
    offset: float,
    numbers: list[float],
    truth: list[int] | None,
) -> None:
    """As GDAL has it: reflectance = number * scale + offset; what cannot be is refused."""
    path = tmp_path / "L2A_2020-01-13.tif"
    write(path, {"B04": np.tile(np.array(numbers).astype(kind), (30, 10))})
    with rasterio.open(path, "r+") as image:
        image.scales, image.offsets = (scale,), (offset,)
    catalogue, listing = listed(tmp_path, ("B04",))
    if truth is None:
        assert "give no reflectance" in listing.left_out[0].reason
        return
    assert list(stored(catalogue, listing.scenes[0], "B04")[7, :3]) == truth


def test_each_band_has_its_own_scale_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "L2A_2020-01-13.tif"
    write(path, dict.fromkeys(("B04", "B08", "B11"), ground()))
    with rasterio.open(path, "r+") as image:
        image.scales, image.offsets = (0.0001, 0.0002, 1.0), (-0.05, -0.1, 0.0)
    catalogue, listing = listed(tmp_path, ("B04", "B08", "B11"))
    expected = {"B04": ground() + 500, "B08": 2 * ground(), "B11": ground() + 1000}
    for band, truth in expected.items():
        np.testing.assert_array_equal(stored(catalogue, listing.scenes[0], band), truth.clip(1))


def test_a_raster_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret" / "x.tif"
    write(secret, {"B04": ground()})
    vrt = (
        '<VRTDataset rasterXSize="128" rasterYSize="128"><SRS>EPSG:32631</SRS>'
        "<GeoTransform>480000, 10, 0, 4690000, 0, -10</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><Description>B04</Description><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    for suffix in ("tif", "jp2", "nc"):
        folder = tmp_path / suffix
        folder.mkdir()
        (folder / f"L2A_2020-01-13.{suffix}").write_text(vrt)
        with pytest.raises(SourceError, match="cannot be opened"):
            RastersCatalogue(folder, ("B04",))


@pytest.mark.parametrize(
    ("value", "units", "moment"),
    [
        (1069824.0, "hours since 1900-01-01 00:00:0.0", datetime(2022, 1, 17, tzinfo=UTC)),
        (18274.5, "days since 1970-1-1", datetime(2020, 1, 13, 12, tzinfo=UTC)),
        (1.0, "seconds since 2020-01-13T10:44:10Z", datetime(2020, 1, 13, 10, 44, 11, tzinfo=UTC)),
        (1.0, "days since 2020-01-12 UTC", datetime(2020, 1, 13, tzinfo=UTC)),
        (1.0, "days since 2020-02-31", None),
        (1e99, "days since 2020-02-01", None),
        (math.nan, "days since 2020-02-01", None),
        (1.0, "months since 2020-01-01", None),
    ],
)
def test_times_of_netcdf(value: float, units: str, moment: datetime | None) -> None:
    arguments = {"t#units": units}, {"NETCDF_DIM_t": str(value)}, Path("x.nc")
    if moment is None:
        with pytest.raises(SourceError, match=r"x\.nc: t .* since "):
            _time_of(*arguments)
    else:
        assert _time_of(*arguments) == moment


def test_dates_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "L2A_20210231.tif", {"B04": ground()})
    with pytest.raises(SourceError, match="20210231 is no date; rename"):
        RastersCatalogue(tmp_path, ("B04",))
    (tmp_path / "rasters.yaml").write_text("dates: {L2A_20210231.tif: 2023-02-30}\n")
    with pytest.raises(SourceError, match=r"rasters\.yaml cannot be read"):
        RastersCatalogue(tmp_path, ("B04",))


def test_degrees_are_brought_to_the_zone_by_nearest_neighbour(tmp_path: Path) -> None:
    """Each 10 m pixel has the number of the pixel of degrees that its middle lies in."""
    numbers = np.arange(1, 40 * 50 + 1, dtype=np.uint16).reshape(40, 50)
    step, west, north = 0.0001, 2.80, 42.35
    degrees = {"crs": "EPSG:4326", "transform": Affine(step, 0, west, 0, -step, north)}
    write(tmp_path / "L2A_2020-01-13.tif", {"B04": numbers}, **degrees)
    (tmp_path / "rasters.yaml").write_text("offset: 0\n")
    catalogue, listing = listed(tmp_path, ("B04",))
    (scene,) = listing.scenes
    assert scene.grid.epsg == 32631
    assert scene.grid.left % 10 == scene.grid.top % 10 == 0
    got = stored(catalogue, scene, "B04")
    rows, columns = np.mgrid[: scene.grid.height, : scene.grid.width]
    x = scene.grid.left + 10 * columns + 5
    y = scene.grid.top - 10 * rows - 5
    longitude, latitude = transform("EPSG:32631", "EPSG:4326", x.ravel(), y.ravel())
    row = np.floor((north - np.array(latitude)) / step).astype(int).reshape(x.shape)
    col = np.floor((np.array(longitude) - west) / step).astype(int).reshape(x.shape)
    inside = (row >= 0) & (row < 40) & (col >= 0) & (col < 50)
    truth = np.where(inside, numbers[row.clip(0, 39), col.clip(0, 49)] + 1000, 0)
    assert (got == truth).mean() > 0.995  # the warp is exact to an eighth of a pixel
    assert set(got.ravel()) <= {0, *(numbers.ravel() + 1000)}


def test_clouds_by_classes_and_by_the_bands(tmp_path: Path) -> None:
    numbers, classes = ground(), np.full((128, 128), 4, np.uint16)
    classes[:32] = 9
    classes[32:48] = 3
    write(tmp_path / "a" / "L2A_2020-01-13.tif", {"B04": numbers, "SCL": classes})
    catalogue, listing = listed(tmp_path / "a", ("B04",))
    assert listing.scenes[0].cloud_cover == 25.0
    (flags,) = catalogue.masks(listing.scenes[0], [PixelWindow(0, 0, 64, 64)]) or []
    assert set(flags[:32].ravel()) == {CLOUD}
    assert set(flags[32:48].ravel()) == {SHADOW}
    white = ground()
    white[:64] = 6000
    dark = np.full_like(white, 300)
    dark[:64] = 6000
    layers = {"B02": dark, "B03": dark, "B04": dark, "B08": white}
    write(tmp_path / "b" / "L2A_2020-01-13.tif", layers)
    catalogue, listing = listed(tmp_path / "b", RGBN)
    assert listing.scenes[0].cloud_cover == 50.0
    assert catalogue.masks(listing.scenes[0], [PixelWindow(0, 0, 64, 64)]) is None


def test_an_offset_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    bright = np.full((128, 128), 4000, np.uint16)
    write(tmp_path / "L2A_2020-01-13.tif", {"B04": bright, "B08": bright})
    write(tmp_path / "L2A_2020-02-13.tif", {"B04": ground(), "B08": ground()})
    _, listing = listed(tmp_path)
    assert [entry.product for entry in listing.left_out] == ["L2A_2020-01-13"]
    assert "say offset: 0 or offset: -0.1 in" in listing.left_out[0].reason
    assert len(listing.scenes) == 1
    (tmp_path / "rasters.yaml").write_text("offset: 0\n")
    assert len(listed(tmp_path)[1].scenes) == 2


def test_a_hazy_date_among_clear_ones_has_no_offset_of_its_own(tmp_path: Path) -> None:
    """As in a real stack: the darkest ground at 1100 through haze is not taken for an offset."""
    hazy = {"B04": ground() // 3 + np.uint16(1000), "B11": ground() // 3 + np.uint16(1000)}
    write(tmp_path / "L2A_2020-01-13.tif", hazy)
    alone, listing = listed(tmp_path, ("B04", "B11"))
    np.testing.assert_array_equal(stored(alone, listing.scenes[0], "B04"), hazy["B04"])
    write(tmp_path / "L2A_2020-02-13.tif", {"B04": ground(), "B11": ground()})
    assert len(listed(tmp_path, ("B04", "B11"))[1].scenes) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("colour: red\n", "colour: Extra inputs"),
        ("scale: 0\n", "scale: .*greater than 0"),
        ("bands: [B04, B99]\n", "unknown bands"),
        ("level: L3\n", "level: "),
        ("offset: much\n", "offset"),
        ("offset: -1000\n", "offset"),
        ("offset: .nan\n", "offset"),
        ("bands: [B04]\n", "has 2 layers"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, settings: str, reason: str) -> None:
    write(tmp_path / "L2A_2020-01-13.tif", {"B04": ground(), "B08": ground()})
    (tmp_path / "rasters.yaml").write_text(settings)
    with pytest.raises(SourceError, match=reason):
        RastersCatalogue(tmp_path, ("B04",))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        RastersCatalogue(tmp_path / "nowhere", ("B04",))
    with pytest.raises(SourceError, match="no raster with a date"):
        RastersCatalogue(tmp_path, ("B04",))
    write(tmp_path / "2020-01-13.tif", {"B04": ground(), "B08": ground()})
    catalogue = RastersCatalogue(tmp_path, ("B04",))
    with pytest.raises(SourceError, match="no raster of tile 31TCJ; it holds 31TDG"):
        catalogue.scenes(TileId.parse("31TCJ"))
    with pytest.raises(SourceError, match="do not say whether they are of level"):
        catalogue.scenes(TILE)
    (tmp_path / "rasters.yaml").write_text("level: L2A\n")
    _, listing = listed(tmp_path, ("B04", "B12"))
    assert "band B12 is missing" in listing.left_out[0].reason
    shutil.copy(tmp_path / "2020-01-13.tif", tmp_path / "again_2020-01-13.tif")
    with pytest.raises(SourceError, match="both hold B04"):
        RastersCatalogue(tmp_path, ("B04",))


@pytest.mark.parametrize("tile", ["31TDG", "01KAB", "60HXE", "33XWJ", "19KDQ", "30NYM", "22MGV"])
def test_the_tile_of_a_point(tile: str) -> None:
    """Against an independent implementation of the military grid."""
    known = TileId.parse(tile)
    left, top = known.upper_left()
    x, y = left + 41_000, top - 57_000
    assert tile_at(known.epsg, x, y) == known
    if tile == "01KAB":
        return  # beyond the 180th meridian, where this one counts by another zone
    theirs = mgrs.MGRS().UTMToMGRS(
        known.zone, "S" if known.southern else "N", x, y, MGRSPrecision=0
    )
    assert tile_at(known.epsg, x, y).name == theirs.zfill(5)


def test_the_made_world_exported(made_world: World, safe: Remembering, tmp_path: Path) -> None:
    """Products as rasters of digital numbers: the same pixels, the offset found in them."""
    scenes = [scene for scene in safe.scenes(TILES[0]).scenes if scene.cloud_cover <= 2][:3]
    assert {scene.add_offset["B04"] for scene in scenes} == {0, -1000}
    for scene in scenes:
        layers = {band: made_world.numbers(scene.product, band) for band in RGBN}
        corner = Affine(10, 0, scene.grid.left, 0, -10, scene.grid.top)
        path = tmp_path / scene.product / f"{scene.product}.tif"  # a folder each: they mix offsets
        write(path, layers, crs=f"EPSG:{scene.grid.epsg}", transform=corner)
        catalogue, listing = listed(path.parent, RGBN, TILES[0])
        assert listing.scenes[0].grid == scene.grid
        for band in RGBN:
            dn = safe.read(scene, band, WINDOWS)[0]
            truth = stored_from_dn(dn, scene.add_offset[band], scene.quantification)
            np.testing.assert_array_equal(stored(catalogue, listing.scenes[0], band), truth)


@pytest.mark.realdata
def test_the_offset_of_real_chips_is_recognised(crossmi_data: Path, tmp_path: Path) -> None:
    """Three of five carry it, two do not; all of them in one folder each, with 13 bands."""
    names = tuple(band.name for band in BANDS)
    carried = {"282D_485L_3_3": True, "433D_629L_3_1": True, "609U_541L_3_0": True}
    carried |= {"38D_378R_2_3": False, "637U_59R_1_3": False}
    for chip, with_offset in carried.items():
        source = crossmi_data / "s2" / "terramind_examples" / f"S2L1C__{chip}.tif"
        folder = tmp_path / chip
        folder.mkdir()
        shutil.copyfile(source, folder / source.name)
        listed_bands = ", ".join(names)
        (folder / "rasters.yaml").write_text(
            f"level: L1C\nbands: [{listed_bands}]\ndates: {{{source.name}: 2023-06-01}}\n"
        )
        catalogue = RastersCatalogue(folder, names)
        (tile,) = catalogue.tiles()
        (scene,) = catalogue.scenes(TileId.parse(tile)).scenes
        with rasterio.open(source) as image:
            for index, band in enumerate(names, start=1):
                got = reflectance_from_stored(stored(catalogue, scene, band))
                assert np.nanmin(got) > -0.02
                dn = image.read(index)
                low = np.percentile(dn[dn > 0], 5) / 10_000 - (0.1 if with_offset else 0)
                assert np.nanpercentile(got, 5) == pytest.approx(low, abs=0.01)


@pytest.mark.realdata
def test_a_real_stack_of_geotiffs_becomes_a_cube(crossmi_data: Path, tmp_path: Path) -> None:
    """Dates in degrees, one all cloud: the numbers that hold the centre of each pixel in UTM."""
    files = sorted((crossmi_data / "s2" / "eotdl_boadella").glob("*.tif"))[1::3]
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    # One date is all cloud, which does not tell whether 1000 was added.
    said = f"level: L2A\nbands: [{', '.join(B12)}]\noffset: 0\n"
    (tmp_path / "rasters.yaml").write_text(said)
    bands = ("B04", "B8A")
    request = Request((TILE,), bands, dates=4, max_cloud=100, regions=30, region_size=64)
    cube = built(request, tmp_path, tmp_path / "cube.zarr")
    days = cube.acquired[0].astype("datetime64[D]").tolist()
    assert [f"Boadella_{day}" for day in days] == [file.stem for file in files]
    assert len(cube) >= 8
    got = reflectance_from_stored(cube.read(np.arange(len(cube))))
    for date, file in enumerate(files):
        with rasterio.open(file) as raster:
            for index, band in enumerate(bands):
                in_degrees = raster.read(1 + B12.index(band))
                for patch in range(len(cube)):
                    same(got[patch, date, index], nearest(in_degrees, raster, cube, patch))


def nearest(
    numbers: npt.NDArray[np.int16], raster: rasterio.DatasetReader, cube: Cube, patch: int
) -> npt.NDArray[np.int16]:
    """Of each 10 m pixel of a patch the number of the raster that holds its centre, 0 outside."""
    east = cube.x[patch] - 315 + 10 * np.arange(64)
    north = cube.y[patch] + 315 - 10 * np.arange(64)
    centres = [axis.ravel() for axis in np.meshgrid(east, north)]
    x, y = transform(f"EPSG:{cube.epsg[patch]}", raster.crs, *centres)
    left, top = raster.transform.c, raster.transform.f
    cols = np.floor((np.array(x) - left) / raster.transform.a).astype(int)
    rows = np.floor((np.array(y) - top) / raster.transform.e).astype(int)
    inside = (rows >= 0) & (rows < raster.height) & (cols >= 0) & (cols < raster.width)
    found = np.zeros(64 * 64, np.int16)
    found[inside] = numbers[rows[inside], cols[inside]]
    return found.reshape(64, 64)


@pytest.mark.realdata
def test_a_real_stack_of_netcdf_becomes_a_cube(crossmi_data: Path, tmp_path: Path) -> None:
    """118 looks in one file, read by h5py as they stand."""
    name = "S2_L2A_10m_00002806639B424A_32631_2017-08-01_2018-11-30.nc"
    (tmp_path / name).symlink_to(crossmi_data / "s2" / "worldcereal_timeseries" / name)
    tile = TileId.parse("31UDS")
    request = Request((tile,), RGBN, dates=20, max_cloud=20, regions=1, region_size=64)
    cube = built(request, tmp_path, tmp_path / "cube.zarr")
    got = reflectance_from_stored(cube.read(np.arange(1)))
    with h5py.File(tmp_path / name) as file:
        since = np.datetime64("2017-08-04T10:53:28")
        assert file["timestamp"].attrs["units"] == "seconds since 2017-08-04 10:53:28"
        moments = since + file["timestamp"][:].astype("timedelta64[s]")
        assert (np.diff(file["x"][:]) == 10).all()
        assert (np.diff(file["y"][:]) == -10).all()
        assert (file["x"][0] - 5, file["y"][0] + 5) == (cube.x[0] - 320, cube.y[0] + 320)
        for date, moment in enumerate(cube.acquired[0]):
            (look,) = np.flatnonzero(moments == moment)
            for index, band in enumerate(cube.bands):
                same(got[0, date, index], file[band][look])


def built(request: Request, folder: Path, out: Path) -> Cube:
    catalogue = RastersCatalogue(folder, request.bands)
    build(request, catalogue, out, workers=1, progress=lambda *_: None)
    return open_cube(out)


def same(got: npt.NDArray[np.float32], numbers: npt.NDArray[np.generic]) -> None:
    """Reflectance is 1/10,000 of the numbers, and there is none where they are 0."""
    meant = np.where(numbers == 0, np.nan, numbers.astype(float) / 10_000)
    np.testing.assert_allclose(got, meant, atol=1e-6)
