"""Uploads become reflectance, or a clear refusal; nothing in between."""

import base64
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimodel.errors import InputError
from service.decode import Declared, Expected, decode_image, decode_patches, georeference
from service.errors import (
    DecodeError,
    MalformedError,
    TooLargeError,
    UnfitError,
    UnsupportedMediaError,
)
from service.formats import JSON, MEDIA_TYPES, NPY, TIFF
from service.render import map_geotiff
from tests.service import bodies
from tests.service.bodies import (
    directory_of,
    geotiff_bytes,
    npy_bytes,
    npy_header,
    with_another_directory,
)

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


def test_tags_of_scale_in_a_geotiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(geotiff_bytes(PATCHES[0]))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1e-4,) * 4
    with pytest.raises(UnfitError, match="tags of scale and offset"):
        decode_patches(path.read_bytes(), TIFF, AS_SENT, EXPECTED)


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


def with_pixel(value: float) -> npt.NDArray[np.float32]:
    patches = PATCHES.copy()
    patches[1, 2, 3, 4] = value
    return patches


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"

# (media type, body, what the error says, its kind)
REFUSED: dict[str, tuple[str, bytes, str, type[Exception]]] = {
    "empty": (NPY, b"", "not a .npy file", MalformedError),
    "npz": (NPY, b"PK\x03\x04" + bytes(100), "not a .npy file", MalformedError),
    "npy of 2^40 items": (
        NPY,
        npy_header(HEADER.format("<f4", "(67108864, 4, 64, 64)")),
        "may bring 8 patches, this one brings 67108864",
        TooLargeError,
    ),
    "npy of 2^40 bands": (
        NPY,
        npy_header(HEADER.format("<f4", f"(1, {1 << 40}, 64, 64)")),
        f"announces {(1 << 40) * 64 * 64 * 4} bytes",
        MalformedError,
    ),
    "npy of 2^40 items of no band": (
        NPY,
        npy_header(HEADER.format("<f4", f"({1 << 40}, 0, 64, 64)")),
        "may bring 8 patches",
        TooLargeError,
    ),
    "npy without bands": (
        NPY,
        npy_header(HEADER.format("<f4", "(1, 0, 64, 64)")),
        "expected 4 bands .B04, B03, B02, B08., got 0",
        InputError,
    ),
    "npy that is cut": (
        NPY,
        npy_bytes(PATCHES)[:-1],
        "announces 131072 .* 131071 came",
        MalformedError,
    ),
    "npy with a tail": (
        NPY,
        npy_bytes(PATCHES) + b"x",
        "announces 131072 .* 131073 came",
        MalformedError,
    ),
    "npy of negative shape": (
        NPY,
        npy_header(HEADER.format("<f4", "(-1, 4, 64, 64)")),
        "header",
        MalformedError,
    ),
    "npy with a huge header": (NPY, npy_header(" " * 60_000), "claims 60000 bytes", MalformedError),
    "npy with a deep header": (NPY, npy_header("(" * 4000), "header", MalformedError),
    "npy of a call": (NPY, npy_header("__import__('os').system('true')"), "header", MalformedError),
    "npy of version 9": (NPY, npy_header("{}", (9, 0)), "version 1, 2 or 3", MalformedError),
    "pickled objects": (
        NPY,
        npy_bytes(np.array([[[[{}]]]], dtype=object)),
        "expected pixels of one of the types",
        UnfitError,
    ),
    "complex": (NPY, npy_bytes(PATCHES.astype(np.complex64)), "float64; got", UnfitError),
    "structured": (NPY, npy_bytes(np.zeros(3, [("a", "<f4")])), "expected pixels", UnfitError),
    "text": (NPY, npy_bytes(np.array(["x"])), "expected pixels", UnfitError),
    "one patch without its axis": (NPY, npy_bytes(PATCHES[0]), r"got \(4, 64, 64\)", UnfitError),
    "no patch": (NPY, npy_bytes(PATCHES[:0]), r"got \(0, 4, 64, 64\)", UnfitError),
    "bands last": (
        NPY,
        npy_bytes(PATCHES.transpose(0, 2, 3, 1)),
        r"got \(2, 64, 64, 4\)",
        UnfitError,
    ),
    "five bands": (
        NPY,
        npy_bytes(np.zeros((1, 5, 64, 64), "f4")),
        "expected 4 bands .*got 5",
        InputError,
    ),
    "too many": (NPY, npy_bytes(np.zeros((9, 4, 64, 64), "f4")), "8 patches.* 9;", TooLargeError),
    "integers without scale": (NPY, npy_bytes(DN), "uint16 pixels are digital numbers", UnfitError),
    "digital numbers as floats": (
        NPY,
        npy_bytes(DN.astype("f4")),
        "from -0.5 to 8.0, got 1 to 59",
        UnfitError,
    ),
    "infinity": (NPY, npy_bytes(with_pixel(np.inf)), "infinite", UnfitError),
    "minus infinity": (NPY, npy_bytes(with_pixel(-np.inf)), "infinite", UnfitError),
    "beyond float32": (NPY, npy_bytes(with_pixel(0).astype("f8") + 1e300), "infinite", UnfitError),
    "too bright": (NPY, npy_bytes(with_pixel(8.5)), "got .* to 8.5", UnfitError),
    "too dark": (NPY, npy_bytes(with_pixel(-0.6)), "got -0.6 to", UnfitError),
    "not JSON": (JSON, b"{", "not JSON", MalformedError),
    "not UTF-8": (JSON, b'{"npy": "\xff"}', "not JSON", MalformedError),
    "deep JSON": (JSON, b"[" * 60_000, "not JSON", MalformedError),
    "deeper JSON": (JSON, b"[" * 1_000_000, "about 1000000 values", TooLargeError),
    "JSON of a list": (JSON, b"[1]", "body: Input should be an object", UnfitError),
    "JSON of nothing": (JSON, b"{}", "either", UnfitError),
    "JSON of both": (JSON, b'{"npy": "", "reflectance": []}', "either", UnfitError),
    "JSON of more": (JSON, b'{"npy": "", "secret": 1}', "body: Extra inputs", UnfitError),
    "JSON NaN": (JSON, b'{"reflectance": [[[[NaN]]]]}', "reflectance.0.0.0.0.*finite", UnfitError),
    "JSON Infinity": (JSON, b'{"reflectance": [[[[1e999]]]]}', "finite number", UnfitError),
    "JSON text": (JSON, b'{"reflectance": [[[["1"]]]]}', "valid number", UnfitError),
    "JSON ragged": (JSON, b'{"reflectance": [[[[1, 2], [3]]]]}', "differ in length", UnfitError),
    "JSON of many faults": (
        JSON,
        b'{"reflectance": [[[[' + b'"x",' * 60_000 + b'"x"]]]]}',
        "valid number",
        UnfitError,
    ),
    "JSON of one pixel": (JSON, b'{"reflectance": [[[[0.1]]]]}', r"got \(1, 1, 1, 1\)", UnfitError),
    "not base64": (JSON, b'{"npy": "\xc3\xa4"}', "base64", MalformedError),
    "base64 of an npz": (JSON, b'{"npy": "UEsDBA=="}', "not a .npy file", MalformedError),
    "not TIFF": (TIFF, b"GIF89a", "not a TIFF", MalformedError),
    "TIFF that is cut": (TIFF, geotiff_bytes(PATCHES[0])[:3000], "is it whole", MalformedError),
    "TIFF whose next directory is cut off": (
        TIFF,
        with_another_directory(geotiff_bytes(PATCHES[0]), 7777_7777),
        "is it whole",
        MalformedError,
    ),
    "TIFF whose next directory is none": (
        TIFF,
        with_another_directory(geotiff_bytes(PATCHES[0]), 1),
        "is it whole",
        MalformedError,
    ),
    "TIFF of only a header": (TIFF, b"II*\0\x08\0\0\0", "is it whole", MalformedError),
    "TIFF of another size": (
        TIFF,
        geotiff_bytes(PATCHES[0, :, :, :63]),
        r"\(N, band, 64, 64\).*got \(1, 4, 64, 63\)",
        UnfitError,
    ),
    "TIFF of five bands": (
        TIFF,
        geotiff_bytes(np.zeros((5, 64, 64), "f4")),
        "expected 4 bands .*got 5; say which",
        InputError,
    ),
    "TIFF without a band": (
        TIFF,
        geotiff_bytes(PATCHES[0], ["B04", "B03", "B02", "B11"]),
        "B08 is missing",
        InputError,
    ),
    "TIFF with a band twice": (
        TIFF,
        geotiff_bytes(PATCHES[0], ["B04", "B03", "B02", "B02"]),
        "twice",
        InputError,
    ),
    "complex TIFF": (TIFF, geotiff_bytes(PATCHES[0].astype("c8")), "expected pixels", UnfitError),
    "TIFF with infinity": (TIFF, geotiff_bytes(with_pixel(np.inf)[1]), "infinite", UnfitError),
    "TIFF in JPEG": (
        TIFF,
        geotiff_bytes(np.zeros((3, 64, 64), "u1"), compress="JPEG"),
        "compressed by",
        UnsupportedMediaError,
    ),
    "TIFF in LZMA": (
        TIFF,
        geotiff_bytes(PATCHES[0], compress="LZMA"),
        "compressed by",
        UnsupportedMediaError,
    ),
    "TIFF in LERC": (
        TIFF,
        geotiff_bytes(PATCHES[0], compress="LERC"),
        "compressed by",
        UnsupportedMediaError,
    ),
    "TIFF of 640 GB": (TIFF, bodies.tiff_of_640_gigabytes(), "282624, 282624", UnfitError),
    "TIFF of one huge block": (
        TIFF,
        bodies.tiff_of_a_huge_block(),
        "needs 2147483648",
        TooLargeError,
    ),
    "TIFF of 60000 bands": (
        TIFF,
        bodies.tiled_tiff(64, 64, bytes(16), 60_000, samples=60_000),
        "needs 491520000",
        TooLargeError,
    ),
    "JPEG 2000": (TIFF, geotiff_bytes(DN[0], driver="JP2OpenJPEG"), "not a TIFF", MalformedError),
    "VRT": (TIFF, bodies.vrt_of("/etc/hostname"), "not a TIFF", MalformedError),
    "URL": (TIFF, b"/vsicurl/http://127.0.0.1/x.tif", "not a TIFF", MalformedError),
    "unknown type": ("text/plain", b"x", "application/x-npy, image/tiff", UnsupportedMediaError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_expected_and_got(name: str) -> None:
    media_type, body, says, kind = REFUSED[name]
    declared = Declared(scale=1e-4) if "600" in name else AS_SENT
    with pytest.raises(kind, match=says) as caught:
        decode_patches(body, media_type, declared, EXPECTED)
    assert caught.type is kind
    assert len(str(caught.value)) < 400


def test_the_bomb_is_one() -> None:
    assert zlib.decompress(bodies.deflated_zeros(1 << 25)) == bytes(1 << 25)


def test_a_mask_inside_a_geotiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "masked.tif"
    path.write_bytes(geotiff_bytes(PATCHES[0]))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.eye(64, dtype=bool))
    with pytest.raises(UnfitError, match="no-data value instead"):
        decode_patches(path.read_bytes(), TIFF, AS_SENT, EXPECTED)


def test_a_geotiff_of_an_image_is_refused_by_its_pixel_count() -> None:
    body = bodies.tiff_of_640_gigabytes()
    with pytest.raises(TooLargeError, match="282624 x 282624"):
        decode_image(body, TIFF, Declared(scale=1e-4), EXPECTED)


Decoder = Callable[[bytes, str, Declared, Expected], npt.NDArray[np.float32]]
DECLARED = st.builds(
    Declared,
    bands=st.none() | st.permutations(["B02", "B03", "B04", "B08", "B8A"]).map(tuple),
    scale=st.none() | st.floats(1e-6, 1),
    offset=st.floats(-1, 1),
    nodata=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
DECODERS = st.sampled_from([decode_patches, decode_image])
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def decodes_or_refuses(
    decode: Decoder, body: bytes, media_type: str, declared: Declared
) -> npt.NDArray[np.float32] | None:
    try:
        decoded = decode(body, media_type, declared, EXPECTED)
    except (DecodeError, InputError):
        return None
    assert decoded.dtype == np.float32
    assert decoded.shape[-3] == 4
    assert not np.isinf(decoded).any()
    return decoded


@FUZZ
@given(DECODERS, st.binary(max_size=300), st.sampled_from(MEDIA_TYPES), DECLARED)
def test_arbitrary_bytes_are_decoded_or_refused(
    decode: Decoder, body: bytes, media_type: str, declared: Declared
) -> None:
    prefix = {NPY: b"\x93NUMPY\x01\x00", TIFF: b"II*\0\x08\0\0\0", JSON: b'{"reflectance": '}
    for candidate in (body, prefix[media_type] + body):
        decodes_or_refuses(decode, candidate, media_type, declared)


GOOD = [
    (NPY, npy_bytes(PATCHES[:1])),
    (JSON, base64_of(PATCHES[:1, :, :8, :8])),
    (JSON, lists_of(PATCHES[:1, :2, :2, :2])),
    (TIFF, geotiff_bytes(PATCHES[0], ["B04", "B03", "B02", "B08"], nodata=-1)),
    (TIFF, geotiff_bytes(DN[0], compress="DEFLATE", tiled=True)),
    (TIFF, geotiff_bytes(DN[0], compress="LZW", predictor=2)),
    (TIFF, geotiff_bytes(DN[0], compress="ZSTD", interleave="band")),
]


@dataclass(frozen=True)
class Mutated:
    """A good upload with some bytes changed, and perhaps cut."""

    number: int
    changes: list[tuple[int, int]]
    cut: int | None

    @property
    def media_type(self) -> str:
        return GOOD[self.number][0]

    @property
    def body(self) -> bytes:
        changed = bytearray(GOOD[self.number][1])
        for place, byte in self.changes:
            changed[place] = byte
        return bytes(changed[: self.cut])


@st.composite
def mutated(draw: st.DrawFn, among: Sequence[int] = range(len(GOOD))) -> Mutated:
    number = draw(st.sampled_from(among))
    media_type, body = GOOD[number]
    # Headers stand at the beginning, and a TIFF's directory may stand anywhere.
    places = st.integers(0, min(400, len(body) - 1)) | st.integers(0, len(body) - 1)
    if media_type == TIFF:
        directory = directory_of(body)
        places |= st.sampled_from(directory) | st.sampled_from(directory[-4:])
    changes = draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6))
    # Not `none() | places`, which is flattened, and would cut nearly all of them.
    return Mutated(number, changes, draw(places) if draw(st.booleans()) else None)


# GDAL's messages repeat what stands in a file; where that is no text, rasterio's log has a fault.
UNSPEAKABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNSPEAKABLE
@FUZZ
@given(DECODERS, mutated(), DECLARED)
def test_mutated_uploads_are_decoded_or_refused(
    decode: Decoder, upload: Mutated, declared: Declared
) -> None:
    decodes_or_refuses(decode, upload.body, upload.media_type, declared)


@UNSPEAKABLE
@FUZZ
@given(mutated([number for number, one in enumerate(GOOD) if one[0] == TIFF]))
def test_a_mutated_geotiff_gives_a_ground_that_a_map_can_have_or_is_refused(
    upload: Mutated,
) -> None:
    try:
        ground = georeference(upload.body)
    except DecodeError:
        return
    made = map_geotiff([np.zeros((64, 64), np.float32)], ["map"], ground, {})
    assert made.startswith(b"II*\0")


NUMBERS = st.sampled_from(
    [
        "|u1",
        "<u2",
        ">u2",
        "<i2",
        "<i4",
        "<u4",
        "<f2",
        ">f4",
        "<f8",
        "<u8",
        "<c8",
        "|b1",
        "<M8[s]",
        "|S3",
    ]
)


@FUZZ
@given(st.data(), NUMBERS, DECLARED)
def test_any_array_is_decoded_as_numpy_reads_it_or_refused(
    data: st.DataObject, descr: str, declared: Declared
) -> None:
    dtype = np.dtype(descr)
    bands = data.draw(st.sampled_from([1, 4, 5]))
    raw = data.draw(st.binary(min_size=16, max_size=64))
    shape = data.draw(st.sampled_from([(1, bands, 64, 64), (2, bands, 64, 64), (bands, 64, 64)]))
    items = math.prod(shape)
    cycle = np.resize(np.frombuffer(raw, np.uint8), items * dtype.itemsize).tobytes()
    array = np.frombuffer(cycle, dtype, items).reshape(shape)
    decoded = decodes_or_refuses(decode_patches, npy_bytes(array), NPY, declared)
    if decoded is None:
        return
    names = declared.bands or BANDS
    with np.errstate(all="ignore"):
        numbers = array[:, [names.index(name) for name in BANDS]].astype(np.float64)
        expected = numbers * (declared.scale or 1.0) + declared.offset
    valid = np.isfinite(decoded)
    np.testing.assert_allclose(decoded[valid], expected[valid], rtol=1e-5, atol=1e-5)
    marked = numbers[~valid]
    if dtype.kind != "f":
        assert (marked == declared.nodata).all()


@FUZZ
@given(st.lists(st.floats(-0.5, 8, width=32) | st.just(math.nan), min_size=1, max_size=50))
def test_valid_patches_pass_unchanged(values: list[float]) -> None:
    patches = np.resize(np.array(values, np.float32), (1, 4, 64, 64))
    decoded = decode_patches(npy_bytes(patches), NPY, AS_SENT, EXPECTED)
    assert decoded.tobytes() == patches.tobytes()
