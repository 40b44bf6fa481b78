"""Radiometric offsets of STAC items against the pixels, and names of their assets."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
from affine import Affine

from s2pairs.bands import BANDS as ALL_BANDS
from s2pairs.errors import SceneError
from s2pairs.masks import from_scene_classes
from s2pairs.scenes import PixelWindow
from s2pairs.sources.offsets import confirmed, settled, witnessed
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.stac_assets import band_asset
from tests.s2pairs.made_world import BANDS, TILES, World
from tests.s2pairs.stac_world import LAND, QUICK, WANTED, api_of, cog_item, over_http

WITH = {"scale": 0.0001, "offset": -0.1}
APPLIED = "earthsearch:boa_offset_applied"
SNOW = np.full((512, 512), 6000, np.uint16)


@pytest.mark.parametrize(
    ("dn", "changes", "offset"),
    [
        (LAND + np.uint16(1000), {"scaling": WITH}, -1000),
        (LAND + np.uint16(1000), {"scaling": WITH, APPLIED: False}, -1000),
        (LAND, {"scaling": WITH, APPLIED: False}, 0),  # 1000 was taken away, the item denies it
        (LAND, {"scaling": WITH, APPLIED: True}, 0),
        (LAND + np.uint16(1000), {"scaling": {"scale": 0.0001, "offset": 0}}, -1000),
        (LAND, {}, 0),
        (LAND + np.uint16(1000), {}, -1000),
        (SNOW, {"scaling": WITH}, -1000),  # the pixels do not tell, what is said agrees
        (SNOW, {"scaling": WITH, APPLIED: True}, None),  # and here it does not
    ],
)
def test_offsets_of_items_against_the_pixels(
    tmp_path: Path, dn: npt.NDArray[np.uint16], changes: dict[str, object], offset: int | None
) -> None:
    place = cog_item(tmp_path / "x", dn, **changes)
    catalogue = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK)
    listing = catalogue.scenes(TILES[0])
    if offset is None:
        assert "cannot be told" in listing.left_out[0].reason
        assert APPLIED in listing.left_out[0].reason
        return
    (scene,) = listing.scenes
    assert set(scene.add_offset.values()) == {offset}
    (read,) = catalogue.read(scene, "B08", [PixelWindow(7, 9, 64, 70)])
    np.testing.assert_array_equal(read, dn[7:71, 9:79])


@pytest.mark.realdata
def test_the_offset_is_seen_in_real_pixels(crossmi_data: Path) -> None:
    """By 13 bands and by four; two of Level-2A carry none though their Level-1C does."""
    folder = crossmi_data / "s2" / "terramind_examples"
    every = {"L1C": [band.name for band in ALL_BANDS]}
    every["L2A"] = [name for name in every["L1C"] if name != "B10"]
    expected = {
        "L1C": {"282D": -1000, "433D": -1000, "609U": -1000, "38D": 0, "637U": 0},
        "L2A": {"282D": 0, "433D": -1000, "609U": 0, "38D": 0, "637U": 0},
    }
    for level, chips in expected.items():
        for chip, offset in chips.items():
            (path,) = folder.glob(f"S2{level}__{chip}_*.tif")
            with rasterio.open(path) as image:
                stack = image.read().astype(np.uint16)
            samples = dict(zip(every[level], stack, strict=True))
            assert witnessed(samples, level) == offset, (level, chip)
            four = {name: samples[name] for name in BANDS}
            assert witnessed(four, level) in (offset, None), (level, chip)


def test_claims_that_agree_are_kept_as_they_are() -> None:
    odd = {"its own metadata": {"B04": -1500, "B08": -1000}}
    samples = {"B04": LAND + np.uint16(1500), "B08": LAND + np.uint16(1000)}
    assert settled(odd, samples, "L1C") == odd["its own metadata"]


def test_the_metadata_of_a_product_bind_unless_several_bands_prove_them_wrong() -> None:
    """One band in shadow may be less than -3 %; two that are so have had nothing added."""
    own = dict.fromkeys(BANDS, -1000)
    dark = LAND + np.uint16(1000)
    dark[:10] = 500
    one = {name: dark if name == "B08" else LAND + np.uint16(1000) for name in BANDS}
    assert confirmed(own, one, "L2A") == own
    assert settled({"who": own, "another": own}, one, "L2A") == own
    two = {name: dark if name in ("B08", "B04") else LAND + np.uint16(1000) for name in BANDS}
    with pytest.raises(SceneError, match="would make reflectance negative"):
        confirmed(own, two, "L2A")
    assert set(settled({"who": own, "another": own}, two, "L2A").values()) == {0}
    none = dict.fromkeys(BANDS, 0)
    hazy = dict.fromkeys(BANDS, LAND + np.uint16(1000))
    assert confirmed(none, hazy, "L2A") == none


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("B04", {}),
        ("B4", {}),
        ("B04_10m", {}),
        ("red", {}),
        ("anything", {"eo:bands": [{"name": "B04", "common_name": "red"}]}),
        ("anything", {"bands": [{"name": "x", "eo:common_name": "red"}]}),
    ],
)
def test_names_of_assets(key: str, fields: dict[str, Any]) -> None:
    item = pystac.Item("x", None, None, datetime(2020, 1, 1, tzinfo=UTC), {})
    picture = {"eo:bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}]}
    item.add_asset("visual", pystac.Asset("visual.tif", extra_fields=picture))
    with pytest.raises(SceneError, match="band B04 is missing"):
        band_asset(item, "B04")
    item.add_asset(key, pystac.Asset("it.tif", extra_fields=fields))
    assert band_asset(item, "B04").href == "it.tif"


def test_assets_of_the_other_level_are_refused(made_world: World) -> None:
    """As some items of Level-1C had them."""

    def change(item: dict[str, Any]) -> dict[str, Any]:
        item["assets"]["red"]["href"] = f"{api.url}/files/sentinel-s2-l2a/B04.jp2"
        return item

    with api_of(made_world) as (api, server):
        api.change = change
        reasons = [entry.reason for entry in over_http(server).scenes(TILES[0]).left_out]
        assert all("the item is L1C, but its B04 is" in reason for reason in reasons)
        assert len(reasons) == 7


@pytest.mark.parametrize("fault", ["cut short", "elsewhere", "missing"])
def test_a_scene_with_a_broken_classification_is_left_out(tmp_path: Path, fault: str) -> None:
    place = cog_item(tmp_path / "x", LAND)
    collection = json.loads(place.read_text())
    collection["features"][0]["assets"]["scl"] = {"href": "./SCL.tif"}
    place.write_text(json.dumps(collection))
    path = place.parent / "SCL.tif"
    left, top = TILES[0].upper_left()
    corner = Affine(20, 0, left + 20 * (fault == "elsewhere"), 0, -20, top)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 256, "width": 256}
    crs = f"EPSG:{TILES[0].epsg}"
    with rasterio.open(path, "w", **profile, crs=crs, transform=corner) as image:
        image.write(np.full((256, 256), 4, np.uint8), 1)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:30_000])
    elif fault == "missing":
        path.unlink()
    listing = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK).scenes(TILES[0])
    assert listing.scenes == ()
    assert "SCL.tif" in listing.left_out[0].reason


def test_the_scene_classification_of_an_item(tmp_path: Path) -> None:
    place = cog_item(tmp_path / "x", LAND)
    collection = json.loads(place.read_text())
    collection["features"][0]["assets"]["scl"] = {"href": "./SCL.tif"}
    place.write_text(json.dumps(collection))
    left, top = TILES[0].upper_left()
    classes = np.random.default_rng(1).integers(0, 12, (256, 256)).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 256, "width": 256}
    corner = Affine(20, 0, left, 0, -20, top)
    crs = f"EPSG:{TILES[0].epsg}"
    with rasterio.open(
        place.parent / "SCL.tif", "w", **profile, crs=crs, transform=corner
    ) as image:
        image.write(classes, 1)
    catalogue = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK)
    (scene,) = catalogue.scenes(TILES[0]).scenes
    (flags,) = catalogue.masks(scene, [PixelWindow(10, 20, 64, 64)]) or []
    truth = from_scene_classes(classes.repeat(2, 0).repeat(2, 1)[10:74, 20:84])
    np.testing.assert_array_equal(flags, truth)
