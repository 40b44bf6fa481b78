"""Names, places in the spectrum, and the meaning of a digital number."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from sentinelhub import DataCollection

from s2pairs.bands import (
    BANDS,
    DEFAULT_BANDS,
    OFFSET,
    SCALE,
    parse_bands,
    reflectance_from_stored,
    stored_from_dn,
    wavelengths_nm,
)
from s2pairs.errors import S2PairsError

EVERY_DN = np.arange(65536, dtype=np.uint16)


def test_names_and_order_are_those_of_sentinelhub() -> None:
    assert [band.name for band in BANDS] == [b.name for b in DataCollection.SENTINEL2_L1C.bands]


@pytest.mark.slow  # importing torchgeo takes half a minute
def test_wavelengths_and_resolutions_are_those_of_torchgeo() -> None:
    from torchgeo.datasets import Sentinel2

    for band in BANDS:
        assert Sentinel2.resolutions[band.name] == f"{band.resolution_m}m"
        assert Sentinel2.wavelengths[band.name] * 1000 == pytest.approx(band.wavelength_nm)


@pytest.mark.realdata
def test_the_list_is_that_of_a_genuine_product(crossmi_data: Path) -> None:
    folder = "S2A_MSIL1C_20210908T042701_N0301_R133_T46RER_20210908T070248.SAFE"
    root = ET.parse(crossmi_data / "safe_metadata" / folder / "MTD_MSIL1C.xml")
    found = [
        (
            int(item.attrib["bandId"]),
            item.attrib["physicalBand"],
            int(item.findtext("RESOLUTION") or 0),
            float(item.findtext("Wavelength/CENTRAL") or 0),
        )
        for item in root.iter("Spectral_Information")
    ]
    listed = [
        (band.band_id, band.name.replace("B0", "B"), band.resolution_m, band.wavelength_nm)
        for band in BANDS
    ]
    assert listed == found


@pytest.mark.parametrize("add_offset", [0, -1000, -500, 1000])
def test_stored_values_mean_what_the_product_says(add_offset: int) -> None:
    reflectance = reflectance_from_stored(stored_from_dn(EVERY_DN, add_offset))
    meant = (EVERY_DN.astype(float) + add_offset) / 10_000
    # What 16 bits can hold: from one step above OFFSET to one step below the saturated value.
    held = np.clip(meant, OFFSET + SCALE, OFFSET + SCALE * 65534)
    assert np.isnan(reflectance[0])
    np.testing.assert_allclose(reflectance[1:-1], held[1:-1], atol=5e-7)


@pytest.mark.parametrize("add_offset", [0, -1000])
def test_only_no_data_becomes_no_data(add_offset: int) -> None:
    """DN 1..1000 under an offset of -1000 is dark, not absent; 65535 stays saturated."""
    stored = stored_from_dn(EVERY_DN, add_offset)
    assert np.flatnonzero(stored == 0).tolist() == [0]
    assert np.flatnonzero(stored == 65535).tolist() == [65535]
    assert (np.diff(stored[1:].astype(int)) >= 0).all()


def test_dark_pixels_keep_their_differences_under_the_usual_offset() -> None:
    dark = np.arange(1, 1001, dtype=np.uint16)
    np.testing.assert_array_equal(stored_from_dn(dark, -1000), dark)


def test_one_reflectance_has_one_stored_value_whatever_the_baseline() -> None:
    before = np.arange(1, 50_000, dtype=np.uint16)
    np.testing.assert_array_equal(
        stored_from_dn(before, 0), stored_from_dn(before + np.uint16(1000), -1000)
    )


def test_another_quantification_is_brought_to_ours() -> None:
    dn = np.array([0, 1, 500, 20_000, 65535], dtype=np.uint16)
    reflectance = reflectance_from_stored(stored_from_dn(dn, -500, quantification=5_000))
    np.testing.assert_allclose(reflectance[1:4], [-0.0998, 0.0, 3.9], atol=1e-6)
    assert np.isnan(reflectance[0])


def test_lists_of_bands() -> None:
    assert parse_bands("b04, B03,B02,B08") == DEFAULT_BANDS
    assert wavelengths_nm(["B08", "B04"]) == [832.8, 664.6]
    for text in ("", ",", "B4", "B13", "B04,B04", "red"):
        with pytest.raises(S2PairsError):
            parse_bands(text)
