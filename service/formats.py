"""The formats of uploads: bytes to arrays, the only reader of bytes that a client sends.

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

from service.errors import (
    MalformedError,
    TooLargeError,
    UnfitError,
    UnsupportedMediaError,
    location_of,
)
from service.queries import ImageBody, PatchesBody

NPY, TIFF, JSON = "application/x-npy", "image/tiff", "application/json"
PNG = "image/png"  # among answers alone
MEDIA_TYPES = (NPY, TIFF, JSON)

DTYPES = (
    *("uint8", "uint16", "uint32", "int8", "int16", "int32"),
    *("float16", "float32", "float64"),
)

Pixels = npt.NDArray[Any]
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Form:
    """The array that an endpoint takes: its rank, a check of its shape, a bound on its bytes."""

    ndim: int
    check: Callable[[tuple[int, ...]], None]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Raster:
    """Pixels as they were sent, and what came with them."""

    pixels: Pixels
    names: tuple[str | None, ...] | None = None
    """Of the bands; None for one that has no name of a band."""
    nodata: float | None = None
    has_alpha: bool = False
    """Whether the last band is tagged as transparency: 0 is no data."""


def read(body: bytes, media_type: str, form: Form) -> Raster:
    """The array of a body, whose shape `form` has checked before any pixel is read; every fault is
    a `DecodeError`."""
    readers = {NPY: _read_npy, TIFF: _read_geotiff, JSON: _read_json}
    if media_type not in readers:
        raise UnsupportedMediaError(f"send one of {', '.join(readers)}")
    return readers[media_type](body, form)


_NPY_MAGIC = b"\x93NUMPY"
_NPY_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
_NPY_MAX_HEADER = 4096
_NPY_MAX_EXTENT = 1 << 48
"""More than there is memory; an extent of thousands of digits could not even be printed."""


def _read_npy(body: bytes, form: Form) -> Raster:
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
    return Raster(pixels.reshape(shape, order="F" if fortran_order else "C"))


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


_JSON_MAX_KEYS = 1000
"""Of a document, which needs a few hundred at most; each that is unknown makes an error of 800
bytes."""


def read_json(body: bytes, model: type[Body], max_bytes: int) -> Body:
    """A JSON document that holds lists of numbers; its faults are `DecodeError`."""
    values = body.count(b",") + body.count(b"[")
    if values * _JSON_BYTES_PER_VALUE > max_bytes:
        raise TooLargeError(
            f"lists of about {values} values take more than {max_bytes} bytes to read; send "
            "fewer patches, or the pixels as .npy"
        )
    # A colon inside a text counts too: none that is read here has any number of them.
    keys = body.count(b":")
    if keys > _JSON_MAX_KEYS:
        raise TooLargeError(
            f"a document may have {_JSON_MAX_KEYS} keys, this one has about {keys}; send those "
            "that /openapi.json names"
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedError("the body is not JSON (NaN and Infinity are none)") from None
        raise UnfitError(f"{location_of(first['type'], first['loc'])}: {first['msg']}") from None


def _read_json(body: bytes, form: Form) -> Raster:
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
    return Raster(pixels)


_SENTINEL2_NAME = re.compile(r"B(?:0?([1-9])|(1[0-2]|8A))")
_COMPRESSIONS = frozenset({"NONE", "LZW", "DEFLATE", "PACKBITS", "ZSTD"})
"""Lossless and with a bounded working memory: an LZMA stream may ask for 4 GB."""


def _read_geotiff(body: bytes, form: Form) -> Raster:
    """One GeoTIFF; a patch where patches are wanted. Tags name the bands and the no-data value."""
    from rasterio.enums import ColorInterp

    with opened(body) as dataset:
        one_patch = (1,) if form.ndim == 4 else ()
        shape = (*one_patch, dataset.count, dataset.height, dataset.width)
        form.check(shape)
        _check_geotiff(dataset, form.max_bytes)
        has_alpha = dataset.colorinterp[-1] is ColorInterp.alpha
        pixels = dataset.read().reshape(shape)
        return Raster(pixels, _names_in(dataset.descriptions), dataset.nodata, has_alpha)


@contextmanager
def opened(body: bytes) -> Iterator[Any]:
    """A dataset of rasterio; what GDAL cannot read is a `MalformedError`."""
    # The base of what rasterio makes of GDAL's own errors, and in part lets out as it is: it is no
    # RasterioError, and has no public name.
    from rasterio._err import CPLE_BaseError
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
        except (RasterioError, CPLE_BaseError, ValueError, MemoryError) as error:
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
