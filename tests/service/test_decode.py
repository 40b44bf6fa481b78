"""Uploads become reflectance: their formats, types, bands by name, and what is no data."""

import base64
import json

import numpy as np
import numpy.typing as npt
import pytest

from mimodel.errors import InputError
from service.decode import Declared, Expected, decode_image, decode_patches
from service.errors import TooLargeError, UnfitError
from service.formats import JSON, NPY, TIFF
from tests.service.bodies import geotiff_bytes, npy_bytes

BANDS = ("B04", "B03", "B02", "B08")
EXPECTED = Expected(BANDS, patch_size=64, max_patches=8, max_pixels=200 * 200, max_bytes=1 << 22)
AS_SENT = Declared()
PATCHES = np.random.default_rng(0).uniform(0, 0.4, (2, 4, 64, 64)).astype(np.float32)
DN = np.random.default_rng(1).integers(1, 6000, (1, 4, 64, 64), np.uint16)


def lists_of(patches: npt.NDArray[np.generic]) -> bytes:
    nested = patches.astype(object)
    nested[np.isnan(patches.astype(float))] = None
    return json.dumps({"reflectance": nested.tolist()}).encode()


def base64_of(patches: npt.NDArray[np.generic]) -> bytes:
    return json.dumps({"npy": base64.b64encode(npy_bytes(patches)).decode()}).encode()


def test_every_format_gives_the_same_pixels() -> None:
    patches = PATCHES[:1].copy()
    patches[0, :, :5, :7] = np.nan
    forms = [
        (NPY, npy_bytes(patches)),
        (NPY, npy_bytes(np.asfortranarray(patches))),
        (NPY, npy_bytes(patches.astype(">f4"))),
        (NPY, npy_bytes(patches.astype(np.float64))),
        (JSON, lists_of(patches)),
        (JSON, base64_of(patches)),
        (TIFF, geotiff_bytes(patches[0])),
        (TIFF, geotiff_bytes(patches[0], compress="DEFLATE", predictor=3, tiled=True)),
        (TIFF, geotiff_bytes(patches[0], interleave="band", compress="ZSTD", BIGTIFF="YES")),
    ]
    for media_type, body in forms:
        decoded = decode_patches(body, media_type, AS_SENT, EXPECTED)
        assert decoded.dtype == np.float32
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, patches)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float64"])
def test_digital_numbers_become_reflectance(dtype: str) -> None:
    numbers = (DN % 200).astype(dtype)
    declared = Declared(scale=1e-3, offset=-0.1, nodata=7)
    expected = (numbers * 1e-3 - 0.1).astype(np.float32)
    expected[numbers == 7] = np.nan
    assert np.isnan(expected).any()
    for media_type, body in [(NPY, npy_bytes(numbers)), (TIFF, geotiff_bytes(numbers[0]))]:
        decoded = decode_patches(body, media_type, declared, EXPECTED)
        np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-7)


def test_float16_is_widened_exactly() -> None:
    half = PATCHES.astype(np.float16)
    decoded = decode_patches(npy_bytes(half), NPY, AS_SENT, EXPECTED)
    np.testing.assert_array_equal(decoded, half.astype(np.float32))


def test_bands_are_taken_by_name_and_extra_ones_left_out() -> None:
    names = ("B02", "B10", "B08", "B04", "B03")
    shuffled = np.full((2, 5, 64, 64), np.inf, np.float32)  # nobody looks at B10
    for at, name in enumerate(names):
        if name in BANDS:
            shuffled[:, at] = PATCHES[:, BANDS.index(name)]
    decoded = decode_patches(npy_bytes(shuffled), NPY, Declared(names), EXPECTED)
    np.testing.assert_array_equal(decoded, PATCHES)


@pytest.mark.parametrize(
    "descriptions",
    [("B02", "B08", "B04", "B03"), ("B2", "B8", "b4", "B3"), ("B2", "x", "B4", "B3")],
)
def test_descriptions_of_a_geotiff_name_its_bands(descriptions: tuple[str, ...]) -> None:
    sent = PATCHES[0, [2, 3, 0, 1]]
    body = geotiff_bytes(sent, descriptions)
    if "x" in descriptions:
        with pytest.raises(InputError, match="B08 is missing"):
            decode_patches(body, TIFF, AS_SENT, EXPECTED)
    else:
        decoded = decode_patches(body, TIFF, AS_SENT, EXPECTED)
        np.testing.assert_array_equal(decoded, PATCHES[:1])
    with pytest.raises(UnfitError, match="contradicts"):
        decode_patches(body, TIFF, Declared(BANDS), EXPECTED)


def test_descriptions_that_name_no_band_leave_the_order_to_the_client() -> None:
    body = geotiff_bytes(PATCHES[0, ::-1], ["red", "green", "blue", "infrared"])
    decoded = decode_patches(body, TIFF, Declared(BANDS[::-1]), EXPECTED)
    np.testing.assert_array_equal(decoded, PATCHES[:1])


def test_descriptions_of_some_bands_leave_the_others_to_the_client() -> None:
    body = geotiff_bytes(PATCHES[0], ["B04", "", "", "near infrared"])
    decoded = decode_patches(body, TIFF, Declared(BANDS), EXPECTED)
    np.testing.assert_array_equal(decoded, PATCHES[:1])
    with pytest.raises(UnfitError, match="contradicts"):
        decode_patches(body, TIFF, Declared(BANDS[::-1]), EXPECTED)


@pytest.mark.parametrize("descriptions", [(), BANDS])
@pytest.mark.parametrize("declared", [AS_SENT, Declared(BANDS)])
def test_where_alpha_is_0_there_is_no_data(
    descriptions: tuple[str, ...], declared: Declared
) -> None:
    alpha = np.ones((1, 64, 64), np.float32)
    alpha[0, :20] = 0
    sent = np.concatenate([PATCHES[0], alpha])
    body = geotiff_bytes(sent, descriptions, alpha=True)
    decoded = decode_patches(body, TIFF, declared, EXPECTED)
    assert np.isnan(decoded[0, :, :20]).all()
    np.testing.assert_array_equal(decoded[0, :, 20:], PATCHES[0, :, 20:])


def test_a_band_that_is_wanted_is_no_alpha() -> None:
    """GDAL tags the last of four bytes as alpha of its own accord."""
    sent = np.full((4, 64, 64), 200, np.uint8)
    sent[3, :20] = 0
    body = geotiff_bytes(sent, alpha=True)
    decoded = decode_patches(body, TIFF, Declared(BANDS, scale=1e-3), EXPECTED)
    assert (decoded[0, 3, :20] == 0).all()


def test_nodata_of_a_geotiff_is_no_data() -> None:
    sent = PATCHES[0].copy()
    sent[:, 10:20] = -9999
    decoded = decode_patches(geotiff_bytes(sent, nodata=-9999), TIFF, AS_SENT, EXPECTED)
    assert np.isnan(decoded[0, :, 10:20]).all()
    np.testing.assert_array_equal(decoded[0, :, 20:], sent[:, 20:])


def test_nodata_is_rounded_as_the_pixels_are() -> None:
    sent = PATCHES.copy()
    sent[0, 0, 0, 0] = -0.3  # in float32 not the number that "-0.3" is in float64
    decoded = decode_patches(npy_bytes(sent), NPY, Declared(nodata=-0.3), EXPECTED)
    assert np.isnan(decoded[0, 0, 0, 0])
    assert np.isnan(decoded).sum() == 1


def test_a_number_that_the_type_cannot_hold_marks_nothing() -> None:
    declared = Declared(scale=1e-4, nodata=65535.5)
    decoded = decode_patches(npy_bytes(DN), NPY, declared, EXPECTED)
    assert np.isfinite(decoded).all()


def test_a_signalling_nan_is_no_data_without_a_warning() -> None:
    sent = PATCHES.copy()
    sent.view(np.uint32)[0, 0, 0, 0] = 0x7F800001
    for declared in (AS_SENT, Declared(scale=0.5), Declared(offset=0.1)):
        decoded = decode_patches(npy_bytes(sent), NPY, declared, EXPECTED)
        assert np.isnan(decoded).sum() == 1
        assert np.isnan(decoded - np.float32(1))[0, 0, 0, 0]


def test_patches_without_any_data_are_let_through() -> None:
    nothing = np.full((1, 4, 64, 64), np.nan, np.float32)
    assert np.isnan(decode_patches(npy_bytes(nothing), NPY, AS_SENT, EXPECTED)).all()


def test_an_image_may_have_any_size_within_the_limit() -> None:
    image = np.random.default_rng(2).uniform(0, 1, (4, 64, 131)).astype(np.float32)
    for media_type, body in [
        (NPY, npy_bytes(image)),
        (TIFF, geotiff_bytes(image)),
        (JSON, lists_of(image)),
        (JSON, base64_of(image)),
    ]:
        np.testing.assert_array_equal(decode_image(body, media_type, AS_SENT, EXPECTED), image)
    with pytest.raises(TooLargeError, match=r"201 x 200"):
        decode_image(npy_bytes(np.zeros((4, 201, 200), np.float32)), NPY, AS_SENT, EXPECTED)
    with pytest.raises(UnfitError, match=r"at least 64, got \(4, 63, 64\)"):
        decode_image(npy_bytes(np.zeros((4, 63, 64), np.float32)), NPY, AS_SENT, EXPECTED)
