"""Uploads to reflectance: what came, by its bands, scale and gaps, as the model reads it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mimodel.normalisation import select_bands
from service.errors import TooLargeError, UnfitError
from service.formats import Form, Pixels, Raster, opened, read, read_json
from service.kserve_schemas import InferBody
from service.queries import PixelQuery

if TYPE_CHECKING:
    from rasterio.control import GroundControlPoint

REFLECTANCE_RANGE = (-0.5, 8.0)
"""Sentinel-2 holds reflectance from -0.1 to 6.6; the rest is room for resampling overshoot."""

Reflectance = npt.NDArray[np.float32]


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
    form = Form(4, lambda shape: _check_patches(shape, expected), expected.max_bytes)
    return _reflectance(read(body, media_type, form), declared, expected.bands, axis=1)


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
    raster = Raster(_cast(values, tensor.datatype).reshape(shape))
    return request, _reflectance(raster, Declared.of(request.parameters), expected.bands, axis=1)


def decode_image(
    body: bytes, media_type: str, declared: Declared, expected: Expected
) -> Reflectance:
    """Reflectance (band, H, W) of one image; otherwise like `decode_patches`."""
    form = Form(3, lambda shape: _check_image(shape, expected), expected.max_bytes)
    return _reflectance(read(body, media_type, form), declared, expected.bands, axis=0)


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where on the ground an image lies: by a transform, or by points of which that is known."""

    crs: str | None
    """WKT."""
    transform: tuple[float, ...]
    """Of GDAL: easting and northing of (column, row) as a, b, c, d, e, f."""
    points: tuple["GroundControlPoint", ...] = ()
    """Instead of the transform."""


def georeference(body: bytes) -> Georeference | None:
    """That of a GeoTIFF, of which no pixel is read; None where it has none."""
    with opened(body) as dataset:
        # At most 10,922 of them: libtiff counts their numbers, six each, in 16 bits.
        points, crs = dataset.gcps
        if not points:
            crs = dataset.crs
            if crs is None and dataset.transform.is_identity:
                return None
        return Georeference(
            crs.to_wkt() if crs else None, tuple(dataset.transform)[:6], tuple(points)
        )


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


def _cast(values: Pixels, datatype: str) -> Pixels:
    """Numbers as the type that they are said to be of, which has to hold them as they are."""
    dtype = np.dtype(datatype.lower().replace("fp", "float"))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not ((values >= limits.min) & (values <= limits.max) & (values % 1 == 0)).all():
            raise UnfitError(f"`data` holds what is no {datatype}; for no data say `nodata`")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _reflectance(
    raster: Raster, declared: Declared, wanted: tuple[str, ...], axis: int
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
    raster: Raster, declared: tuple[str, ...] | None, wanted: tuple[str, ...]
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
