"""Smooth random fields that are pure functions of place: hashes on a lattice, and splines on them.

A field depends on absolute pixel coordinates and a salt alone. So two windows show the same value
wherever they overlap, in whatever order and size they are computed.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint32]

# Uniform coefficients in [0, 1) have variance 1/12; under cubic B-splines in two directions it
# falls, on average over the cell, by (151/315)^2.
_DEVIATION = np.float32((1 / 12) ** 0.5 * 151 / 315)


def salt(*parts: object) -> int:
    """A 32-bit number for a purpose, such as `salt(seed, epsg, "river")`."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")


def hashed(column: npt.NDArray[Any], row: npt.NDArray[Any], salt: int) -> Hashes:
    """32 mixed bits for each pair of whole numbers; the two arrays broadcast."""
    return _mix(_mix(_bits(column) + np.uint32(salt)) + _bits(row))


def rehashed(bits: Hashes, salt: int) -> Hashes:
    """Another 32 bits from given ones, for one more property of the same thing."""
    return _mix(bits ^ np.uint32(salt))


def fraction(bits: Hashes) -> Floats:
    """32 bits as a number in [0, 1)."""
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _bits(whole: npt.NDArray[Any]) -> Hashes:
    if whole.dtype.itemsize == 4 and whole.dtype.kind in "iu":
        return whole.view(np.uint32)
    return whole.astype(np.int64).astype(np.uint32)


def _mix(bits: Hashes) -> Hashes:
    # The finaliser lowbias32: each bit of the input flips each bit of the result half of the time.
    bits = bits ^ (bits >> np.uint32(16))
    bits *= np.uint32(0x7FEB352D)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x846CA68B)
    bits ^= bits >> np.uint32(16)
    return bits


def noise(columns: Positions, rows: Positions, cell: float, salt: int) -> Floats:
    """A smooth field of mean 0 and deviation 1 at the crossings of `rows` and `columns`.

    Coordinates and `cell`, the step of the lattice, are in 10 m pixels; features are one to two
    cells wide. Shape (rows, columns).
    """
    first_x, lattice_x = _lattice(columns / cell)
    first_y, lattice_y = _lattice(rows / cell)
    values = fraction(hashed(lattice_x[None, :], lattice_y[:, None], salt)) - np.float32(0.5)
    return spline(values / _DEVIATION, columns / cell - first_x, rows / cell - first_y)


def noise_at(x: Positions, y: Positions, cell: float, salt: int) -> Floats:
    """The field of `noise` at any points; slower, for few points. Shape of `x` and `y`."""
    first_x, lattice_x = _lattice(x / cell)
    first_y, lattice_y = _lattice(y / cell)
    values = fraction(hashed(lattice_x[None, :], lattice_y[:, None], salt)) - np.float32(0.5)
    column, weights_x = _taps(x / cell - first_x)
    row, weights_y = _taps(y / cell - first_y)
    total = np.zeros(x.shape, np.float32)
    for j in range(4):
        along = np.zeros(x.shape, np.float32)
        for i in range(4):
            along += weights_x[i] * values[row + j, column + i]
        total += weights_y[j] * along
    return total / _DEVIATION


def spline(values: Floats, x: Positions, y: Positions) -> Floats:
    """The cubic B-spline with coefficients `values` at the crossings of `x` and `y`.

    `x` and `y` count from the first coefficient of each axis and stay one inside the edge.
    Sums are taken in a fixed order, so a value never depends on the window it is computed in.
    """
    (column, weights_x), (row, weights_y) = _taps(x), _taps(y)
    across = np.zeros((len(values), len(x)), np.float32)
    for k in range(4):
        across += values.take(column + k, axis=1) * weights_x[k]
    result = np.zeros((len(y), len(x)), np.float32)
    for k in range(4):
        result += across.take(row + k, axis=0) * weights_y[k][:, None]
    return result


def _taps(position: Positions) -> tuple[npt.NDArray[np.int64], tuple[Floats, ...]]:
    """Index of the first of four coefficients, and their weights."""
    whole = np.floor(position)
    t: Floats = (position - whole).astype(np.float32)
    weights: tuple[Any, ...] = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    return whole.astype(np.int64) - 1, weights


def _lattice(position: Positions) -> tuple[int, npt.NDArray[np.int64]]:
    """The lattice points that splines at these positions need, and the first of them."""
    first, last = int(np.floor(position.min())) - 1, int(np.floor(position.max())) + 2
    return first, np.arange(first, last + 1)
