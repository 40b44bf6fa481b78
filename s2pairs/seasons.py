"""What the made ground reflects on a day: spectra of materials, and the calendar of each kind.

Surface reflectances are typical values at the centres of the 13 bands, rounded to what one can
read off spectral libraries; calendars are those of central Europe. South of the equator the
calendar is shifted by half a year.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS, band
from s2pairs.landscape import Kind
from s2pairs.noise import Floats, salt

Days = npt.NDArray[np.float64]
_TIMINGS = 256

# B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12, in hundredths.
_SPECTRA = {
    name: np.array(values) / 100
    for name, values in {
        "clear water": [3.0, 2.8, 2.0, 0.8, 0.5, 0.3, 0.25, 0.2, 0.2, 0.15, 0, 0.1, 0.1],
        "murky water": [4.5, 5.5, 7.5, 5.0, 4.2, 2.2, 2.0, 1.6, 1.4, 1.0, 0, 0.3, 0.2],
        "soil": [5, 7, 10, 14, 17, 19, 21, 23, 25, 27, 24, 32, 28],
        "crop": [2, 2.5, 6, 2.8, 8, 31, 41, 43, 45, 44, 10, 20, 9],
        "straw": [9, 12, 18, 25, 29, 32, 34, 36, 38, 39, 30, 41, 31],
        "yellow bloom": [3, 4, 17, 15, 20, 36, 43, 45, 46, 45, 10, 22, 11],
        "grass": [2.8, 3.2, 7, 4, 10, 27, 34, 36, 38, 37, 10, 24, 12],
        "dry grass": [6, 8, 12, 16, 20, 25, 28, 30, 32, 33, 25, 38, 28],
        "broadleaf": [1.8, 2.1, 4.4, 2.1, 6.5, 24, 33, 35, 37, 36, 8, 16, 6.5],
        "autumn leaves": [2.5, 3.2, 7.5, 10, 15, 24, 28, 30, 32, 32, 10, 22, 11],
        "branches": [3.5, 4.5, 6, 7, 9.5, 13, 15, 17, 19, 20, 14, 22, 16],
        "conifer": [1.5, 1.8, 2.9, 1.8, 4, 12.5, 16, 17.5, 19, 18, 5, 8.5, 3.5],
        "tiles": [6, 7, 10, 18, 22, 25, 27, 28, 30, 31, 28, 35, 33],
        "slate": [9, 10, 11, 12, 12, 13, 13, 14, 14, 14, 14, 16, 16],
        "metal roof": [20, 23, 26, 28, 29, 29, 30, 30, 30, 29, 25, 27, 24],
        "asphalt": [8, 9, 10, 11, 12, 12, 13, 13, 13, 14, 14, 16, 16],
        "rock": [8, 10, 12.5, 14.5, 16, 17, 17.5, 18, 19, 19, 19, 24, 22],
        "gravel": [9, 11.5, 15, 18.5, 20, 21.5, 22.5, 23.5, 24.5, 25, 24, 30, 28],
    }.items()
}


@dataclass(frozen=True, slots=True)
class Surface:
    """Reflectance by kind and timing on one day: `soil` and `canopy` are (kind, timing, band).

    Brightness varies as soil * (1 + s) + canopy * (1 + response * c), with the textures s and c
    of the ground; `response` is (kind, band): denser crops are darker in red and brighter in near
    infrared, while gaps in a forest darken every band.
    """

    soil: Floats
    canopy: Floats
    response: Floats


def surface_on(day: date, southern: bool, bands: tuple[str, ...], seed: int) -> Surface:
    """The surface on one day; weather of the year and wetness of the day come from the seed."""
    weather = np.random.default_rng(salt(seed, "weather", day.year, southern))
    year_shift, drought = weather.normal(0, 5), weather.uniform(0.0, 0.5)
    of_day = np.random.default_rng(salt(seed, "wetness and wind", day, southern))
    wetness, glint = of_day.uniform(0.72, 1.06), 0.005 * of_day.random() ** 3
    of_year = day.timetuple().tm_yday + (182 if southern else 0)
    timing = np.linspace(-1, 1, _TIMINGS)
    soil = np.zeros((len(Kind), _TIMINGS, len(BANDS)))
    canopy = np.zeros_like(soil)
    for kind in Kind:
        ground, plants = _mixture(kind, (of_year - year_shift) % 365.25, timing, drought)
        soil[kind] = _blend(ground)
        canopy[kind] = _blend(plants)
    soil[Kind.BROADLEAF : Kind.TILED_ROOF] *= wetness
    soil[Kind.WATER] += glint
    chosen = [band(name).band_id for name in bands]
    return Surface(
        soil=soil[..., chosen].astype(np.float32),
        canopy=canopy[..., chosen].astype(np.float32),
        response=_RESPONSE[:, chosen],
    )


Mixture = dict[str, Days]


def _mixture(kind: Kind, day: float, timing: Days, drought: float) -> tuple[Mixture, Mixture]:
    """Shares of materials of a kind, those of the ground and those of the plants, by timing."""
    one = np.ones_like(timing)
    match kind:
        case Kind.WATER:
            murk = (timing + 1) / 2
            return {"clear water": 1 - murk, "murky water": murk}, {}
        case Kind.WHEAT | Kind.BARLEY | Kind.RAPESEED | Kind.MAIZE | Kind.BEET | Kind.SUNFLOWER:
            plants = _crop(kind, day + 14 * timing)
            return {"soil": 1 - sum(plants.values(), 0 * one)}, plants
        case Kind.BROADLEAF:
            leaves = _rise(day + 7 * timing, 112, 5) * (1 - _rise(day + 7 * timing, 300, 7))
            turned = leaves * _rise(day + 10 * timing, 283, 5)
            bare = 1 - leaves
            return {}, {
                "broadleaf": leaves - turned,
                "autumn leaves": turned,
                "branches": 0.85 * bare,
            }
        case Kind.PASTURE | Kind.MEADOW | Kind.HEATH | Kind.YOUNG_STAND | Kind.GARDEN:
            plants = _sward(kind, day, timing, drought)
            return {"soil": 1 - sum(plants.values(), 0 * one)}, plants
        case _:
            on_ground, growing = _UNCHANGING[kind]
            return (
                {name: share * one for name, share in on_ground.items()},
                {name: share * one for name, share in growing.items()},
            )


# Kinds without a calendar: shares of the ground and of the plants.
_UNCHANGING: dict[Kind, tuple[dict[str, float], dict[str, float]]] = {
    Kind.CONIFER: ({"soil": 0.06}, {"conifer": 0.94}),
    Kind.TILED_ROOF: ({"tiles": 1}, {}),
    Kind.GREY_ROOF: ({"slate": 1}, {}),
    Kind.BRIGHT_ROOF: ({"metal roof": 1}, {}),
    Kind.STREET: ({"asphalt": 1}, {}),
    Kind.ROCK: ({"rock": 1}, {}),
    Kind.GRAVEL: ({"gravel": 1}, {}),
    Kind.LANE: ({"soil": 0.55}, {"grass": 0.25, "dry grass": 0.2}),
    Kind.MAIN_ROAD: ({"asphalt": 1}, {}),
}


def _crop(kind: Kind, day: Days) -> Mixture:
    """Green, blooming and dry cover of a field; harvest and ploughing end each."""
    match kind:
        case Kind.WHEAT | Kind.BARLEY:
            early = 12 if kind == Kind.BARLEY else 0
            ripe, cut = _rise(day, 180 - early, 5), _rise(day, 207 - early, 1.5)
            green = (0.25 + 0.65 * _rise(day, 86 - early, 11)) * (1 - ripe)
            green += 0.25 * _rise(day, 308, 9)
            return {"crop": green, "straw": _harvested(0.85 * ripe, cut, day, 246)}
        case Kind.RAPESEED:
            ripe, cut = _rise(day, 178, 6), _rise(day, 199, 1.5)
            green = (0.5 + 0.42 * _rise(day, 80, 9)) * (1 - ripe) + 0.45 * _rise(day, 285, 10)
            bloom = 0.8 * green * _peak(day, 121, 10)
            return {
                "crop": green - bloom,
                "yellow bloom": bloom,
                "straw": _harvested(0.7 * ripe, cut, day, 232),
            }
        case Kind.MAIZE:
            ripe, cut = _rise(day, 262, 6), _rise(day, 281, 2)
            green = 0.92 * _rise(day, 170, 7) * (1 - ripe)
            return {"crop": green, "straw": _harvested(0.7 * ripe, cut, day, 310)}
        case Kind.BEET:
            return {"crop": 0.9 * _rise(day, 161, 8) * (1 - _rise(day, 292, 3))}
        case _:
            ripe, cut = _rise(day, 238, 6), _rise(day, 262, 2)
            green = 0.88 * _rise(day, 167, 7) * (1 - ripe)
            bloom = 0.4 * green * _peak(day, 203, 9)
            dry = _harvested(0.6 * ripe, cut, day, 285)
            return {"crop": green - bloom, "yellow bloom": bloom, "straw": dry}


def _harvested(standing: Days, cut: Days, day: Days, ploughed: float) -> Days:
    """Straw that stands until the cut, then stubble until ploughing."""
    return (standing * (1 - cut) + 0.5 * cut) * (1 - _rise(day, ploughed, 4))


def _sward(kind: Kind, day: float, timing: Days, drought: float) -> Mixture:
    """Grass and shrubs: green from spring to autumn, mown or browned in summer."""
    shifted = day + 6 * timing
    season = 0.45 + 0.45 * _rise(shifted, 92, 11) * (1 - _rise(shifted, 305, 14))
    brown = drought * _peak(shifted, 222, 32)
    green = season * (1 - brown)
    match kind:
        case Kind.MEADOW:
            for mown in (150, 206, 262):
                since = day + 16 * timing - mown
                green = green * np.where(since > 0, 1 - 0.62 * np.exp(-np.abs(since) / 17), 1)
            return {"grass": green, "dry grass": 0.75 * (0.95 - green)}
        case Kind.PASTURE:
            return {"grass": 0.92 * green, "dry grass": 0.6 * (0.95 - 0.92 * green)}
        case Kind.HEATH:
            return {"grass": 0.5 * green, "dry grass": 0.3 + 0.2 * (0.9 - green)}
        case Kind.YOUNG_STAND:
            return {"broadleaf": 0.55 * green, "conifer": 0.2 + 0 * green, "dry grass": 0.1 + brown}
        case _:
            return {"broadleaf": 0.4 * green, "grass": 0.35 * green, "conifer": 0.1 + 0 * green}


def _rise(day: Days, middle: float, width: float) -> Days:
    """From 0 to 1 around a day of the year; `width` days of a logistic."""
    return np.asarray(1 / (1 + np.exp(-(day - middle) / width)))


def _peak(day: Days, middle: float, width: float) -> Days:
    return np.asarray(np.exp(-(((day - middle) / width) ** 2)))


def _blend(shares: Mixture) -> Days:
    """(timing, 13 bands) of materials by share."""
    total = np.zeros((_TIMINGS, len(BANDS)))
    for name, share in shares.items():
        total += share[:, None] * _SPECTRA[name]
    return total


def _responses() -> Floats:
    dense = np.array([-0.5] * 4 + [-0.2, 0.6, 1, 1, 1, 1, 0.5, -0.5, -0.6])
    shaded = np.array([0.6, 0.6, 0.75, 0.65, 0.8, 1, 1, 1, 1, 1, 1, 0.95, 0.9])
    table = np.tile(dense, (len(Kind), 1))
    for kind in (Kind.BROADLEAF, Kind.CONIFER, Kind.YOUNG_STAND, Kind.GARDEN, Kind.HEATH):
        table[kind] = shaded
    return table.astype(np.float32)


_RESPONSE = _responses()
