"""What does not fit is refused, in few words: what was expected, and what came."""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from mimodel.errors import InputError
from service.decode import Declared, decode_image, decode_patches
from service.errors import MalformedError, TooLargeError, UnfitError, UnsupportedMediaError
from service.formats import JSON, NPY, TIFF
from tests.service import bodies
from tests.service.bodies import geotiff_bytes, npy_bytes, npy_header, with_another_directory
from tests.service.test_decode import AS_SENT, DN, EXPECTED, PATCHES


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


def test_tags_of_scale_in_a_geotiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(geotiff_bytes(PATCHES[0]))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1e-4,) * 4
    with pytest.raises(UnfitError, match="tags of scale and offset"):
        decode_patches(path.read_bytes(), TIFF, AS_SENT, EXPECTED)


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
