"""Which files of a folder hold which band of which day, by their names and `rasters.yaml`."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from s2pairs.bands import BANDS
from s2pairs.errors import SourceError
from s2pairs.sources.jp2 import driver_of

CLASSES = "SCL"
SETTINGS = "rasters.yaml"
OPTIONS = {"GDAL_NETCDF_IGNORE_XY_AXIS_NAME_CHECKS": "YES"}  # many files lack the CF attributes
_SUFFIXES = (".tif", ".tiff", ".jp2", ".nc")
_DATE = r"(?P<date>(?:19|20)\d\d-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])(?:T\d{6})?)"
_TILE = r"T?(?P<tile>\d\d[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])"
_BAND = r"(?P<band>B\d{1,2}|B8A|SCL)"
_ALONE = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])"
_KNOWN = {each.name for each in BANDS} | {CLASSES}


class Settings(BaseModel):
    """What `rasters.yaml` may say; all of it is optional where the files say it themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: str | None = None
    """Names below the folder, with {date}, {band}, {tile} and *, such as `*/{tile}_{date}.tif`."""
    bands: tuple[str, ...] | None = None
    """Of the layers of each file, in their order."""
    dates: dict[str, date] = Field(default_factory=dict)
    """By file name, where names hold no date."""
    level: Literal["L1C", "L2A"] | None = None
    tile: str | None = None
    scale: float | None = Field(default=None, gt=0)
    """reflectance = number * scale + offset."""
    offset: Annotated[float, Field(gt=-1, lt=1)] | Literal["auto"] = "auto"
    nodata: float | None = None

    @field_validator("bands")
    @classmethod
    def _known(cls, bands: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = sorted(set(bands or ()) - _KNOWN)
        if unknown:
            raise ValueError(f"unknown bands {unknown}; Sentinel-2 has {sorted(_KNOWN)}")
        return bands


@dataclass(frozen=True)
class Layer:
    """One band of one day: what GDAL opens, and which of its layers."""

    location: str
    index: int
    band: str
    acquired: datetime
    file: Path
    tile: str | None


def read_settings(folder: Path) -> Settings:
    """Of the file in the folder, or nothing but defaults; `SourceError` where it is wrong."""
    path = folder / SETTINGS
    if not path.exists():
        return Settings()
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SourceError(f"{path}: {where or 'the file'}: {first['msg']}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def found_layers(folder: Path, settings: Settings) -> list[Layer]:
    """Every layer of every raster, in order of file and layer; `SourceError` where one is unclear.

    A file that is no raster, or has no date, is passed over unless `rasters.yaml` names it.
    """
    pattern = _expression(settings.files) if settings.files else None
    layers: list[Layer] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        match = pattern.fullmatch(name) if pattern else None
        if pattern and not match:
            continue
        said = {key: value for key, value in (match.groupdict() if match else {}).items() if value}
        if path.suffix.lower() == ".nc":
            layers += _of_netcdf(path, said, settings)
        else:
            layers += _of_image(path, said, settings)
    return layers


def _of_image(path: Path, said: dict[str, str], settings: Settings) -> Iterator[Layer]:
    when = settings.dates.get(path.name) or said.get("date") or _found("date", _DATE, path.stem)
    if when is None:
        return
    tile = said.get("tile") or _found("tile", _TILE, path.stem) or settings.tile
    band = said.get("band") or _found("band", _BAND, path.stem)
    names = _names_of_layers(path, _canonical(band) if band else None, settings)
    for index, name in enumerate(names, start=1):
        if name:
            yield Layer(str(path), index, name, _moment(when, path), path, tile)


def _names_of_layers(path: Path, band: str | None, settings: Settings) -> list[str | None]:
    import rasterio

    try:
        with rasterio.open(path, driver=driver_of(path.name)) as image:
            count, descriptions = image.count, image.descriptions
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{path} cannot be opened: {error}; remove it") from error
    if settings.bands:
        if len(settings.bands) != count:
            raise SourceError(
                f"{path} has {count} layers, {SETTINGS} names {len(settings.bands)} bands"
            )
        return list(settings.bands)
    if count == 1 and band:
        return [band]
    names = [_canonical(_found("band", _BAND, text or "")) for text in descriptions]
    if not any(names):
        raise SourceError(
            f"{path} does not say which bands its {count} layers are; say so in "
            f"{path.parent / SETTINGS}, such as bands: [B02, B03, B04, B08]"
        )
    return names


def _of_netcdf(path: Path, said: dict[str, str], settings: Settings) -> Iterator[Layer]:
    """Each variable that is named after a band, at each of its times."""
    import rasterio

    tile = said.get("tile") or settings.tile
    try:
        with (
            # A file of several variables lies nowhere: each of them does.
            warnings.catch_warnings(
                action="ignore", category=rasterio.errors.NotGeoreferencedWarning
            ),
            rasterio.open(path, driver=driver_of(path.name)) as container,
        ):
            variables = list(container.subdatasets) or [f'NETCDF:"{path}"']
        for location in variables:
            name = _canonical(_found("band", _BAND, location.rpartition(":")[2]))
            if name is None:
                continue
            with (
                rasterio.Env(**OPTIONS),
                rasterio.open(location, driver=driver_of(path.name)) as variable,
            ):
                tags = variable.tags()
                for index in range(1, variable.count + 1):
                    when = _time_of(tags, variable.tags(index), path)
                    of_file = tags.get(f"{variable.tags(index).get('NETCDF_VARNAME')}#tile")
                    yield Layer(location, index, name, when, path, tile or of_file)
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{path} cannot be opened: {error}; remove it") from error


def _time_of(tags: dict[str, str], of_layer: dict[str, str], path: Path) -> datetime:
    """By the units of the dimension of time, as CF has them: `days since 1990-01-01`."""
    for key, value in of_layer.items():
        dimension = key.removeprefix("NETCDF_DIM_")
        units = tags.get(f"{dimension}#units", "")
        if dimension != key and " since " in units:
            try:
                return _decoded(float(value), units, tags.get(f"{dimension}#calendar", "standard"))
            except (ValueError, OverflowError) as error:
                raise SourceError(f"{path}: {dimension} {value} {units}: {error}") from error
    raise SourceError(f"{path} has no dimension of time with units such as days since 1970-01-01")


@cache
def _decoded(value: float, units: str, calendar: str) -> datetime:
    """A time to the millisecond; `ValueError` where the conventions for NetCDF do not know it."""
    import xarray as xr

    said = {"units": units.removesuffix(" UTC"), "calendar": calendar}
    with warnings.catch_warnings(action="ignore"):  # what it warns of, an unknown type says too
        decoded = xr.decode_cf(xr.Dataset({"t": ("t", np.array([value]), said)})).t.to_numpy()
    if decoded.dtype.kind != "M" or np.isnat(decoded[0]):
        raise ValueError(f"no time of the calendar {calendar}")
    nanoseconds = int(decoded[0].astype("datetime64[ns]").astype(np.int64))
    return datetime.fromtimestamp(round(nanoseconds / 1e9, 3), UTC)


def _expression(pattern: str) -> "re.Pattern[str]":
    """The pattern of names as a regular expression; what is not special stands for itself."""
    special = {"{date}": _DATE, "{tile}": _TILE, "{band}": _BAND, "*": "[^/]*"}
    parts = re.split(r"(\{date\}|\{tile\}|\{band\}|\*)", pattern)
    return re.compile("".join(special.get(part, re.escape(part)) for part in parts), re.ASCII)


def _found(group: str, expression: str, text: str) -> str | None:
    match = re.search(_ALONE.format(expression), text.replace("_", " "), re.ASCII)
    return match[group] if match else None


def _canonical(name: str | None) -> str | None:
    """`B4` and `B04` are one band; None for what is none."""
    if name is None or name == CLASSES:
        return name
    full = name if name == "B8A" else f"B{name[1:].zfill(2)}"
    return full if full in _KNOWN else None


def _moment(when: Any, path: Path) -> datetime:
    if isinstance(when, date):
        return datetime(when.year, when.month, when.day, tzinfo=UTC)
    day, _, time = when.replace("-", "").partition("T")
    try:
        return datetime.strptime(day + (time or "000000"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise SourceError(
            f"{path}: {when} is no date; rename the file, or say dates: in {SETTINGS}"
        ) from error
