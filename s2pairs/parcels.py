"""Geometry of farm blocks and plots: Voronoi cells, and rectangles inside each.

All lengths are in 10 m pixels. Everything depends on absolute position and salt alone; positions
count from an origin only to keep 32-bit floats exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from s2pairs.noise import Floats, Hashes, fraction, hashed, rehashed

_REACH = 1.5  # in cells: with sites kept 0.15 cells inside, the two nearest are always closer


@dataclass(frozen=True, slots=True)
class Cells:
    """The Voronoi cell of each pixel of a window.

    `site` indexes the tables `key` (hash), `site_x` and `site_y`. `x` and `y` are relative to the
    site. `border` is the distance to the border with the second nearest site, `pair` a hash of
    the two.
    """

    key: Hashes
    site_x: Floats
    site_y: Floats
    site: npt.NDArray[np.int16]
    x: Floats
    y: Floats
    border: Floats
    pair: Hashes

    def only(self, where: npt.NDArray[np.bool_]) -> "Cells":
        """The cells of some pixels, as a list."""
        chosen = {name: getattr(self, name)[where] for name in ("site", "x", "y", "border", "pair")}
        return replace(self, **chosen)


@dataclass(frozen=True, slots=True)
class Plots:
    """The rectangle of each pixel: its hash, its centre, and where in it the pixel lies.

    `edge` is the distance to the nearest edge, `across` that to one long edge.
    """

    key: Hashes
    centre_x: Floats
    centre_y: Floats
    edge: Floats
    across: Floats


def voronoi(x: Floats, y: Floats, origin: tuple[int, int], cell: float, salt: int) -> Cells:
    """Cells around sites on a jittered lattice of step `cell`.

    `x` and `y` have a window's shape and count from `origin`, the absolute column and row; `x`
    may bend along columns and `y` along rows, so that borders are not straight.
    """
    key, sites_x, sites_y = _sites(x, y, origin, cell, salt)
    nearest = np.full(x.shape, np.inf, np.float32)
    second = nearest.copy()
    site = np.zeros(x.shape, np.int16)
    other = site.copy()
    for number, part in _neighbourhoods(x, y, sites_x, sites_y, _REACH * cell):
        square = (x[part] - sites_x[number]) ** 2 + (y[part] - sites_y[number]) ** 2
        first = square < nearest[part]
        np.copyto(other[part], number, where=square < second[part])
        np.copyto(other[part], site[part], where=first)
        np.copyto(site[part], number, where=first)
        np.minimum(second[part], np.maximum(nearest[part], square), out=second[part])
        np.minimum(nearest[part], square, out=nearest[part])
    at_x, at_y = sites_x[site], sites_y[site]
    apart = np.hypot(at_x - sites_x[other], at_y - sites_y[other])
    one, two = key[site], key[other]
    return Cells(
        key=key,
        site_x=sites_x,
        site_y=sites_y,
        site=site,
        x=x - at_x,
        y=y - at_y,
        border=(second - nearest) / (2 * np.maximum(apart, np.float32(1e-3))),
        pair=hashed(np.minimum(one, two), np.maximum(one, two), salt),
    )


def plots(
    cells: Cells, width: tuple[float, float], length: tuple[float, float], salt: int
) -> Plots:
    """Cut each cell into strips of one direction and each strip into rectangles.

    `width` and `length` are the ranges that a cell's typical size is drawn from; single edges
    are shifted by up to 30%.
    """
    angle = fraction(rehashed(cells.key, salt)) * np.float32(np.pi)
    widths = _between(width, rehashed(cells.key, salt + 1))
    lengths = _between(length, rehashed(cells.key, salt + 2))
    cosine, sine = np.cos(angle)[cells.site], np.sin(angle)[cells.site]
    step_u, step_v = widths[cells.site], lengths[cells.site]
    key = cells.key[cells.site]
    u = (cells.x * cosine + cells.y * sine) / step_u
    v = (cells.y * cosine - cells.x * sine) / step_v
    column, low_u, high_u = _interval(u, rehashed(key, salt + 3))
    strip = hashed(key, column, salt + 4)
    row, low_v, high_v = _interval(v, strip)
    edge_u = np.minimum(u - low_u, high_u - u) * step_u
    edge_v = np.minimum(v - low_v, high_v - v) * step_v
    middle_u, middle_v = (low_u + high_u) / 2 * step_u, (low_v + high_v) / 2 * step_v
    return Plots(
        key=hashed(strip, row, salt + 5),
        centre_x=cells.site_x[cells.site] + (middle_u * cosine - middle_v * sine),
        centre_y=cells.site_y[cells.site] + (middle_u * sine + middle_v * cosine),
        edge=np.minimum(edge_u, edge_v),
        across=(u - low_u) * step_u,
    )


def _sites(
    x: Floats, y: Floats, origin: tuple[int, int], cell: float, salt: int
) -> tuple[Hashes, Floats, Floats]:
    """Hash and place of each site that may matter to a window."""
    left, top = origin
    columns = np.arange((left + x.min()) // cell - 2, (left + x.max()) // cell + 3)
    rows = np.arange((top + y.min()) // cell - 2, (top + y.max()) // cell + 3)
    column, row = (each.ravel() for each in np.meshgrid(columns, rows))
    key = hashed(column, row, salt)
    at_x = (column + 0.15 + 0.7 * fraction(rehashed(key, 1))) * cell - left
    at_y = (row + 0.15 + 0.7 * fraction(rehashed(key, 2))) * cell - top
    return key, at_x.astype(np.float32), at_y.astype(np.float32)


def _neighbourhoods(
    x: Floats, y: Floats, sites_x: Floats, sites_y: Floats, reach: float
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """The part of the window that each site may be one of the two nearest to."""
    low_x, high_x, low_y, high_y = x.min(axis=0), x.max(axis=0), y.min(axis=1), y.max(axis=1)
    for number, (at_x, at_y) in enumerate(zip(sites_x, sites_y, strict=True)):
        columns = np.flatnonzero((high_x > at_x - reach) & (low_x < at_x + reach))
        rows = np.flatnonzero((high_y > at_y - reach) & (low_y < at_y + reach))
        if columns.size and rows.size:
            yield number, (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))


def _interval(position: Floats, key: Hashes) -> tuple[npt.NDArray[np.int32], Floats, Floats]:
    """Index and both ends of the shifted unit interval that holds each position."""
    index = np.floor(position).astype(np.int32)
    index -= position < index + _shift(key, index)
    index += position >= index + 1 + _shift(key, index + 1)
    return index, index + _shift(key, index), index + 1 + _shift(key, index + 1)


def _shift(key: Hashes, index: npt.NDArray[np.int32]) -> Floats:
    return (fraction(hashed(index, key, 0)) - np.float32(0.5)) * np.float32(0.6)


def _between(span: tuple[float, float], bits: Hashes) -> Floats:
    low, high = span
    return np.float32(low) * np.float32(high / low) ** fraction(bits)
