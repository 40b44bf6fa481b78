"""Uploads to reflectance: the only reader of bytes that a client sends.

Nothing is believed before it is checked: a header's shape and type before any pixel is read, a
GeoTIFF's pixel count and block size before GDAL unpacks anything. No pickle, no archive, no format
that can name another file or host.
"""

import ast
import base64
import binascii
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from mimodel.normalisation import select_bands
from service.errors import (
    MalformedError,
    TooLargeError,
    UnfitError,
    UnsupportedMediaError,
    location_of,
)
from service.schemas import ImageBody, InferBody, PatchesBody, PixelQuery

NPY, TIFF, JSON = "application/x-npy", "image/tiff", "application/json"
PNG = "image/png"  # among answers alone
MEDIA_TYPES = (NPY, TIFF, JSON)

REFLECTANCE_RANGE = (-0.5, 8.0)
"""Sentinel-2 holds reflectance from -0.1 to 6.6; the rest is room for resampling overshoot."""

DTYPES = (
    *("uint8", "uint16", "uint32", "int8", "int16", "int32"),
    *("float16", "float32", "float64"),
)

Pixels = npt.NDArray[Any]
Reflectance = npt.NDArray[np.float32]
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a client says of its pixels: reflectance = number * scale + offset, but for `nodata`."""

    bands: tuple[str, ...] | None = None
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None

    @classmethod
    def of(cls, query: PixelQuery) -> "Declared":
        """What the query parameters of a request declare."""
        bands = tuple(query.bands.split(",")) if query.bands else None
        return cls(bands, query.scale, query.offset, query.nodata)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model reads and how much of it one request may bring."""

    bands: tuple[str, ...]
    patch_size: int
    max_patches: int
    max_pixels: int
    max_bytes: int


def decode_patches(
    body: bytes, media_type: str, declared: Declared, expected: Expected
) -> Reflectance:
    """Reflectance (N, band, size, size), NaN where there is no data, bands as the model has them.

    Every fault of the upload is a `DecodeError` or, for its bands, an `InputError`.
    """
    form = _Form(4, lambda shape: _check_patches(shape, expected), expected.max_bytes)
    return _reflectance(_read(body, media_type, form), declared, expected.bands, axis=1)


def decode_tensor(body: bytes, expected: Expected) -> tuple[InferBody, Reflectance]:
    """A request of KServe's protocol and its patches; otherwise like `decode_patches`."""
    request = read_json(body, InferBody, expected.max_bytes)
    tensor = request.inputs[0]
    shape = tuple(tensor.shape)
    _check_patches(shape, expected)
    try:
        values = np.array(tensor.data, np.float64)
    except ValueError:
        raise UnfitError("the lists under `data` differ in length") from None
    if values.shape not in {shape, (math.prod(shape),)}:
        raise UnfitError(
            f"expected data of shape {shape}, or {math.prod(shape)} values, got {values.shape}"
        )
    raster = _Raster(_cast(values, tensor.datatype).reshape(shape))
    return request, _reflectance(raster, Declared.of(request.parameters), expected.bands, axis=1)


def decode_image(
    body: bytes, media_type: str, declared: Declared, expected: Expected
) -> Reflectance:
    """Reflectance (band, H, W) of one image; otherwise like `decode_patches`."""
    form = _Form(3, lambda shape: _check_image(shape, expected), expected.max_bytes)
    return _reflectance(_read(body, media_type, form), declared, expected.bands, axis=0)


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where on the ground an image lies."""

    crs: str | None
    """WKT."""
    transform: tuple[float, ...]
    """Of GDAL: easting and northing of (column, row) as a, b, c, d, e, f."""


def georeference(body: bytes) -> Georeference | None:
    """That of a GeoTIFF, of which no pixel is read; None where it has none."""
    with _opened(body) as dataset:
        if dataset.crs is None and dataset.transform.is_identity:
            return None
        crs = dataset.crs.to_wkt() if dataset.crs else None
        return Georeference(crs, tuple(dataset.transform)[:6])


def limit_gdal() -> None:
    """Leave GDAL only its GeoTIFF driver in this process. Call it before rasterio is imported.

    GDAL reads GDAL_SKIP once, from the environment, when it registers its drivers; an option set
    through rasterio comes too late. The names of the others come from a process that has them all,
    so that no driver of a newer GDAL is forgotten.
    """
    listing = subprocess.run(
        [sys.executable, "-c", _LIST_DRIVERS], capture_output=True, text=True, check=True
    )
    others = [name for name in listing.stdout.splitlines() if name != "GTiff"]
    os.environ |= {
        "GDAL_SKIP": ",".join(others),
        "GDAL_DRIVER_PATH": "disable",  # no plugins
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no files beside the one that is opened
        "GDAL_PAM_ENABLED": "NO",  # nor .aux.xml
        "GDAL_CACHEMAX": "64",  # MB
        "PROJ_NETWORK": "OFF",
    }


_LIST_DRIVERS = """
from rasterio.env import Env
with Env() as env:
    print(*env.drivers(), sep="\\n")
"""


# --- what the shape may be ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """The array that an endpoint takes: its rank, a check of its shape, a bound on its bytes."""

    ndim: int
    check: Callable[[tuple[int, ...]], None]
    max_bytes: int


def _check_patches(shape: tuple[int, ...], expected: Expected) -> None:
    size = expected.patch_size
    if len(shape) != 4 or shape[2:] != (size, size) or shape[0] < 1:
        raise UnfitError(
            f"expected patches of shape (N, band, {size}, {size}) with N at least 1, got {shape}"
        )
    if shape[0] > expected.max_patches:
        raise TooLargeError(
            f"a request may bring {expected.max_patches} patches, this one brings {shape[0]}; "
            "send several requests"
        )


def _check_image(shape: tuple[int, ...], expected: Expected) -> None:
    size = expected.patch_size
    if len(shape) != 3 or min(shape[1:]) < size:
        raise UnfitError(
            f"expected an image of shape (band, H, W) with H and W at least {size}, got {shape}"
        )
    if shape[1] * shape[2] > expected.max_pixels:
        raise TooLargeError(
            f"an image may have {expected.max_pixels} pixels, this one has "
            f"{shape[1]} x {shape[2]}; send a smaller part of it"
        )


# --- the formats -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Raster:
    """Pixels as they were sent, and what came with them."""

    pixels: Pixels
    names: tuple[str | None, ...] | None = None
    """Of the bands; None for one that has no name of a band."""
    nodata: float | None = None
    has_alpha: bool = False
    """Whether the last band is tagged as transparency: 0 is no data."""


def _read(body: bytes, media_type: str, form: _Form) -> _Raster:
    readers = {NPY: _read_npy, TIFF: _read_geotiff, JSON: _read_json}
    if media_type not in readers:
        raise UnsupportedMediaError(f"send one of {', '.join(readers)}")
    return readers[media_type](body, form)


_NPY_MAGIC = b"\x93NUMPY"
_NPY_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
_NPY_MAX_HEADER = 4096
_NPY_MAX_EXTENT = 1 << 48
"""More than there is memory; an extent of thousands of digits could not even be printed."""


def _read_npy(body: bytes, form: _Form) -> _Raster:
    """The NPY format, versions 1 to 3, as numpy's documentation specifies it."""
    dtype, shape, fortran_order, start = _npy_header(body)
    form.check(shape)
    count = math.prod(shape)
    if len(body) - start != count * dtype.itemsize:
        raise MalformedError(
            f"the npy header announces {count * dtype.itemsize} bytes of pixels of shape {shape}, "
            f"{len(body) - start} came"
        )
    pixels = np.frombuffer(body, dtype, count, start)
    return _Raster(pixels.reshape(shape, order="F" if fortran_order else "C"))


def _npy_header(body: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Type, shape, order, and the offset of the first pixel."""
    width = _NPY_LENGTH_BYTES.get((body[6], body[7]) if len(body) >= 12 else (0, 0))
    if not body.startswith(_NPY_MAGIC) or width is None:
        raise MalformedError("the body is not a .npy file of format version 1, 2 or 3")
    length = int.from_bytes(body[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _NPY_MAX_HEADER or start > len(body):
        raise MalformedError(f"the npy header claims {length} bytes")
    try:
        # literal_eval runs no code, and on so few bytes takes neither time nor memory.
        header = ast.literal_eval(body[8 + width : start].decode("utf-8"))
        descr, shape, order = header.pop("descr"), header.pop("shape"), header.pop("fortran_order")
    except (
        ValueError,
        SyntaxError,
        MemoryError,
        RecursionError,
        AttributeError,
        LookupError,
        TypeError,
    ) as error:
        raise MalformedError("the npy header is not one") from error
    if (
        header
        or not isinstance(shape, tuple)
        or not all(type(extent) is int and 0 <= extent < _NPY_MAX_EXTENT for extent in shape)
        or type(order) is not bool
    ):
        raise MalformedError("the npy header is not one")
    return _dtype_of(descr), shape, order, start


_NPY_DESCR = re.compile(r"[<>|=]?[fiu][1248]")


def _dtype_of(descr: object) -> np.dtype[Any]:
    if isinstance(descr, str) and _NPY_DESCR.fullmatch(descr):
        try:
            dtype = np.dtype(descr)
        except TypeError:  # f1
            dtype = np.dtype(object)
        if dtype.name in DTYPES:
            return dtype
    raise UnfitError(_dtype_message("another type"))


def _dtype_message(got: str) -> str:
    return f"expected pixels of one of the types {', '.join(DTYPES)}; got {got}"


_JSON_BYTES_PER_VALUE = 64
"""Of memory, while lists are read: an empty list takes 56 bytes and its place in another one 8."""


def read_json(body: bytes, model: type[Body], max_bytes: int) -> Body:
    """A JSON document that holds lists of numbers; its faults are `DecodeError`."""
    values = body.count(b",") + body.count(b"[")
    if values * _JSON_BYTES_PER_VALUE > max_bytes:
        raise TooLargeError(
            f"lists of about {values} values take more than {max_bytes} bytes to read; send "
            "fewer patches, or the pixels as .npy"
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedError("the body is not JSON (NaN and Infinity are none)") from None
        raise UnfitError(f"{location_of(first['type'], first['loc'])}: {first['msg']}") from None


def _read_json(body: bytes, form: _Form) -> _Raster:
    """Nested lists under `reflectance`, null for no data, or a base64 .npy under `npy`."""
    parsed: PatchesBody | ImageBody
    if form.ndim == 4:
        parsed = read_json(body, PatchesBody, form.max_bytes)
    else:
        parsed = read_json(body, ImageBody, form.max_bytes)
    if parsed.npy is not None:
        try:
            return _read_npy(base64.b64decode(parsed.npy, validate=True), form)
        except (binascii.Error, ValueError) as error:
            raise MalformedError("`npy` is not base64") from error
    try:
        pixels = np.array(parsed.reflectance, np.float64)
    except ValueError:
        raise UnfitError("the lists under `reflectance` differ in length") from None
    form.check(pixels.shape)
    return _Raster(pixels)


_SENTINEL2_NAME = re.compile(r"B(?:0?([1-9])|(1[0-2]|8A))")
_COMPRESSIONS = frozenset({"NONE", "LZW", "DEFLATE", "PACKBITS", "ZSTD"})
"""Lossless and with a bounded working memory: an LZMA stream may ask for 4 GB."""


def _read_geotiff(body: bytes, form: _Form) -> _Raster:
    """One GeoTIFF; a patch where patches are wanted. Tags name the bands and the no-data value."""
    from rasterio.enums import ColorInterp

    with _opened(body) as dataset:
        one_patch = (1,) if form.ndim == 4 else ()
        shape = (*one_patch, dataset.count, dataset.height, dataset.width)
        form.check(shape)
        _check_geotiff(dataset, form.max_bytes)
        has_alpha = dataset.colorinterp[-1] is ColorInterp.alpha
        pixels = dataset.read().reshape(shape)
        return _Raster(pixels, _names_in(dataset.descriptions), dataset.nodata, has_alpha)


@contextmanager
def _opened(body: bytes) -> Iterator[Any]:
    """A dataset of rasterio; what GDAL cannot read is a `MalformedError`."""
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile

    if body[:4] not in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        raise MalformedError("the body is not a TIFF file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            # The driver is named, so that no other can take the bytes for its own.
            with MemoryFile(body) as file, file.open(driver="GTiff") as dataset:
                yield dataset
        except (RasterioError, ValueError, MemoryError) as error:
            raise MalformedError("GDAL cannot read this GeoTIFF; is it whole?") from error


def _check_geotiff(dataset: Any, max_bytes: int) -> None:
    """Refuse, before a pixel is read, whatever would unpack to more than it seems."""
    from rasterio.enums import MaskFlags

    for dtype in set(dataset.dtypes):
        if dtype not in DTYPES:
            raise UnfitError(_dtype_message(dtype))
    itemsize = np.dtype(dataset.dtypes[0]).itemsize * dataset.count
    largest_block = max(rows * columns for rows, columns in dataset.block_shapes)
    needed = itemsize * max(largest_block, dataset.width * dataset.height)
    if needed > max_bytes:
        raise TooLargeError(
            f"a GeoTIFF may hold {max_bytes} bytes of pixels, and as many in a block; this one "
            f"needs {needed}. Send fewer bands, or write it in blocks of 256 x 256"
        )
    compression = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "NONE")
    if compression not in _COMPRESSIONS:
        raise UnsupportedMediaError(
            f"a GeoTIFF may be compressed by {', '.join(sorted(_COMPRESSIONS))}; write it anew "
            "with one of these"
        )
    if any(flags == [MaskFlags.per_dataset] for flags in dataset.mask_flag_enums):
        raise UnfitError("the GeoTIFF has a mask inside; write a no-data value instead")
    if any(scale != 1 for scale in dataset.scales) or any(dataset.offsets):
        raise UnfitError(
            "the GeoTIFF has tags of scale and offset, which are not read here; say them as "
            "parameters and leave out the tags (gdal_edit.py -unsetscale -unsetoffset)"
        )


def _names_in(descriptions: tuple[str | None, ...]) -> tuple[str | None, ...] | None:
    """Names of the bands, B4 as B04, if at least one description is such a name."""
    matches = [_SENTINEL2_NAME.fullmatch((text or "").strip().upper()) for text in descriptions]
    if not any(matches):
        return None
    return tuple(
        None if match is None else f"B0{match[1]}" if match[1] else f"B{match[2]}"
        for match in matches
    )


def _cast(values: Pixels, datatype: str) -> Pixels:
    """Numbers as the type that they are said to be of, which has to hold them as they are."""
    dtype = np.dtype(datatype.lower().replace("fp", "float"))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max) & (values % 1 == 0)).all():
            raise UnfitError(f"`data` holds what is no {datatype}; for no data say `nodata`")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


# --- pixels to reflectance ---------------------------------------------------------------------


def _reflectance(
    raster: _Raster, declared: Declared, wanted: tuple[str, ...], axis: int
) -> Reflectance:
    given = raster.pixels
    names = _band_names(raster, declared.bands, wanted)
    bands, alpha = given, None
    if raster.has_alpha and len(names) == given.shape[axis] - 1:
        bands, alpha = np.split(given, [len(names)], axis)
    pixels: Pixels = select_bands(wanted, names, bands, axis)
    reflectance = _scaled(pixels, declared)
    for nodata in (raster.nodata, declared.nodata):
        if nodata is not None:
            reflectance[_equal(pixels, nodata)] = np.nan
    if alpha is not None:
        reflectance[np.broadcast_to(alpha == 0, reflectance.shape)] = np.nan
    _check_range(reflectance)
    return reflectance


def _band_names(
    raster: _Raster, declared: tuple[str, ...] | None, wanted: tuple[str, ...]
) -> tuple[str, ...]:
    """Of the bands in their order, without that of an alpha band, which has none.

    A writer may tag the last of four bands as alpha of its own accord, so one that has the name of
    a band, or is needed for as many bands as are wanted, is not taken for alpha.
    """
    described = raster.names
    if described is None:
        return declared or wanted
    if declared is None:
        if raster.has_alpha and described[-1] is None:
            described = described[:-1]
        return tuple(name or f"unnamed {at}" for at, name in enumerate(described, start=1))
    if any(said not in (None, name) for said, name in zip(described, declared, strict=False)):
        raise UnfitError("`bands` contradicts the band descriptions of the GeoTIFF")
    return declared


def _scaled(pixels: Pixels, declared: Declared) -> Reflectance:
    """A new float32 array in C order."""
    if pixels.dtype.kind in "iu" and declared.scale is None:
        raise UnfitError(
            f"{pixels.dtype.name} pixels are digital numbers; say scale and offset of "
            "reflectance = number * scale + offset, such as scale=0.0001 for Sentinel-2 before "
            "processing baseline 04.00, and offset=-0.1 with it from then on"
        )
    # What overflows is infinite, and refused as such; a signalling NaN is as good as another.
    with np.errstate(over="ignore", invalid="ignore"):
        reflectance = pixels.astype(np.float32, order="C")
        reflectance[np.isnan(reflectance)] = np.nan
        if declared.scale is not None:
            reflectance *= np.float32(declared.scale)
        if declared.offset:
            reflectance += np.float32(declared.offset)
    return reflectance


def _equal(pixels: Pixels, nodata: float) -> npt.NDArray[np.bool_]:
    """Where pixels hold `nodata`, as their own type would round it."""
    with np.errstate(over="ignore", invalid="ignore"):
        marker = np.float64(nodata).astype(pixels.dtype)
    if pixels.dtype.kind in "iu" and marker != nodata:
        return np.zeros(pixels.shape, np.bool_)
    return np.asarray(pixels == marker)


def _check_range(reflectance: Reflectance) -> None:
    # fmin and fmax leave NaN aside, and are silent where there is nothing else.
    low = float(np.fmin.reduce(reflectance, axis=None))
    high = float(np.fmax.reduce(reflectance, axis=None))
    if math.isinf(low) or math.isinf(high):
        raise UnfitError("there are infinite pixels; mark missing ones as NaN")
    lowest, highest = REFLECTANCE_RANGE
    if low < lowest or high > highest:
        raise UnfitError(
            f"expected reflectance from {lowest} to {highest}, got {low:.6g} to {high:.6g}; "
            "if these are digital numbers, say scale and offset, and nodata if there is one"
        )
