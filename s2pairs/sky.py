"""Sun, air and clouds of one made overpass.

The air is a single-scattering approximation: what the sensor sees is path reflectance plus the
surface seen through a transmission. Rayleigh scattering follows Hansen and Travis (1974); haze is
an aerosol with an Angstrom exponent of 1.3. Clouds and haze are fields over the ground, so that
neighbouring tiles of one overpass share them.
"""

import math
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS, band
from s2pairs.landscape import Window
from s2pairs.noise import Floats, Positions, noise, salt

_NODE_TIME_H = 10.5  # mean local solar time where the orbit crosses the equator southwards
_INCLINATION = 98.62


@dataclass(frozen=True, slots=True)
class Sun:
    """Angles in degrees; the azimuth runs clockwise from north."""

    zenith: float
    azimuth: float


@dataclass(frozen=True, slots=True)
class Clouds:
    """Clouds over a share of the scene; `cells` are the sizes of their parts, in pixels."""

    cells: tuple[float, ...]
    threshold: float
    height_m: float
    key: int


@dataclass(frozen=True, slots=True)
class Air:
    """The air by band: reflectance of the pure air, of haze at its mean, and transmission."""

    rayleigh: Floats
    haze: Floats
    transmission: Floats


def local_time(latitude: float) -> float:
    """Mean local solar time of the overpass in hours: the later, the further north."""
    slant = math.tan(math.radians(latitude)) / math.tan(math.radians(_INCLINATION))
    return _NODE_TIME_H - math.degrees(math.asin(max(-1.0, min(1.0, slant)))) / 15


def sun_at(latitude: float, day: date) -> Sun:
    """Position of the sun at the overpass, from latitude in degrees and the day of the year."""
    of_year = day.timetuple().tm_yday
    tilt = math.radians(-23.44) * math.cos(2 * math.pi * (of_year + 10) / 365.25)
    hour = math.radians(15 * (local_time(latitude) - 12))
    phi = math.radians(latitude)
    up = math.sin(phi) * math.sin(tilt) + math.cos(phi) * math.cos(tilt) * math.cos(hour)
    east = -math.cos(tilt) * math.sin(hour)
    north = math.cos(phi) * math.sin(tilt) - math.sin(phi) * math.cos(tilt) * math.cos(hour)
    return Sun(math.degrees(math.acos(up)), math.degrees(math.atan2(east, north)) % 360)


# Share of light that passes the gases, by band: water vapour takes most of B09 and all of B10.
_GASES = np.array([0.99, 0.98, 0.95, 0.97, 0.97, 0.96, 0.98, 0.96, 0.98, 0.4, 0.004, 0.97, 0.94])


def air_of(sun: Sun, optical_depth: float, bands: tuple[str, ...]) -> Air:
    """The air under haze of an optical depth at 550 nm."""
    chosen = [band(name).band_id for name in bands]
    wavelength = np.array([each.wavelength_nm for each in BANDS])[chosen] / 1000
    molecules = 0.008569 * wavelength**-4 * (1 + 0.0113 * wavelength**-2)
    particles = optical_depth * (wavelength / 0.55) ** -1.3
    cosine = math.cos(math.radians(sun.zenith))
    phase = 0.75 * (1 + cosine**2)
    gases = _GASES[chosen]
    slant = 1 / cosine + 1
    return Air(
        rayleigh=(gases * 1.12 * molecules * phase / (4 * cosine)).astype(np.float32),
        haze=(gases * 0.085 * particles / cosine).astype(np.float32),
        transmission=(gases * np.exp(-(0.45 * molecules + 0.14 * particles) * slant)).astype(
            np.float32
        ),
    )


def haze_over(window: Window, key: int) -> Floats:
    """Factor of mean 1 by which haze varies over the ground."""
    wide = noise(window.columns, window.rows, 420, key) + 0.4 * noise(
        window.columns, window.rows, 130, key + 1
    )
    factor: Floats = np.clip(1 + 0.3 * wide, 0.25, 2.2)
    return factor


def make_clouds(
    window: Window, valid: npt.NDArray[np.bool_], share: float, seed: int, day: date
) -> Clouds:
    """Clouds over `share` of the valid part of a window.

    `valid` is a coarse mask of the window: every n-th row and column.
    """
    rng = np.random.default_rng(salt(seed, "clouds", day))
    broad = share > 0.02 and rng.random() < 0.6
    sizes: tuple[float, ...] = (260, 90, 34, 12, 4) if broad else (95, 38, 15, 6, 2.5)
    if share < 0.02:
        sizes = (40, 16, 7, 3)
    key = salt(seed, "cloud field", day)
    columns = np.linspace(window.columns[0], window.columns[-1], valid.shape[1])
    rows = np.linspace(window.rows[0], window.rows[-1], valid.shape[0])
    field = _field(columns, rows, sizes, key)[valid]
    threshold = float(np.quantile(field, 1 - share)) if field.size else math.inf
    return Clouds(sizes, threshold, float(rng.uniform(700, 2600)), key)


def opacity(clouds: Clouds, window: Window) -> tuple[Floats, Floats]:
    """Opacity of clouds from 0 to 1, and the height of their field, at each pixel.

    A pixel is in a cloud where the opacity exceeds `IN_CLOUD`; fringes reach beyond.
    """
    over = _field(window.columns, window.rows, clouds.cells, clouds.key) - clouds.threshold
    return np.clip(IN_CLOUD + over / np.float32(0.45), 0, 1), over


IN_CLOUD = np.float32(0.2)
IN_SHADOW = np.float32(0.35)


def shadow_of(clouds: Clouds, sun: Sun, window: Window) -> Floats:
    """Opacity of the clouds between each pixel and the sun."""
    reach = clouds.height_m * math.tan(math.radians(sun.zenith)) / 10
    east = round(reach * math.sin(math.radians(sun.azimuth)))
    north = round(reach * math.cos(math.radians(sun.azimuth)))
    towards = Window(window.column + east, window.row - north, window.height, window.width)
    return opacity(clouds, towards)[0]


def _field(columns: Positions, rows: Positions, sizes: tuple[float, ...], key: int) -> Floats:
    total = np.zeros((len(rows), len(columns)), np.float32)
    for index, size in enumerate(sizes):
        total += np.float32(0.55**index) * noise(columns, rows, size, key + index)
    return total
