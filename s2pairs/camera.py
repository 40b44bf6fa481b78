"""The sensor: from made ground and sky to the digital numbers of one product.

Reflectance of the surface, lit by the sun over the relief, blurred by the optics; then air, haze
and clouds; then calibration, noise and the encoding of the product's baseline.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS, QUANTIFICATION, SATURATED_DN, band
from s2pairs.landscape import SLOPE_STEP, TEXTURE_STEP, Ground, Window
from s2pairs.noise import Floats, salt
from s2pairs.overpasses import Overpass
from s2pairs.safe_writer import usual_offsets
from s2pairs.seasons import Surface, surface_on
from s2pairs.sky import (
    IN_CLOUD,
    IN_SHADOW,
    Air,
    Clouds,
    air_of,
    haze_over,
    make_clouds,
    opacity,
    shadow_of,
)
from s2pairs.tiles import PIXEL_SIZE_M

CLEAR, CLOUD, SHADOW, NO_DATA = 0, 1, 2, 255
_STRIP = 240  # rows at a time: a multiple of 6, so that 60 m pixels are not cut
_BLUR_PX2 = 0.4  # variance of the kernel: about the modulation transfer of the real optics


def render(
    overpass: Overpass, window: Window, land: Ground, bands: tuple[str, ...], seed: int
) -> tuple[dict[str, npt.NDArray[np.uint16]], npt.NDArray[np.uint8]]:
    """Digital numbers by band, and the map of clouds, shadows and no-data.

    `land` is the ground of the window and of one pixel more on each side.
    """
    sensor = _Sensor(overpass, window, land, bands, seed)
    sides = {name: window.height * PIXEL_SIZE_M // band(name).resolution_m for name in bands}
    numbers = {name: np.empty((side, side), np.uint16) for name, side in sides.items()}
    sky = np.empty((window.height, window.width), np.uint8)
    for top in range(0, window.height, _STRIP):
        rows = slice(top, min(top + _STRIP, window.height))
        view = sensor.look(rows)
        sky[rows] = view.sky
        for name in bands:
            step = window.height // sides[name]
            part = slice(rows.start // step, rows.stop // step)
            numbers[name][part] = sensor.measure(name, view, step)
    return numbers, sky


@dataclass(frozen=True, slots=True)
class _View:
    """What all bands share over some rows of a scene; `material` and `light` have a pixel more."""

    first_row: int
    material: npt.NDArray[np.int64]
    soil: Floats
    canopy: Floats
    kind: npt.NDArray[np.uint8]
    light: Floats
    haze: Floats
    cloud: Floats
    bright: Floats
    shadow: Floats
    sky: npt.NDArray[np.uint8]


class _Sensor:
    """One overpass over one scene."""

    def __init__(
        self, overpass: Overpass, window: Window, land: Ground, bands: tuple[str, ...], seed: int
    ) -> None:
        day = overpass.acquired.date()
        self._overpass = overpass
        self._window = window
        self._land = land
        self._key = salt(seed, overpass.tile, overpass.acquired)
        self._haze_key = salt(seed, overpass.tile.epsg, "haze", day)
        self._index = {name: index for index, name in enumerate(bands)}
        self._surface: Surface = surface_on(day, overpass.tile.southern, bands, seed)
        self._air: Air = air_of(overpass.sun, overpass.haze, bands)
        self._clouds = _clouds(overpass, window, seed)
        rng = np.random.default_rng(self._key)
        self._bias = dict(zip(_NAMES, rng.normal(0, 0.0012, len(_NAMES)), strict=True))
        self._gain = dict(zip(_NAMES, rng.normal(1, 0.008, len(_NAMES)), strict=True))

    def look(self, rows: slice) -> _View:
        """Everything of some rows that does not depend on the band."""
        window = self._window
        part = Window(window.column, window.row + rows.start, rows.stop - rows.start, window.width)
        wide = slice(rows.start, rows.stop + 2)  # of the ground, which begins a pixel earlier
        kind = self._land.kind[wide]
        cloud, bright, shadow = self._cover(part)
        seen = _in_swath(self._overpass, window, range(rows.start, rows.stop))
        sky = np.where(shadow > IN_SHADOW, SHADOW, CLEAR)
        sky = np.where(cloud > IN_CLOUD, CLOUD, sky)
        return _View(
            first_row=rows.start,
            material=kind.astype(np.int64) * 256 + self._land.timing[wide],
            soil=1 + self._land.soil[wide] * np.float32(TEXTURE_STEP),
            canopy=self._land.canopy[wide] * np.float32(TEXTURE_STEP),
            kind=kind,
            light=self._light(wide),
            haze=haze_over(part, self._haze_key),
            cloud=cloud,
            bright=bright,
            shadow=shadow,
            sky=np.where(seen, sky, NO_DATA).astype(np.uint8),
        )

    def measure(self, name: str, view: _View, step: int) -> npt.NDArray[np.uint16]:
        """Digital numbers of a band whose pixels are `step` by `step` pixels of 10 m."""
        band_index = self._index[name]
        reflectance = _area_mean(self._at_sensor(band_index, view), step)
        reflectance *= np.float32(self._gain[name])
        reflectance += np.float32(self._bias[name])
        rng = np.random.Generator(np.random.SFC64(salt(self._key, name, view.first_row)))
        # Two parts, of the detector and of the photons: 1 in 150 at the reflectance of land.
        deviation = np.sqrt(3e-7 + 1.2e-6 * np.maximum(reflectance, 0))
        reflectance += deviation * rng.standard_normal(reflectance.shape, np.float32)
        offset = usual_offsets(self._overpass.baseline).get(name, 0)
        level = np.rint(reflectance * QUANTIFICATION) - offset
        numbers: npt.NDArray[np.uint16] = np.clip(level, 1, SATURATED_DN - 1).astype(np.uint16)
        numbers[_area_mean((view.sky == NO_DATA).astype(np.float32), step) > 0] = 0
        return numbers

    def _at_sensor(self, index: int, view: _View) -> Floats:
        """Reflectance at the top of the atmosphere, on the 10 m grid."""
        surface, air = self._surface, self._air
        response = surface.response[:, index].take(view.kind)
        bright = surface.soil[..., index].ravel().take(view.material) * view.soil
        bright += surface.canopy[..., index].ravel().take(view.material) * (
            1 + response * view.canopy
        )
        diffuse = np.float32(0.1 + 1.5 * air.rayleigh[index])
        bright *= 1 + (1 - diffuse) * view.light
        ground = through_optics(bright, self._overpass.shift) * (
            1 - (1 - diffuse) * np.float32(0.75) * view.shadow
        )
        seen: Floats = air.rayleigh[index] + air.haze[index] * view.haze
        seen += air.transmission[index] * ground
        white = view.bright * air.transmission[index] / air.transmission.max()
        seen += view.cloud * (white - seen)
        return seen

    def _light(self, rows: slice) -> Floats:
        """By how much the relief makes direct light stronger (or weaker) than on level ground."""
        sun = self._overpass.sun
        tangent = math.tan(math.radians(sun.zenith)) * SLOPE_STEP
        east = -tangent * math.sin(math.radians(sun.azimuth))
        south = tangent * math.cos(math.radians(sun.azimuth))
        light = self._land.slope_east[rows] * np.float32(east)
        light += self._land.slope_south[rows] * np.float32(south)
        clipped: Floats = np.clip(light, -0.8, 0.9)
        return clipped

    def _cover(self, part: Window) -> tuple[Floats, Floats, Floats]:
        """Opacity and reflectance of clouds, and how far their shadows darken the ground."""
        if self._clouds is None:
            nothing = np.zeros((part.height, part.width), np.float32)
            return nothing, nothing, nothing
        cloud, thickness = opacity(self._clouds, part)
        bright: Floats = np.clip(0.45 + 0.22 * thickness, 0.35, 0.95)
        return cloud, bright, shadow_of(self._clouds, self._overpass.sun, part)


_NAMES = tuple(each.name for each in BANDS)


def through_optics(values: Floats, shift: tuple[float, float]) -> Floats:
    """Blurred, and looked at `shift` pixels (east, south) beside each pixel's place.

    The outermost pixels are used up. Three weights whose mean is the shift and whose variance is
    the blur's; they are positive up to half a pixel.
    """
    (west, here, east), (north, level, south) = _taps(shift[0]), _taps(shift[1])
    down = north * values[:-2] + level * values[1:-1] + south * values[2:]
    across: Floats = west * down[:, :-2] + here * down[:, 1:-1] + east * down[:, 2:]
    return across


def _taps(shift: float) -> tuple[np.float32, np.float32, np.float32]:
    moment = _BLUR_PX2 + shift**2
    return (
        np.float32((moment - shift) / 2),
        np.float32(1 - moment),
        np.float32((moment + shift) / 2),
    )


def _area_mean(values: Floats, step: int) -> Floats:
    if step == 1:
        return values
    height, width = values.shape
    parts = values.reshape(height // step, step, width // step, step)
    mean: Floats = parts.mean(axis=(1, 3))
    return mean


def _in_swath(
    overpass: Overpass, window: Window, rows: range, step: int = 1
) -> npt.NDArray[np.bool_]:
    """Which pixels of some rows the sensor saw; the swath's edge leans like a descending orbit."""
    lean = math.tan(math.radians(12.5)) * (-1 if overpass.tile.southern else 1)
    along = lean * (np.array(rows)[:, None] - window.height / 2)
    position = (np.arange(0, window.width, step) + along) / window.width
    if overpass.empty < 0:
        return np.asarray(position >= -overpass.empty)
    return np.asarray(position < 1 - overpass.empty) | (overpass.empty == 0)


def _clouds(overpass: Overpass, window: Window, seed: int) -> Clouds | None:
    if overpass.cloud_share == 0:
        return None
    step = max(1, window.height // 400)
    valid = _in_swath(overpass, window, range(0, window.height, step), step)
    zone = salt(seed, overpass.tile.epsg)
    return make_clouds(window, valid, overpass.cloud_share, zone, overpass.acquired.date())
