"""The plan of the made landscape: what lies where at the scale of kilometres.

Fields that change slowly are computed on a lattice of 80 m, which makes room for costlier shapes:
units of land, the river and its streams, main roads, villages. All are pure functions of zone,
place and seed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2pairs.noise import Floats, Positions, fraction, hashed, noise_at, rehashed, salt, spline

_STEP = 8  # pixels
_MARGIN = 96  # pixels around a window: more than from any pixel to the centre of its parcel
_UNIT = 240  # pixels: the lattice of landscape units
_UNITS = ("arable", "arable", "arable", "pasture", "forest", "forest", "town", "hills", "lake")
_IS_UNIT = {name: np.array([unit == name for unit in _UNITS]) for name in dict.fromkeys(_UNITS)}
_BIAS = {"arable": -0.02, "pasture": 0.03, "forest": 0.02, "lake": 0.01}


@dataclass(frozen=True, slots=True)
class Plan:
    """Smooth fields on the lattice points (first + i) * 80 m, by name.

    A unit's field says how far it leads (positive) or lags behind the strongest other unit. River,
    stream and main road are signed distances in pixels; village is the distance inside one.
    """

    first_x: int
    first_y: int
    fields: dict[str, Floats]

    def over(self, name: str, columns: Positions, rows: Positions) -> Floats:
        """A field at the crossings of rows and columns, in pixels."""
        x, y = columns / _STEP - self.first_x, rows / _STEP - self.first_y
        return spline(self.fields[name], x, y)

    def near(
        self, x: Floats, y: Floats, origin: tuple[int, int]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """Indices of the lattice points nearest to positions that count from `origin`."""
        left, top = origin[0] - self.first_x * _STEP, origin[1] - self.first_y * _STEP
        column = np.rint((x + np.float32(left)) / _STEP)
        row = np.rint((y + np.float32(top)) / _STEP)
        return row.astype(np.int64), column.astype(np.int64)


def plan_over(columns: Positions, rows: Positions, epsg: int, seed: int) -> Plan:
    """The plan of the ground between the first and last of `columns` and `rows`, in pixels."""
    first_x, lattice_x = _lattice_around(columns)
    first_y, lattice_y = _lattice_around(rows)
    x, y = np.meshgrid(lattice_x, lattice_y)

    def smooth(name: str, cell: float, at: tuple[Positions, Positions] = (x, y)) -> Floats:
        return noise_at(*at, cell, salt(seed, epsg, name))

    bent = (
        x + 45 * smooth("bend x", 160) + 16 * smooth("bend x fine", 45),
        y + 45 * smooth("bend y", 160) + 16 * smooth("bend y fine", 45),
    )
    fields = _units(bent, epsg, seed)
    meander = (
        bent[0] + 22 * smooth("meander x", 70),
        bent[1] + 22 * smooth("meander y", 70),
    )
    fields["river"] = _signed_distance(smooth("river", 620, meander))
    fields["stream"] = _signed_distance(smooth("stream", 400, meander))
    fields["main road"] = _signed_distance(smooth("main road", 520, (x, y)))
    fields["village"] = _villages(bent, salt(seed, epsg, "village"))
    return Plan(first_x, first_y, fields)


def _lattice_around(pixels: Positions) -> tuple[int, Positions]:
    first = int((pixels[0] - _MARGIN) // _STEP)
    last = int((pixels[-1] + _MARGIN) // _STEP) + 2
    return first, np.arange(first, last + 1, dtype=np.float64) * _STEP


def _units(at: tuple[Positions, Positions], epsg: int, seed: int) -> dict[str, Floats]:
    """By unit, how far it leads (positive) or lags behind the strongest at each point."""
    share = _presence(*at, salt(seed, epsg, "units"))
    for name in share:
        share[name] += _BIAS.get(name, 0)
        share[name] += 0.035 * noise_at(*at, 110, salt(seed, epsg, name, "wide"))
        share[name] += 0.02 * noise_at(*at, 42, salt(seed, epsg, name, "fine"))
    lead = {}
    for name, own in share.items():
        others = [field for other, field in share.items() if other != name]
        lead[name] = own - np.maximum.reduce(others)
    return lead


def _presence(x: Positions, y: Positions, key: int) -> dict[str, Floats]:
    """By unit, the spline of the lattice that is 1 where the unit stands and 0 elsewhere."""
    column, row = np.floor(x / _UNIT).astype(np.int64), np.floor(y / _UNIT).astype(np.int64)
    first_x, first_y = column.min() - 1, row.min() - 1
    columns = np.arange(first_x, column.max() + 3)
    rows = np.arange(first_y, row.max() + 3)
    standing = _standing(*np.meshgrid(columns, rows), key)
    present = {name: np.zeros(x.shape, np.float32) for name in dict.fromkeys(_UNITS)}
    for i in range(-1, 3):
        for j in range(-1, 3):
            weight = _bump(x / _UNIT - column - i) * _bump(y / _UNIT - row - j)
            unit = standing[row + j - first_y, column + i - first_x]
            for name, total in present.items():
                np.add(total, weight, out=total, where=_IS_UNIT[name][unit])
    return present


def _bump(distance: Positions) -> Floats:
    """The cubic B-spline at a distance of at most 2 from its centre."""
    d: Floats = np.abs(distance).astype(np.float32)
    bump: Floats = np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / 6, (2 - d) ** 3 / 6)
    return bump


def _standing(
    column: npt.NDArray[np.int64], row: npt.NDArray[np.int64], key: int
) -> npt.NDArray[np.int64]:
    """Index into `_UNITS` at lattice points: each group of three by three holds all nine."""
    group = hashed(column // 3, row // 3, key)
    place = row % 3 * 3 + column % 3
    order = np.stack([hashed(np.full_like(place, each), group, key + 1) for each in range(9)])
    own = np.take_along_axis(order, place[None], 0)
    rank: npt.NDArray[np.int64] = (order < own).sum(axis=0)
    return rank


def _signed_distance(field: Floats) -> Floats:
    """Distance in pixels to the zero level of a field on the plan's lattice, to first order."""
    slope_y, slope_x = np.gradient(field, float(_STEP))
    steepness = np.maximum(np.hypot(slope_x, slope_y), 1e-4)
    distance: Floats = np.clip(field / steepness, -400, 400)
    return distance


def _villages(at: tuple[Positions, Positions], key: int) -> Floats:
    """How many pixels inside (positive) or outside the nearest village a point lies."""
    x, y = at
    cell = 260.0
    inside = np.full(x.shape, -400, np.float32)
    column, row = np.floor(x / cell), np.floor(y / cell)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            bits = hashed(column + i, row + j, key)
            at_x = (column + i + 0.2 + 0.6 * fraction(rehashed(bits, 1))) * cell
            at_y = (row + j + 0.2 + 0.6 * fraction(rehashed(bits, 2))) * cell
            radius = np.where(fraction(bits) < 0.7, 12 + 20 * fraction(rehashed(bits, 3)), -400)
            inside = np.maximum(inside, radius - np.hypot(x - at_x, y - at_y))
    return inside.astype(np.float32)
