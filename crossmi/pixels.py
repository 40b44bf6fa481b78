"""From arrays as they are given to what is sent: patches in batches, or an image."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from crossmi.errors import ArrayError

_BATCH = 64
"""Patches of one request; 4 MB of float32 where the model reads four bands."""
_PIXEL_DIMS = ("band", "y", "x")
_SENTINEL2_NAME = re.compile(r"B(0?[1-9]|1[0-2]|8A)")

Array = npt.NDArray[Any] | xr.DataArray


@dataclass(frozen=True)
class Patches:
    """Patches (..., band, y, x) with names for their dimensions."""

    array: xr.DataArray
    parameters: Mapping[str, str | float]
    """What is said of the pixels in every request."""

    @classmethod
    def of(
        cls,
        given: Array,
        bands: Sequence[str] | None,
        scale: float | None,
        offset: float | None,
        nodata: float | None,
    ) -> "Patches":
        if not isinstance(given, xr.DataArray):
            values = np.asarray(given)
            names = tuple(f"dim_{i}" for i in range(values.ndim - 3))
            leading = ("patch",) if len(names) == 1 else names
            given = _named(values, leading, "(..., band, row, column)")
        array = _last_dimensions(given)
        if not array.size:
            raise ArrayError(f"expected at least one patch, got an array of shape {array.shape}")
        return cls(array, _parameters(array, bands, scale, offset, nodata))

    @property
    def leading(self) -> tuple[str, ...]:
        """Names of the dimensions before band, y and x."""
        return tuple(str(name) for name in self.array.dims[:-3])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[:-3]

    def batches(self) -> Iterator[npt.NDArray[Any]]:
        """The patches (N, band, y, x) in order; of a lazy array no more than a batch is read."""
        if not self.leading:
            yield self.array.values[None]
            return
        step = max(1, _BATCH // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            values = self.array[start : start + step].values
            flat = values.reshape(-1, *values.shape[-3:])
            for at in range(0, len(flat), _BATCH):
                yield flat[at : at + _BATCH]


@dataclass(frozen=True)
class Image:
    """An image (band, y, x)."""

    array: xr.DataArray
    parameters: Mapping[str, str | float]

    @classmethod
    def of(
        cls,
        given: Array,
        bands: Sequence[str] | None,
        scale: float | None,
        offset: float | None,
        nodata: float | None,
    ) -> "Image":
        if not isinstance(given, xr.DataArray):
            given = _named(np.asarray(given), (), "(band, row, column)")
        array = _last_dimensions(given)
        if array.ndim != 3:
            got = ", ".join(map(str, array.dims))
            raise ArrayError(
                f"expected one image of the dimensions band, y, x; got {got}; choose one, as by "
                ".isel(date=0)"
            )
        return cls(array, _parameters(array, bands, scale, offset, nodata))

    @property
    def values(self) -> npt.NDArray[Any]:
        return np.asarray(self.array.values)


def coordinates(array: xr.DataArray, dims: Sequence[str]) -> dict[str, xr.Variable]:
    """The coordinates that lie along these dimensions alone, scalars included."""
    return {
        str(name): values.variable
        for name, values in array.coords.items()
        if set(values.dims) <= set(dims)
    }


def _named(values: npt.NDArray[Any], leading: tuple[str, ...], expected: str) -> xr.DataArray:
    if values.ndim != len(leading) + 3:
        raise ArrayError(f"expected an array of shape {expected}, got {values.shape}")
    return xr.DataArray(values, dims=(*leading, *_PIXEL_DIMS))


def _last_dimensions(array: xr.DataArray) -> xr.DataArray:
    missing = [name for name in _PIXEL_DIMS if name not in array.dims]
    if missing:
        raise ArrayError(
            f"expected the dimensions band, y and x, got {', '.join(map(str, array.dims))}; "
            "rename them, as by .rename(latitude='y')"
        )
    return array.transpose(..., *_PIXEL_DIMS)


def _parameters(
    array: xr.DataArray,
    bands: Sequence[str] | None,
    scale: float | None,
    offset: float | None,
    nodata: float | None,
) -> dict[str, str | float]:
    """Query parameters; what is not given may be a coordinate or a CF attribute."""
    if bands is None and "band" in array.coords:
        bands = _band_names(array)
    scaling = (array.attrs.get("scale_factor", 1), array.attrs.get("add_offset", 0))
    # A scale of 1 stands on every raster that was read as it lies: it tells nothing of reflectance.
    if array.dtype.kind in "iu" and scale is None and scaling != (1, 0):
        scale = float(scaling[0])
        offset = float(scaling[1]) if offset is None else offset
    if nodata is None and "_FillValue" in array.attrs and np.isfinite(array.attrs["_FillValue"]):
        nodata = float(array.attrs["_FillValue"])
    said = {"scale": scale, "offset": offset, "nodata": nodata}
    named: dict[str, str | float] = {"bands": ",".join(bands)} if bands is not None else {}
    return named | {name: value for name, value in said.items() if value is not None}


def _band_names(array: xr.DataArray) -> list[str] | None:
    """Those of the coordinate `band`; where it holds numbers, those of `long_name`, B4 as B04.

    rioxarray so gives the band descriptions of a GeoTIFF. Bands that are chosen or put in another
    order keep their numbers, beside the names of all.
    """
    band = array.coords["band"].values
    if band.dtype.kind in "UTO":
        return [str(name) for name in np.atleast_1d(band)]
    numbers = np.atleast_1d(band).tolist()
    described = dict(enumerate(np.atleast_1d(array.attrs.get("long_name", ())), start=1))
    # Of arrays that were joined, numbers come twice or go beyond the names of the first.
    if len(set(numbers)) < len(numbers) or not set(numbers) <= described.keys():
        return None
    texts = [str(described[number]).strip().upper() for number in numbers]
    matches = [_SENTINEL2_NAME.fullmatch(text) for text in texts]
    names = [f"B{match[1].zfill(2)}" for match in matches if match]
    return names if len(names) == len(texts) else None
