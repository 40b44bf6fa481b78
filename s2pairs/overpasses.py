"""When the satellites pass over a tile, and what each made overpass is like.

Sentinel-2 repeats its 143 orbits every 10 days, its two satellites 5 days apart. Orbit numbers
and times are those of the real missions; which day of five a tile is seen on is made up, the same
for all tiles of a zone within 3 degrees of longitude, so that neighbours share overpasses.
"""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import numpy as np

from s2pairs.errors import S2PairsError
from s2pairs.noise import salt
from s2pairs.sky import Sun, local_time, sun_at
from s2pairs.tiles import PIXEL_SIZE_M, TILE_SIZE_PX, TileId

REVISIT_DAYS = 5
LOWEST_SUN = 80.0  # degrees from the zenith; in deeper winter nothing is acquired
_ORBITS_PER_DAY = 14.3
_REPEAT = 143
# An orbit whose number and time are known, and the shift from absolute to relative orbits.
_KNOWN_ORBIT = {
    "S2A": (32448, datetime(2021, 9, 8, 4, 27, 1, tzinfo=UTC), -140),
    "S2B": (26649, datetime(2022, 4, 13, 15, 7, 59, tzinfo=UTC), 117),
}
_OLD_BASELINE = "02.09"
_FIRST_OFFSET_DAY = date(2022, 1, 25)
_REPROCESSED_AFTER = timedelta(days=1460)
# Pixels, by axis: two dates then differ by at most 10 m in 95% of cases; the data quality reports
# gave 12 m for products that were not yet refined by a global reference image.
_SHIFT_PX, _LARGEST_SHIFT_PX = 0.3, 0.5


@dataclass(frozen=True, slots=True)
class Calendar:
    """How many clear and cloudy overpasses of each tile, from `start` to `end`, both included."""

    dates: int
    cloudy: int
    start: date
    end: date
    seed: int


@dataclass(frozen=True, slots=True)
class Overpass:
    """One acquisition of a tile.

    `haze` is the optical depth of aerosols at 550 nm. `cloud_share`, 0 to 1, is what to aim at.
    `empty` is the share of columns outside the swath, negative when the west side is missing.
    `shift` is the error of registration: how far east and south of its place, in pixels of 10 m,
    lies the ground that a pixel shows.
    """

    tile: TileId
    acquired: datetime
    generated: datetime
    spacecraft: str
    absolute_orbit: int
    relative_orbit: int
    baseline: str
    sun: Sun
    haze: float
    cloud_share: float
    empty: float
    shift: tuple[float, float]


def overpasses(tile: TileId, calendar: Calendar) -> list[Overpass]:
    """The clear and cloudy overpasses of a tile, at a regular step."""
    days = _days(tile, calendar)
    _, longitude = centre(tile)
    track = tile.epsg, round(longitude / 3)
    rng = np.random.default_rng(salt(calendar, *track))
    registration = np.random.default_rng(salt(calendar, *track, "shift"))
    shifts = registration.normal(0, _SHIFT_PX, (len(days), 2))
    shifts = np.clip(shifts, -_LARGEST_SHIFT_PX, _LARGEST_SHIFT_PX)
    is_cloudy = np.isin(np.arange(len(days)), rng.permutation(len(days))[: calendar.cloudy])
    clear = np.flatnonzero(~is_cloudy)
    tufted = set(rng.permutation(clear)[: calendar.dates // 3])
    half_empty = {*rng.permutation(clear)[: calendar.dates // 6]}
    half_empty |= {*rng.permutation(np.flatnonzero(is_cloudy))[: calendar.cloudy // 3]}
    first_new = int(rng.integers(2))
    made = []
    for index, day in enumerate(days):
        share = 0.0
        if is_cloudy[index]:
            share = float(rng.uniform(0.08, 0.7))
        elif index in tufted:
            share = float(rng.uniform(0.003, 0.013))
        side = float(rng.choice((-1, 1)) * rng.uniform(0.35, 0.6))
        made.append(
            _overpass(
                tile,
                day,
                with_offset=int(np.sum(~is_cloudy[:index])) % 2 == first_new,
                haze=float(np.exp(rng.normal(math.log(0.13), 0.6))),
                cloud_share=share,
                empty=side if index in half_empty else 0.0,
                shift=(float(shifts[index, 0]), float(shifts[index, 1])),
            )
        )
    return made


def centre(tile: TileId) -> tuple[float, float]:
    """Latitude and longitude of the middle of a tile, in degrees."""
    from rasterio.warp import transform

    easting, northing = tile.upper_left()
    half = TILE_SIZE_PX * PIXEL_SIZE_M / 2
    longitudes, latitudes = transform(
        f"EPSG:{tile.epsg}", "EPSG:4326", [easting + half], [northing - half]
    )
    return latitudes[0], longitudes[0]


def _days(tile: TileId, calendar: Calendar) -> list[date]:
    """Days on which the tile is seen by day, one from each of as many equal spans."""
    latitude, longitude = centre(tile)
    start, end, count = calendar.start, calendar.end, calendar.dates + calendar.cloudy
    phase = salt(tile.epsg, round(longitude / 3), "phase") % REVISIT_DAYS
    first = start.toordinal() + (phase - start.toordinal()) % REVISIT_DAYS
    seen = [date.fromordinal(day) for day in range(first, end.toordinal() + 1, REVISIT_DAYS)]
    lit = [day for day in seen if sun_at(latitude, day).zenith < LOWEST_SUN]
    if len(lit) < count:
        raise S2PairsError(
            f"{tile} is seen by daylight on {len(lit)} days from {start} to {end}, "
            f"but {count} products are wanted; ask for fewer dates or a longer period"
        )
    middles = (np.arange(count) + 0.5) * len(lit) / count
    return [lit[int(middle)] for middle in middles]


def _overpass(
    tile: TileId,
    day: date,
    *,
    with_offset: bool,
    haze: float,
    cloud_share: float,
    empty: float,
    shift: tuple[float, float],
) -> Overpass:
    latitude, longitude = centre(tile)
    spacecraft = "S2A" if day.toordinal() // REVISIT_DAYS % 2 == 0 else "S2B"
    hours = (local_time(latitude) - longitude / 15) % 24
    midnight = datetime.combine(day, time(), UTC)
    acquired = midnight + timedelta(seconds=round(hours * 3600), milliseconds=24)
    absolute, relative = orbits(spacecraft, acquired)
    baseline, generated = _OLD_BASELINE, acquired + timedelta(hours=5)
    if with_offset and day >= _FIRST_OFFSET_DAY:
        baseline = "04.00"
    elif with_offset:
        baseline, generated = "05.00", acquired + _REPROCESSED_AFTER
    return Overpass(
        tile=tile,
        acquired=acquired,
        generated=generated.replace(microsecond=0),
        spacecraft=spacecraft,
        absolute_orbit=absolute,
        relative_orbit=relative,
        baseline=baseline,
        sun=sun_at(latitude, day),
        haze=min(haze, 0.6),
        cloud_share=cloud_share,
        empty=empty,
        shift=shift,
    )


def orbits(spacecraft: str, when: datetime) -> tuple[int, int]:
    """Absolute and relative orbit number of a satellite at a time."""
    number, known, shift = _KNOWN_ORBIT[spacecraft]
    days = (when - known).total_seconds() / 86400
    absolute = number + round(days * _ORBITS_PER_DAY)
    return absolute, (absolute + shift - 1) % _REPEAT + 1
