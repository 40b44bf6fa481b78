"""Whatever bytes come, they become reflectance or a clear refusal; nothing in between."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimodel.errors import InputError
from service.decode import Declared, Expected, decode_image, decode_patches, georeference
from service.errors import DecodeError
from service.formats import JSON, MEDIA_TYPES, NPY, TIFF
from service.render import map_geotiff
from tests.service.bodies import directory_of, geotiff_bytes, npy_bytes
from tests.service.test_decode import AS_SENT, BANDS, DN, EXPECTED, PATCHES, base64_of, lists_of

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
