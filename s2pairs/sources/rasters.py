"""A folder of rasters with dates: what people have when they exported from elsewhere.

GeoTIFF, COG or JPEG 2000 with a date in the name, or NetCDF with a dimension of time. What the
files do not say stands in `rasters.yaml` beside them. Rasters on a UTM grid of 10, 20 or 60 m keep
it; others are brought to 10 m in UTM by nearest neighbour, so that no number is made up.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from s2pairs.bands import QUANTIFICATION, STORED_NO_DATA, STORED_SATURATED
from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError, SourceError, TileError
from s2pairs.masks import CLOUD, NO_DATA, Flags, estimated, from_scene_classes
from s2pairs.scenes import Grid, LeftOut, Listing, PixelWindow, Scene, Wanted
from s2pairs.sources.jp2 import driver_of, grid_of, read_window
from s2pairs.sources.offsets import ADDED, Samples, witnessed
from s2pairs.sources.rasters_files import (
    CLASSES,
    OPTIONS,
    SETTINGS,
    Layer,
    Settings,
    found_layers,
    read_settings,
)
from s2pairs.sources.reading_cost import pixels_of, touched_blocks
from s2pairs.tiles import PIXEL_SIZE_M, TileId, tile_at

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_FIRST_OFFSET_DAY = date(2022, 1, 25)
_SAMPLE_PX = 512
_OPEN_RASTERS = 16  # as many as there are bands, and classes
_LARGEST_OFFSET = 1.0

Image = dict[str, Layer]
"""The layers of one place and day, by band."""

Offsets = Mapping[str, float]
"""By band, what is added to numbers times scale to make reflectance."""


@dataclass(frozen=True)
class _Look:
    """One look at an image: some pixels of each band, as numbers of 1/10,000 without an offset."""

    grid: Grid
    samples: Samples
    said: Mapping[str, float | None]
    """The offset to reflectance by band, None where neither a file nor `rasters.yaml` says it."""
    classes: npt.NDArray[Any] | None
    """Of the same pixels, where there is a scene classification."""


class RastersCatalogue:
    """The rasters of one folder, for the bands that a cube wants."""

    def __init__(self, folder: Path, bands: Sequence[str]) -> None:
        if not folder.is_dir():
            raise SourceError(f"{folder} is not a folder of rasters")
        self._folder = folder
        self._bands = tuple(bands)
        self._settings = read_settings(folder)
        layers = found_layers(folder, self._settings)
        self._layers = Counter(layer.file for layer in layers)
        self._images = _by_tile_and_day(layers)
        self._of_product: dict[str, tuple[Image, Offsets]] = {}
        if not self._images:
            raise SourceError(
                f"{folder} holds no raster with a date in its name; expected files such as "
                f"31TDG_2021-07-30.tif, or what their names are like in {folder / SETTINGS}"
            )

    def tiles(self) -> list[str]:
        """Names of the tiles that the rasters lie on."""
        return sorted({tile for tile, _ in self._images})

    def scenes(self, tile: TileId) -> Listing:
        """The images of a tile by name; those that miss a band or cannot be understood left out."""
        images = {name: image for (of, name), image in self._images.items() if of == tile.name}
        if not images:
            held = ", ".join(self.tiles())
            raise SourceError(f"{self._folder} holds no raster of tile {tile}; it holds {held}")
        looks: dict[str, _Look] = {}
        left_out: list[LeftOut] = []
        with _KeptOpen() as opening:
            for name, image in images.items():
                try:
                    looks[name] = self._look(image, opening)
                except SceneError as error:
                    left_out.append(LeftOut(name, f"unusable: {error}"))
        level = self._level(tile, images)
        scenes: list[Scene] = []
        for name, offsets in _offsets(images, looks, level).items():
            if offsets is None:
                left_out.append(LeftOut(name, _UNDECIDED.format(self._folder / SETTINGS)))
                continue
            self._of_product[name] = images[name], offsets
            made = _scene(name, tile, level, images[name], looks[name], self._bands, offsets)
            scenes.append(made)
        return Listing(
            tuple(sorted(scenes, key=lambda scene: scene.product)),
            tuple(sorted(left_out, key=lambda entry: entry.product)),
        )

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Numbers (height, width) of a band in each window, with 1000 added as from 04.00 on."""
        image, offsets = self._of_product[scene.product]
        with _opened(image[band], self._settings, scene.grid) as raster:
            meaning = _Meaning.of(raster, image[band], self._settings)
            return [meaning.stored(_read(raster, image[band], w), offsets[band]) for w in windows]

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What a layer `SCL` says, where there is one."""
        image, _ = self._of_product[scene.product]
        if CLASSES not in image:
            return None
        with _opened(image[CLASSES], self._settings, scene.grid) as raster:
            return [
                from_scene_classes(_read(raster, image[CLASSES], window).astype(np.uint8))
                for window in windows
            ]

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """The blocks of the layers that the windows touch, by what the heads of the files say."""
        image, _ = self._of_product[scene.product]
        wanted = [*bands, *([CLASSES] if CLASSES in image else [])]
        total = ReadCost(0, 0)
        for layer in (image[name] for name in wanted):
            with _opened(layer, self._settings, scene.grid) as raster:
                step = round(raster.transform.a) // PIXEL_SIZE_M
                block = raster.block_shapes[layer.index - 1]
                touched = touched_blocks(windows, step, block)
                pixels = pixels_of(touched, raster.shape, block)
                part = pixels / math.prod(raster.shape)
            total += ReadCost(round(self._bytes(layer) * part), pixels)
        return total

    def cost_of_listing(self, tile: TileId, wanted: Wanted) -> ReadCost:
        """Every layer of the tile is looked at: at most all of it, less where it has overviews."""
        layers = [
            layer
            for (of, _), image in self._images.items()
            if of == tile.name
            for layer in image.values()
        ]
        return ReadCost(sum(map(self._bytes, layers)), 0)

    def _bytes(self, layer: Layer) -> int:
        """Of one layer of a file, as if all were equal."""
        return layer.file.stat().st_size // self._layers[layer.file]

    def _level(self, tile: TileId, images: Mapping[str, Image]) -> str:
        if self._settings.level:
            return self._settings.level
        names = " ".join(layer.file.name for image in images.values() for layer in image.values())
        found = [level for level in ("L1C", "L2A") if level in names]
        if len(found) != 1:
            raise SourceError(
                f"the rasters of tile {tile} do not say whether they are of level L1C (top of "
                f"atmosphere) or L2A (surface); say level: L2A in {self._folder / SETTINGS}"
            )
        return found[0]

    def _look(self, image: Image, opening: "_KeptOpen") -> _Look:
        missing = [name for name in self._bands if name not in image]
        if missing:
            raise SceneError(f"band {', '.join(missing)} is missing; it has {', '.join(image)}")
        grid: Grid | None = None
        samples: dict[str, npt.NDArray[np.uint16]] = {}
        said: dict[str, float | None] = {}
        classes: npt.NDArray[Any] | None = None
        for name in [*self._bands, *(other for other in image if other not in self._bands)]:
            with _opened(image[name], self._settings, grid, opening) as raster:
                grid = grid or grid_of(raster)
                shape = tuple(min(_SAMPLE_PX, side) for side in (grid.height, grid.width))
                numbers = raster.read(image[name].index, out_shape=shape)
                if name == CLASSES:
                    classes = numbers
                else:
                    meaning = _Meaning.of(raster, image[name], self._settings)
                    said[name] = meaning.offset
                    samples[name] = meaning.stored(numbers, ADDED / QUANTIFICATION)
        assert grid is not None
        return _Look(grid, samples, said, classes)


def _offsets(
    images: Mapping[str, Image], looks: Mapping[str, _Look], level: str
) -> dict[str, Offsets | None]:
    """The offsets to reflectance of each image, None where they cannot be told.

    As `rasters.yaml` or the files say them. Else as the pixels say; but where some images of a
    period prove to have none, those that seem to have one are more likely hazy.
    """
    seen: dict[str, int | None] = {}
    for name, look in looks.items():
        silent = {band: look.samples[band] for band, says in look.said.items() if says is None}
        if silent:
            seen[name] = witnessed(silent, level)
    decided: dict[str, Offsets | None] = {}
    for name, look in looks.items():
        known = {band: says for band, says in look.said.items() if says is not None}
        decided[name] = known
        if name not in seen:
            continue
        new = _day(images[name]) >= _FIRST_OFFSET_DAY
        peers = [seen[other] for other in seen if (_day(images[other]) >= _FIRST_OFFSET_DAY) == new]
        verdict = seen[name] if 0 not in peers or seen[name] == 0 else None
        if verdict is not None:
            decided[name] = dict.fromkeys(look.said, verdict / QUANTIFICATION) | known
        else:
            decided[name] = None
    return decided


_UNDECIDED = (
    "undecided: whether its numbers carry the 1000 of baseline 04.00 the pixels do not tell; if "
    "you know, say offset: 0 or offset: -0.1 in {}"
)


def _by_tile_and_day(layers: Sequence[Layer]) -> dict[tuple[str, str], Image]:
    """By tile and a name made of file and moment."""
    images: dict[tuple[str, str], Image] = {}
    tiles: dict[Path, str] = {}
    for layer in layers:
        tile = layer.tile or tiles.setdefault(layer.file, _tile_of(layer))
        moment = f"{layer.acquired:%Y%m%dT%H%M%S}"
        image = images.setdefault((tile, moment), {})
        if layer.band in image:
            raise SourceError(
                f"{layer.file} and {image[layer.band].file} both hold {layer.band} of tile {tile} "
                f"at {layer.acquired:%Y-%m-%d %H:%M}; give each place a folder of its own"
            )
        image[layer.band] = layer
    return {(tile, _name(image, tile, moment)): image for (tile, moment), image in images.items()}


def _name(image: Image, tile: str, moment: str) -> str:
    files = {layer.file for layer in image.values()}
    only = next(iter(files))
    alone = len(files) == 1 and only.suffix != ".nc"
    return only.stem if alone else f"{tile}_{moment}"


def _tile_of(layer: Layer) -> str:
    """The tile whose 100 km square holds the middle of the raster."""
    with _opened(layer, Settings(), None) as raster:
        left, bottom, right, top = raster.bounds
        epsg = raster.crs.to_epsg()
    try:
        return tile_at(epsg, (left + right) / 2, (bottom + top) / 2).name
    except TileError as error:
        raise SourceError(f"{layer.file} lies on no tile: {error}; say tile: …") from error


def _scene(
    name: str,
    tile: TileId,
    level: str,
    image: Image,
    look: _Look,
    bands: Sequence[str],
    offsets: Offsets,
) -> Scene:
    acquired = image[bands[0]].acquired
    cloud_cover, coverage = _cloud_and_coverage(look, bands, offsets)
    return Scene(
        product=name,
        tile=tile,
        level=level,
        acquired=acquired,
        generated=acquired,
        datatake=f"{acquired:%Y%m%dT%H%M%S}",
        baseline="00.00",
        cloud_cover=cloud_cover,
        quantification=QUANTIFICATION,
        add_offset=dict.fromkeys(bands, ADDED),
        grid=look.grid,
        assets={band: image[band].location for band in bands},
        simulated=False,
        coverage=coverage,
    )


def _day(image: Image) -> date:
    return next(iter(image.values())).acquired.date()


@dataclass(frozen=True)
class _Meaning:
    """reflectance * 10,000 = number * factor (+ an offset), but for what is no data."""

    factor: float
    offset: float | None
    """To reflectance; None where it is not said."""
    nodata: float
    whole: bool
    """Whether the numbers are integers, of which 65535 is saturated."""

    @classmethod
    def of(cls, raster: "DatasetReader", layer: Layer, settings: Settings) -> "_Meaning":
        kind = np.dtype(raster.dtypes[layer.index - 1])
        whole = bool(np.issubdtype(kind, np.integer))
        scale, offset = _scaling(raster, layer, settings, whole)
        return cls(scale * QUANTIFICATION, offset, _nodata(raster, layer, settings), whole)

    def stored(self, numbers: npt.NDArray[Any], offset: float) -> npt.NDArray[np.uint16]:
        """As a cube holds it: 1000 added, 0 where there is no data, 65535 saturated."""
        level = np.rint(numbers.astype(np.float64) * self.factor + offset * QUANTIFICATION) - ADDED
        empty = (numbers == self.nodata) | ~np.isfinite(level)
        level[empty] = STORED_NO_DATA + 1  # NaN has no integer
        clipped = np.clip(level, STORED_NO_DATA + 1, STORED_SATURATED - 1)
        stored: npt.NDArray[np.uint16] = clipped.astype(np.uint16)
        if self.whole:
            stored[numbers == STORED_SATURATED] = STORED_SATURATED
        stored[empty] = STORED_NO_DATA
        return stored


def _scaling(
    raster: "DatasetReader", layer: Layer, settings: Settings, whole: bool
) -> tuple[float, float | None]:
    """Scale and offset to reflectance as `rasters.yaml` says them, else the file, else the type.

    A file that says neither has the scale 1 and the offset 0 in GDAL. Integers then are of
    1/10,000, and so is an offset of theirs that is too large to be a reflectance.
    """
    stated, offset = float(raster.scales[layer.index - 1]), float(raster.offsets[layer.index - 1])
    plain = whole and stated == 1
    scale = settings.scale or (1 / QUANTIFICATION if plain else stated)
    if settings.offset != "auto":
        return scale, settings.offset
    if plain and abs(offset) >= _LARGEST_OFFSET:
        offset *= scale
    if not 0 < scale < math.inf or not abs(offset) < _LARGEST_OFFSET:
        raise SceneError(
            f"{layer.band} in {layer.file.name} states the scale {stated:g} and the offset "
            f"{raster.offsets[layer.index - 1]:g}, which give no reflectance; expected such as "
            f"0.0001 and -0.1. Say scale and offset in {SETTINGS}"
        )
    return scale, None if whole and not offset else offset


def _nodata(raster: "DatasetReader", layer: Layer, settings: Settings) -> float:
    """As `rasters.yaml` or the file says; 0 of integers and NaN of floats where neither does."""
    if settings.nodata is not None:
        return settings.nodata
    stated = raster.nodatavals[layer.index - 1]
    if stated is not None:
        return float(stated)
    kind = np.dtype(raster.dtypes[layer.index - 1])
    return 0.0 if np.issubdtype(kind, np.integer) else math.nan


def _cloud_and_coverage(look: _Look, bands: Sequence[str], offsets: Offsets) -> tuple[float, float]:
    """Percent of cloud among pixels with data, and the part of the pixels with data.

    By the classes where there are any, else estimated from all bands that there are; no cloud
    where these do not suffice.
    """
    valid = np.logical_and.reduce([look.samples[name] != STORED_NO_DATA for name in bands])
    if look.classes is not None:
        flags = from_scene_classes(look.classes.astype(np.uint8))
        valid &= (flags & NO_DATA) == 0
    else:
        shifts = {name: round(offset * QUANTIFICATION) - ADDED for name, offset in offsets.items()}
        levels = np.stack([look.samples[n].astype(np.int64) + shifts[n] for n in shifts])
        stored = np.clip(levels, STORED_NO_DATA + 1, STORED_SATURATED).astype(np.uint16)
        flags = estimated(stored, list(shifts))
    cloudy = (flags & CLOUD != 0) & valid
    return 100 * float(cloudy.sum()) / max(1, int(valid.sum())), float(valid.mean())


def _open(layer: Layer) -> "DatasetReader":
    import rasterio

    return rasterio.open(layer.location, driver=driver_of(layer.file.name))


class _KeptOpen:
    """Opens rasters, and keeps the last few: one of NetCDF has many dates and opens slowly."""

    def __init__(self) -> None:
        self._rasters: dict[str, DatasetReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for raster in self._rasters.values():
            raster.close()

    def __call__(self, layer: Layer) -> AbstractContextManager["DatasetReader"]:
        raster = self._rasters.pop(layer.location, None) or _open(layer)
        self._rasters[layer.location] = raster
        if len(self._rasters) > _OPEN_RASTERS:
            self._rasters.pop(next(iter(self._rasters))).close()
        return nullcontext(raster)


@contextmanager
def _opened(
    layer: Layer,
    settings: Settings,
    grid: Grid | None,
    opening: Callable[[Layer], AbstractContextManager["DatasetReader"]] = _open,
) -> Iterator["DatasetReader"]:
    """The raster, on its own UTM grid of 10, 20 or 60 m or else on one of 10 m made for it.

    `SceneError` where it is broken, or does not lie on `grid` if that is given.
    """
    import rasterio
    from rasterio.vrt import WarpedVRT

    try:
        with rasterio.Env(**OPTIONS), opening(layer) as raster:
            if raster.crs is None:
                raise SceneError(f"{layer.file} does not say where it lies (no CRS)")
            if _is_usable(raster):
                _must_lie_on(raster, layer, grid)
                yield raster
                return
            with WarpedVRT(raster, **_warp(raster, layer, settings)) as warped:
                _must_lie_on(warped, layer, grid)
                yield warped
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{layer.file} cannot be read: {error}") from error


def _is_usable(raster: "DatasetReader") -> bool:
    try:
        grid_of(raster)
    except SceneError:
        return False
    return True


def _warp(raster: "DatasetReader", layer: Layer, settings: Settings) -> dict[str, Any]:
    """How to bring it to the 10 m grid of its UTM zone; the corner lies on full 10 m."""
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.warp import transform, transform_bounds

    left, bottom, right, top = raster.bounds
    middle = transform(raster.crs, "EPSG:4326", [(left + right) / 2], [(bottom + top) / 2])
    longitude, latitude = middle[0][0], middle[1][0]
    epsg = (32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1
    west, south, east, north = transform_bounds(raster.crs, f"EPSG:{epsg}", *raster.bounds)
    west, north = math.floor(west / PIXEL_SIZE_M), math.ceil(north / PIXEL_SIZE_M)
    nodata = _nodata(raster, layer, settings)
    return {
        "crs": f"EPSG:{epsg}",
        "transform": Affine(
            PIXEL_SIZE_M, 0, west * PIXEL_SIZE_M, 0, -PIXEL_SIZE_M, north * PIXEL_SIZE_M
        ),
        "width": math.ceil(east / PIXEL_SIZE_M) - west,
        "height": north - math.floor(south / PIXEL_SIZE_M),
        "resampling": Resampling.nearest,
        "tolerance": 1e-3,  # of a pixel; none at all it does not take
        "src_nodata": nodata,
        "nodata": nodata,
    }


def _must_lie_on(raster: "DatasetReader", layer: Layer, grid: Grid | None) -> None:
    if grid is not None and grid_of(raster) != grid:
        raise SceneError(
            f"{layer.band} in {layer.file.name} lies at {grid_of(raster)}, other bands at {grid}"
        )


def _read(raster: "DatasetReader", layer: Layer, window: PixelWindow) -> npt.NDArray[Any]:
    return read_window(raster, window, layer.index)
