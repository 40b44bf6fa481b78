"""Made products against their truth: pixels, metadata, seasons, clouds, swaths, repeatability."""

import hashlib
import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from s2pairs.bands import BANDS, band
from s2pairs.camera import CLOUD, NO_DATA, SHADOW, render, through_optics
from s2pairs.errors import S2PairsError
from s2pairs.landscape import CLASSES, Ground, Kind, Window, ground
from s2pairs.noise import Floats
from s2pairs.overpasses import Calendar, Overpass, orbits, overpasses
from s2pairs.simulate import Simulation, simulate
from s2pairs.sky import IN_CLOUD, air_of, local_time, make_clouds, opacity, shadow_of, sun_at
from s2pairs.tiles import TileId

TILE = TileId.parse("31TCJ")
SIZE = 180
PERIOD: dict[str, Any] = {"start": date(2020, 1, 1), "end": date(2021, 12, 31)}
RED_AND_NIR = ("B04", "B08")


def run(out: Path, **changes: Any) -> Simulation:
    wanted: dict[str, Any] = {"size": SIZE, "dates": 6, "cloudy_dates": 2, "bands": RED_AND_NIR}
    tiles = changes.pop("tiles", [TILE])
    return simulate(tiles, out, **(wanted | PERIOD | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return run(tmp_path_factory.mktemp("made"))


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> npt.NDArray[Any]:
    with rasterio.open(path) as image:
        return np.asarray(image.read(1))


def band_of(product: Path, name: str) -> npt.NDArray[np.uint16]:
    return read(next(product.glob(f"GRANULE/*/IMG_DATA/*_{name}.jp2")))


def clouds_of(made: Simulation, product: Path) -> npt.NDArray[np.uint8]:
    return read(made.out / "truth" / "clouds" / f"{product.name.removesuffix('.SAFE')}.tif")


def cover_of(product: Path) -> float:
    return float(
        ET.parse(product / "MTD_MSIL1C.xml").getroot().findtext(".//Cloud_Coverage_Assessment", "")
    )


# The whole run.


def test_the_same_parameters_make_the_same_bytes(made: Simulation, tmp_path: Path) -> None:
    again = run(tmp_path, workers=3)
    assert again.written == 8
    assert tree(again.out) == tree(made.out)
    assert again.size_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())


def test_another_seed_makes_other_bytes(made: Simulation, tmp_path: Path) -> None:
    other = run(tmp_path, seed=1, dates=1, cloudy_dates=0)
    landcover = f"truth/landcover/{TILE}.tif"
    assert np.mean(read(tmp_path / landcover) == read(made.out / landcover)) < 0.8
    assert other.written == 1


def test_a_run_resumes_and_makes_only_what_is_missing(made: Simulation, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made.out, folder)
    removed = sorted(folder.glob("*.SAFE"))[3]
    shutil.rmtree(removed)
    (folder / f".{removed.name}.partial").mkdir()  # what a killed run leaves behind
    steps: list[tuple[int, int]] = []
    again = run(folder, progress=lambda done, total: steps.append((done, total)))
    assert again.written == 1
    assert steps == [(7, 8), (8, 8)]
    assert tree(folder) == tree(made.out)
    whole = run(folder)
    assert whole.written == 0
    assert [path.name for path in whole.products] == [path.name for path in made.products]


def test_other_parameters_in_the_same_folder_are_an_error(made: Simulation, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    shutil.copy(made.out / "truth" / "simulation.json", truth)
    with pytest.raises(S2PairsError, match=r"seed 0 not 1.*another folder"):
        run(tmp_path, seed=1)
    with pytest.raises(S2PairsError, match="size 180 not 120"):
        run(tmp_path, size=120)
    assert [path.name for path in tmp_path.iterdir()] == ["truth"]


def test_impossible_requests_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for changes, message in (
        ({"size": 181, "bands": ("B05",)}, "multiple of 2"),
        ({"size": 182, "bands": ("B01",)}, "multiple of 6"),
        ({"size": 10_986}, "at most 10980"),
        ({"tiles": []}, "different tiles"),
        ({"tiles": [TILE, TILE]}, "different tiles"),
        ({"dates": 0}, "at least 1"),
        ({"end": date(2020, 2, 1)}, "ask for fewer dates or a longer period"),
        ({"bands": ("B14",)}, "unknown band"),
    ):
        with pytest.raises(S2PairsError, match=message):
            run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


# Products and truth.


def test_products_and_truth_lie_on_the_grid_of_the_tile(made: Simulation) -> None:
    left, top = TILE.upper_left()
    images = [path for product in made.products for path in product.rglob("IMG_DATA/*.jp2")]
    assert len(images) == 8 * 2
    for path in (*images, *made.truth):
        with rasterio.open(path) as image:
            assert tuple(image.transform)[:6] == (10, 0, left, 0, -10, top)
            assert (image.height, image.width) == (SIZE, SIZE)
            assert image.crs.to_epsg() == 32631


def test_the_landcover_map_names_its_classes(made: Simulation) -> None:
    with rasterio.open(made.out / "truth" / "landcover" / f"{TILE}.tif") as image:
        assert json.loads(image.tags(1)["classes"]) == list(CLASSES)
        assert image.dtypes == ("uint8",)
        assert image.colormap(1)[0] != image.colormap(1)[1]
        land = ground(Window.of_tile(TILE, SIZE, SIZE), TILE.epsg, 0)
        np.testing.assert_array_equal(image.read(1), land.landcover)
    np.testing.assert_array_equal(read(made.out / "truth/parcels" / f"{TILE}.tif"), land.parcel)


def test_the_cloud_assessment_is_the_true_share_of_valid_pixels(made: Simulation) -> None:
    covers = []
    for product in made.products:
        sky = clouds_of(made, product)
        assert set(np.unique(sky)) <= {0, CLOUD, SHADOW, NO_DATA}
        cover = 100 * np.mean(sky[sky != NO_DATA] == CLOUD)
        assert cover_of(product) == pytest.approx(cover, abs=5e-5)
        covers.append(cover)
    clear, cloudy = sorted(covers)[:6], sorted(covers)[6:]
    assert max(clear) <= 1.5
    assert min(cloudy) > 5
    assert min(clear) == 0
    assert any(cover > 0.1 for cover in clear)  # tufts below the limit


def test_no_data_is_zero_and_nothing_else_is(made: Simulation) -> None:
    empty = []
    for product in made.products:
        outside = clouds_of(made, product) == NO_DATA
        for name in RED_AND_NIR:
            np.testing.assert_array_equal(band_of(product, name) == 0, outside)
        empty.append(outside.mean())
    half = [share for share in empty if share > 0]
    assert len(half) == 1  # one clear date in six
    assert 0.3 < half[0] < 0.65
    assert len(empty) == 8


def test_the_truth_says_how_far_a_product_is_out_of_register(made: Simulation) -> None:
    shifts = []
    for product in made.products:
        name = f"{product.name.removesuffix('.SAFE')}.tif"
        with rasterio.open(made.out / "truth" / "clouds" / name) as image:
            tags = image.tags(1)
        shifts.append((float(tags["shift_east_px"]), float(tags["shift_south_px"])))
    calendar = Calendar(dates=6, cloudy=2, seed=0, **PERIOD)
    assert sorted(shifts) == sorted(each.shift for each in overpasses(TILE, calendar))
    assert 0.1 < np.std(shifts) < 0.5
    assert np.abs(shifts).max() <= 0.5


def test_both_kinds_of_baselines_occur(made: Simulation) -> None:
    offsets = []
    for product in made.products:
        root = ET.parse(product / "MTD_MSIL1C.xml").getroot()
        values = {element.text for element in root.iter("RADIO_ADD_OFFSET")}
        baseline = root.findtext(".//PROCESSING_BASELINE", "")
        assert values == ({"-1000"} if baseline >= "04.00" else set())
        offsets.append(bool(values))
    assert 2 <= sum(offsets) <= 6


# One overpass.


@pytest.fixture(scope="module")
def window() -> Window:
    """A place where every class but roads covers at least 5%."""
    return Window(30_063, -488_997, 240, 240)


@pytest.fixture(scope="module")
def land(window: Window) -> Ground:
    return ground(window.grown(1), TILE.epsg, 0)


def overpass_on(day: date, haze: float = 0.1) -> Overpass:
    """The clear overpass of that day or one of the next four."""
    calendar = Calendar(dates=1, cloudy=0, start=day, end=day + timedelta(days=4), seed=0)
    return replace(overpasses(TILE, calendar)[0], haze=haze, baseline="02.09")


def ndvi(overpass: Overpass, window: Window, land: Ground) -> Floats:
    numbers, _ = render(overpass, window, land, RED_AND_NIR, 0)
    red, nir = (numbers[name].astype(np.float32) for name in RED_AND_NIR)
    return np.asarray((nir - red) / (nir + red))


def test_crops_follow_their_calendars(window: Window, land: Ground) -> None:
    inner = land.landcover[1:-1, 1:-1]
    mean = {}
    for day in (date(2020, 5, 12), date(2020, 8, 22)):
        index = ndvi(overpass_on(day), window, land)
        mean[day.month] = {
            name: float(index[inner == number].mean()) for number, name in enumerate(CLASSES)
        }
    may, august = mean[5], mean[8]
    assert may["winter_crop"] > may["summer_crop"] + 0.2
    assert august["summer_crop"] > august["winter_crop"] + 0.2
    for month in (may, august):
        assert month["forest"] > 0.4
        assert month["water"] < 0
        assert month["built_up"] < month["forest"] - 0.1


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.37, -0.5), (-0.12, 0.2)])
def test_the_optics_move_a_ramp_by_the_shift_and_keep_a_level(shift: tuple[float, float]) -> None:
    rows, columns = np.mgrid[0:9, 0:7].astype(np.float32)
    moved = through_optics(3 * columns - 5 * rows + 40, shift)
    expected = 3 * (columns + shift[0]) - 5 * (rows + shift[1]) + 40
    np.testing.assert_allclose(moved, expected[1:-1, 1:-1], atol=2e-5)


def test_a_product_out_of_register_shows_the_ground_beside(window: Window, land: Ground) -> None:
    overpass = overpass_on(date(2020, 6, 20))
    scenes = [
        render(replace(overpass, shift=shift), window, land, ("B08",), 0)[0]["B08"].astype(float)
        for shift in ((0.0, 0.0), (0.3, -0.2))
    ]
    south, east = np.gradient(scenes[0])
    slopes = np.stack([east.ravel(), south.ravel()], axis=1)
    found, *_ = np.linalg.lstsq(slopes, (scenes[1] - scenes[0]).ravel(), rcond=None)
    np.testing.assert_allclose(found, (0.3, -0.2), atol=0.08)


def test_south_of_the_equator_the_seasons_are_turned_round(window: Window, land: Ground) -> None:
    inner = land.landcover[1:-1, 1:-1]
    winter_crop = inner == CLASSES.index("winter_crop")
    south = TileId.parse("21HUB")
    by_month = {
        day.month: float(
            ndvi(replace(overpass_on(day), tile=south), window, land)[winter_crop].mean()
        )
        for day in (date(2020, 5, 12), date(2020, 11, 10))
    }
    assert by_month[11] > by_month[5] + 0.2


def test_an_offset_changes_the_numbers_and_not_the_reflectance(
    window: Window, land: Ground
) -> None:
    bands = ("B08", "B12")
    water = land.landcover[1:-1:2, 1:-1:2] == CLASSES.index("water")
    darkest = []
    for month in (4, 6, 8):
        overpass = overpass_on(date(2020, month, 20), haze=0.03)
        before, _ = render(overpass, window, land, bands, 0)
        after, _ = render(replace(overpass, baseline="05.00"), window, land, bands, 0)
        for name in bands:
            old, new = before[name].astype(int), after[name].astype(int) - 1000
            # Old products cannot say a reflectance of 0 or less: they stop at 1.
            np.testing.assert_array_equal(old, np.maximum(new, 1))
        darkest.append(int(after["B12"][water].min()))
    assert min(darkest) > 0
    assert min(darkest) < 1000  # slightly negative reflectance, and valid


def test_thirteen_bands_come_at_their_resolution_and_do_not_depend_on_the_choice(
    window: Window, land: Ground
) -> None:
    overpass = overpass_on(date(2020, 7, 20))
    names = tuple(each.name for each in BANDS)
    every, _ = render(overpass, window, land, names, 0)
    few, _ = render(overpass, window, land, RED_AND_NIR, 0)
    for name in names:
        side = window.height * 10 // band(name).resolution_m
        assert every[name].shape == (side, side)
    for name in RED_AND_NIR:
        np.testing.assert_array_equal(every[name], few[name])
    # Cirrus sees almost nothing of the ground; EuroSAT's B10 has a mean near 12.
    assert every["B10"].mean() < 40
    # Neighbours in the spectrum agree where their pixels cover the same ground.
    coarse = every["B08"].reshape(120, 2, 120, 2).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), every["B8A"].ravel())[0, 1] > 0.97


def test_dates_change_pixels_more_than_noise_does_and_places_stay(
    window: Window, land: Ground
) -> None:
    summer, winter = (
        render(overpass_on(day, haze=haze), window, land, ("B04",), 0)[0]["B04"].astype(float)
        for day, haze in ((date(2020, 7, 10), 0.08), (date(2021, 1, 10), 0.4))
    )
    crops = np.isin(land.landcover[1:-1, 1:-1], (3, 4))
    assert abs(summer[crops].mean() - winter[crops].mean()) > 150
    # Which fields are bright is no guide from one date to the other, but borders stay in place.
    assert np.corrcoef(summer[crops], winter[crops])[0, 1] < 0.5
    edges = [np.hypot(*np.gradient(np.log(image))).ravel() for image in (summer, winter)]
    assert np.corrcoef(*edges)[0, 1] > 0.4


# Sun, air and clouds.


def test_the_sun_stands_where_astronomy_puts_it() -> None:
    # On the equator at an equinox the sun is as far from the zenith as from noon: 22.5 degrees.
    equinox = sun_at(0.0, date(2021, 3, 20))
    assert equinox.zenith == pytest.approx(22.5, abs=0.5)
    assert equinox.azimuth == pytest.approx(90, abs=3)
    june, december = (sun_at(45.0, date(2021, month, 21)) for month in (6, 12))
    assert june.zenith < 35
    assert december.zenith > 68
    assert june.azimuth < december.azimuth < 180
    # Between tropics and pole the swath is passed later in the north than in the south.
    assert local_time(60.0) > local_time(0.0) == 10.5 > local_time(-60.0)
    assert sun_at(-45.0, date(2021, 12, 21)).azimuth < 90


@pytest.mark.realdata
def test_the_sun_agrees_with_genuine_products(crossmi_data: Path) -> None:
    checked = 0
    for path in (crossmi_data / "safe_metadata").glob("*/GRANULE/*/MTD_TL.xml"):
        root = ET.parse(path).getroot()
        mean = root.find(".//Mean_Sun_Angle")
        assert mean is not None
        zenith, azimuth = (float(mean.findtext(f"{n}_ANGLE", "")) for n in ("ZENITH", "AZIMUTH"))
        tile = path.parts[-2].split("_")[1]
        if tile == "T33XWJ":
            continue  # at 78 degrees north the swath is passed at other hours
        from s2pairs.overpasses import centre

        latitude, _ = centre(TileId.parse(tile))
        ours = sun_at(latitude, datetime.fromisoformat(root.findtext(".//SENSING_TIME", "")).date())
        assert ours.zenith == pytest.approx(zenith, abs=2)
        assert ours.azimuth == pytest.approx(azimuth, abs=4)
        checked += 1
    assert checked == 3


def test_orbits_are_those_of_genuine_products() -> None:
    for spacecraft, when, absolute, relative in (
        ("S2A", datetime(2020, 7, 17, 22, 19, 41, tzinfo=UTC), 26481, 29),
        ("S2A", datetime(2023, 8, 21, 22, 19, 41, tzinfo=UTC), 42640, 29),
        ("S2A", datetime(2021, 9, 8, 4, 27, 1, tzinfo=UTC), 32448, 133),
        ("S2B", datetime(2022, 4, 13, 15, 7, 59, tzinfo=UTC), 26649, 25),
    ):
        assert orbits(spacecraft, when) == (absolute, relative)


def test_overpasses_keep_the_rhythm_of_the_mission() -> None:
    calendar = Calendar(dates=12, cloudy=4, seed=0, **PERIOD)
    here, neighbour = (overpasses(TileId.parse(name), calendar) for name in ("31TCJ", "31TCH"))
    assert len(here) == 16
    days = [each.acquired.toordinal() for each in here]
    steps = np.diff(days)
    assert (steps % 5 == 0).all()
    assert steps.min() >= 30  # regular: 730 days by 16
    assert steps.max() <= 60
    assert len({each.relative_orbit for each in here}) == 1
    assert {each.spacecraft for each in here} == {"S2A", "S2B"}
    shared = [(each.acquired.date(), each.cloud_share, each.empty) for each in here]
    assert shared == [(each.acquired.date(), each.cloud_share, each.empty) for each in neighbour]
    assert sum(each.cloud_share > 0.05 for each in here) == 4
    assert sum(each.empty != 0 and each.cloud_share < 0.05 for each in here) == 2
    assert all(each.generated > each.acquired for each in here)


def test_haze_and_low_sun_brighten_the_blue_most() -> None:
    bands = ("B02", "B04", "B08", "B12")
    high, low = sun_at(45, date(2021, 6, 21)), sun_at(45, date(2021, 12, 21))
    for sun in (high, low):
        clean, hazy = air_of(sun, 0.05, bands), air_of(sun, 0.5, bands)
        assert (np.diff(hazy.haze) < 0).all()
        assert (np.diff(clean.rayleigh) < 0).all()
        assert (hazy.haze > clean.haze).all()
        assert (hazy.transmission < clean.transmission).all()
    # Clean air over black ground in B02: about 0.07 at 40 degrees, as in atmospheric tables.
    assert 0.05 < air_of(high, 0, bands).rayleigh[0] < 0.09
    assert air_of(low, 0.1, bands).rayleigh[0] > air_of(high, 0.1, bands).rayleigh[0]


def test_shadows_lie_away_from_the_sun(window: Window) -> None:
    day = date(2020, 4, 1)
    clouds = make_clouds(window, np.ones((120, 120), bool), 0.2, 5, day)
    sun = sun_at(45.0, day)
    cloud, shadow = opacity(clouds, window)[0], shadow_of(clouds, sun, window)
    assert np.mean(cloud > IN_CLOUD) == pytest.approx(0.2, abs=0.01)
    reach = clouds.height_m * np.tan(np.radians(sun.zenith)) / 10
    south_east = np.array([-np.cos(np.radians(sun.azimuth)), np.sin(np.radians(sun.azimuth))])
    rows, columns = np.rint(reach * south_east).astype(int)  # from a shadow to its cloud
    assert rows > 0
    assert columns > 0
    np.testing.assert_array_equal(shadow[:-rows, :-columns], cloud[rows:, columns:])


def test_clouds_brighten_and_shadows_darken(window: Window, land: Ground) -> None:
    clear = overpass_on(date(2020, 6, 1))
    covered = replace(clear, cloud_share=0.3)
    before, _ = render(clear, window, land, ("B04", "B08"), 0)
    after, sky = render(covered, window, land, ("B04", "B08"), 0)
    for name in RED_AND_NIR:
        change = after[name].astype(float) - before[name].astype(float)
        assert change[sky == CLOUD].mean() > 1000
        assert change[sky == SHADOW].mean() < -100
    assert abs(np.mean(sky == CLOUD) - 0.3) < 0.02


def test_kinds_and_classes_agree() -> None:
    nothing = np.zeros(len(Kind), np.uint8)
    every: Any = [np.array(list(Kind), np.uint8), *[nothing] * 6]
    made = dict(zip(Kind, Ground(*every).landcover.tolist(), strict=True))
    assert CLASSES[made[Kind.WATER]] == "water"
    assert {CLASSES[made[kind]] for kind in (Kind.WHEAT, Kind.RAPESEED)} == {"winter_crop"}
    assert {CLASSES[made[kind]] for kind in (Kind.MAIZE, Kind.SUNFLOWER)} == {"summer_crop"}
    assert set(made.values()) == set(range(len(CLASSES)))
