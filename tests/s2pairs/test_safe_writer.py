"""Products of the writer against rasterio, against closed forms and against genuine metadata."""

import hashlib
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from s2pairs.bands import BANDS, band
from s2pairs.errors import S2PairsError
from s2pairs.safe_metadata import sun_distance_correction
from s2pairs.safe_writer import L1CProduct, usual_offsets, write_l1c
from s2pairs.tiles import TileId

OLD = L1CProduct(
    tile=TileId.parse("01LAC"),
    spacecraft="S2A",
    acquired=datetime(2020, 7, 17, 22, 19, 41, 24_000, tzinfo=UTC),
    generated=datetime(2020, 7, 17, 23, 41, 35, tzinfo=UTC),
    baseline="02.09",
    relative_orbit=29,
    absolute_orbit=26481,
    cloud_cover=5.4828,
    sun_zenith=44.9,
    sun_azimuth=35.2,
    add_offset={},
    height=126,
    width=192,
)
NEW = replace(OLD, baseline="05.10", add_offset=usual_offsets("05.10"))


def numbers(product: L1CProduct, names: list[str]) -> dict[str, npt.NDArray[np.uint16]]:
    """Every digital number there is, no-data and saturation among them."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 65536, product.shape(band(name).resolution_m), dtype=np.uint16)
        for name in names
    }


def paths_of(root: ET.Element) -> set[tuple[str, ...]]:
    """Element paths with namespaces and attribute names: the shape of a document."""

    def walk(element: ET.Element, above: tuple[str, ...]) -> set[tuple[str, ...]]:
        here = (*above, element.tag + "".join(f"@{key}" for key in sorted(element.attrib)))
        return {here}.union(*(walk(child, here) for child in element))

    return walk(root, ())


def test_every_band_reads_back_bit_for_bit_on_the_grid_of_its_tile(tmp_path: Path) -> None:
    sent = numbers(OLD, [each.name for each in BANDS])
    folder = write_l1c(tmp_path, OLD, sent)
    for name, expected in sent.items():
        with rasterio.open(folder / OLD.image(name)) as image:
            assert image.driver == "JP2OpenJPEG"
            assert image.crs.to_epsg() == 32701
            step = band(name).resolution_m
            # The genuine MTD_TL.xml of this tile says ULX 99960, ULY 8300020.
            assert tuple(image.transform)[:6] == (step, 0, 99960, 0, -step, 8300020)
            assert image.dtypes == ("uint16",)
            np.testing.assert_array_equal(image.read(1), expected)


def test_a_large_image_is_tiled_like_a_genuine_one(tmp_path: Path) -> None:
    product = replace(OLD, height=1100, width=1030)
    sent = {"B04": np.arange(1100 * 1030, dtype=np.uint16).reshape(1100, 1030)}
    with rasterio.open(write_l1c(tmp_path, product, sent) / product.image("B04")) as image:
        assert image.block_shapes == [(1024, 1024)]
        np.testing.assert_array_equal(image.read(1), sent["B04"])


def test_the_same_input_makes_the_same_bytes(tmp_path: Path) -> None:
    sent = numbers(NEW, ["B04", "B8A", "B10"])
    first, second = (write_l1c(tmp_path / place, NEW, sent) for place in ("a", "b"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 6
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_names_follow_the_convention(tmp_path: Path) -> None:
    folder = write_l1c(tmp_path, OLD, numbers(OLD, ["B04"]))
    # The genuine product of this granule, whose granule carries the start of its datastrip.
    assert folder.name == "S2A_MSIL1C_20200717T221941_N0209_R029_T01LAC_20200717T234135.SAFE"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    granule = "GRANULE/L1C_T01LAC_A026481_20200717T221941"
    assert files == {
        "MTD_MSIL1C.xml",
        "manifest.safe",
        f"{granule}/MTD_TL.xml",
        f"{granule}/IMG_DATA/T01LAC_20200717T221941_B04.jp2",
    }


def test_the_manifest_lists_each_file_with_its_size_and_sum(tmp_path: Path) -> None:
    folder = write_l1c(tmp_path, NEW, numbers(NEW, ["B02", "B11"]))
    root = ET.parse(folder / "manifest.safe").getroot()
    listed = {}
    for stream in root.iter("byteStream"):
        location, checksum = stream.find("fileLocation"), stream.find("checksum")
        assert location is not None
        assert checksum is not None
        listed[location.attrib["href"]] = (int(stream.attrib["size"]), checksum.text)
    present = [path for path in folder.rglob("*") if path.is_file()]
    expected = {
        f"./{path.relative_to(folder)}": (
            path.stat().st_size,
            hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
        )
        for path in present
        if path.name != "manifest.safe"
    }
    assert listed == expected
    pointers = {each.attrib["dataObjectID"] for each in root.iter("dataObjectPointer")}
    assert pointers == {each.attrib["ID"] for each in root.iter("dataObject")}


def test_offsets_stand_in_the_metadata_from_baseline_04_00_on(tmp_path: Path) -> None:
    odd = {each.name: -1000 - each.band_id for each in BANDS}
    shapes = {}
    for product in (OLD, replace(NEW, add_offset=odd)):
        root = ET.parse(write_l1c(tmp_path, product, numbers(product, ["B04"])) / "MTD_MSIL1C.xml")
        found = root.findall(".//Product_Image_Characteristics/Radiometric_Offset_List/*")
        shapes[product.baseline] = [(each.tag, each.attrib, int(each.text or "")) for each in found]
    assert shapes["02.09"] == []
    assert shapes["05.10"] == [
        ("RADIO_ADD_OFFSET", {"band_id": str(number)}, -1000 - number) for number in range(13)
    ]


@pytest.mark.realdata
def test_metadata_have_the_shape_of_genuine_ones(tmp_path: Path, crossmi_data: Path) -> None:
    genuine = crossmi_data / "safe_metadata"
    folder = write_l1c(tmp_path, OLD, numbers(OLD, [each.name for each in BANDS]))
    product = next(genuine.glob("S2A_MSIL1C_*_T46RER_*"))
    for name in ("MTD_MSIL1C.xml", "GRANULE/*/MTD_TL.xml"):
        ours, theirs = (
            paths_of(ET.parse(next(place.glob(name))).getroot()) for place in (folder, product)
        )
        assert ours <= theirs
    assert _not_written(folder, product) == GROUND_SEGMENT_ALONE


# What genuine metadata have and ours have not: nothing that a reader of pixels looks at.
GROUND_SEGMENT_ALONE = {
    "Spectral_Response",
    "PHYSICAL_GAINS",
    "{https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-1C.xsd}Auxiliary_Data_Info",
    "Quality_Control_Checks",
    "Sun_Angles_Grid",
    "Viewing_Incidence_Angles_Grids",
    "Mean_Viewing_Incidence_Angle_List",
    "Pixel_Level_QI",
    "PVI_FILENAME",
}


def _not_written(ours: Path, theirs: Path) -> set[str]:
    """Elements of genuine metadata whose parent we write while leaving them out."""
    missing = set()
    for name in ("MTD_MSIL1C.xml", "GRANULE/*/MTD_TL.xml"):
        ours_paths, theirs_paths = (
            paths_of(ET.parse(next(place.glob(name))).getroot()) for place in (ours, theirs)
        )
        for path in theirs_paths - ours_paths:
            if path[:-1] in ours_paths:
                missing.add(path[-1].partition("@")[0])
    return missing


@pytest.mark.realdata
def test_values_equal_those_of_the_genuine_product(tmp_path: Path, crossmi_data: Path) -> None:
    genuine = next((crossmi_data / "safe_metadata").glob("*T01LAC*"))
    whole = replace(OLD, height=10980, width=10980)
    empty = {"B10": np.zeros(whole.shape(60), np.uint16)}
    folder = write_l1c(tmp_path, whole, empty)
    ours, theirs = (ET.parse(place / "MTD_MSIL1C.xml").getroot() for place in (folder, genuine))
    names = "PRODUCT_START_TIME PRODUCT_URI PROCESSING_LEVEL PRODUCT_TYPE PROCESSING_BASELINE "
    names += "GENERATION_TIME SPACECRAFT_NAME DATATAKE_SENSING_START SENSING_ORBIT_NUMBER "
    names += (
        "QUANTIFICATION_VALUE SOLAR_IRRADIANCE SPECIAL_VALUE_INDEX RED_CHANNEL CENTRAL MIN MAX "
    )
    names += "RESOLUTION Cloud_Coverage_Assessment"
    for name in names.split():
        texts = [[each.text for each in root.iter(name)] for root in (ours, theirs)]
        assert texts[0] == texts[1], name
        assert texts[0]
    for name in ("Datatake", "Spectral_Information", "SOLAR_IRRADIANCE", "QUANTIFICATION_VALUE"):
        attributes = [[each.attrib for each in root.iter(name)] for root in (ours, theirs)]
        assert attributes[0] == attributes[1], name
    ours, theirs = (
        ET.parse(next(place.glob("GRANULE/*/MTD_TL.xml"))).getroot() for place in (folder, genuine)
    )
    names = "HORIZONTAL_CS_NAME HORIZONTAL_CS_CODE NROWS NCOLS ULX ULY XDIM YDIM"
    for name in names.split():
        texts = [[each.text for each in root.iter(name)] for root in (ours, theirs)]
        assert texts[0] == texts[1], name


@pytest.mark.realdata
def test_sun_distance_agrees_with_genuine_products(crossmi_data: Path) -> None:
    checked = 0
    for path in (crossmi_data / "safe_metadata").glob("*/MTD_MSIL*.xml"):
        root = ET.parse(path).getroot()
        start, correction = root.findtext(".//DATATAKE_SENSING_START"), root.findtext(".//U")
        assert start is not None
        assert correction is not None
        ours = sun_distance_correction(datetime.fromisoformat(start))
        assert ours == pytest.approx(float(correction), abs=5e-4)
        checked += 1
    assert checked == 4


def test_a_product_is_whole_or_absent(tmp_path: Path) -> None:
    sent = numbers(OLD, ["B03", "B04"])
    leftover = tmp_path / f".{OLD.name}.partial"
    (leftover / "GRANULE").mkdir(parents=True)
    (leftover / "half.jp2").write_bytes(b"cut off")
    folder = write_l1c(tmp_path, OLD, sent)
    assert [path.name for path in tmp_path.iterdir()] == [OLD.name]
    assert not list(folder.rglob("half.jp2"))
    with pytest.raises(S2PairsError, match="exists already"):
        write_l1c(tmp_path, OLD, sent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacecraft": "S2C"}, "S2A or S2B"),
        ({"baseline": "209"}, "looks like 02.09"),
        ({"baseline": "04.00"}, "offsets for 13 bands"),
        ({"add_offset": {"B04": -1000}}, "offsets for 0 bands"),
        ({"cloud_cover": 100.1}, "percent"),
        ({"width": 10981}, "no part of a tile"),
        ({"acquired": datetime(2020, 7, 17)}, "not in UTC"),
    ],
)
def test_metadata_that_no_product_has_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(S2PairsError, match=message):
        replace(OLD, **change)  # type: ignore[arg-type]


def test_bands_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    for sent in (
        {"B04": np.zeros((126, 191), np.uint16)},
        {"B11": np.zeros((126, 192), np.uint16)},
        {"B04": np.zeros((126, 192), np.int16)},
        {},
    ):
        with pytest.raises(S2PairsError):
            write_l1c(tmp_path, OLD, sent)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
