"""A made landscape with known truth: what lies on each 10 m pixel of a UTM zone.

The ground is a pure function of zone, place and seed. Overlapping tiles of one zone therefore
show the same ground, and a small scene is a crop of a large one. From large to small:

- units of about 2.4 km (arable land, pasture, forest, town, hills, lake). Each group of nine
  holds a fixed number of each, so every class is common everywhere;
- a river, streams and main roads: level sets of smooth noise;
- farm blocks of about 1 km, cells of a Voronoi diagram with lanes along their borders, each with a
  direction, a width of strips and a preferred crop; in them rectangular parcels with one use each;
- streets and lots in towns and villages, stands and crowns in forests, soil patches and tramlines
  in fields.

Numbers are chosen to look like central Europe at 10 m; nothing here is fitted to a place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.landscape_plan import Plan, plan_over
from s2pairs.noise import (
    Floats,
    Hashes,
    Positions,
    fraction,
    noise,
    rehashed,
    salt,
)
from s2pairs.parcels import Cells, Plots, plots, voronoi
from s2pairs.tiles import PIXEL_SIZE_M, TileId

CLASSES = (
    "water",
    "forest",
    "grassland",
    "winter_crop",
    "summer_crop",
    "built_up",
    "bare",
    "road",
)


class Kind(IntEnum):
    """What a pixel is made of; each kind has one spectrum and one calendar."""

    WATER = 0
    BROADLEAF = 1
    CONIFER = 2
    YOUNG_STAND = 3
    PASTURE = 4
    MEADOW = 5
    HEATH = 6
    WHEAT = 7
    BARLEY = 8
    RAPESEED = 9
    MAIZE = 10
    BEET = 11
    SUNFLOWER = 12
    TILED_ROOF = 13
    GREY_ROOF = 14
    BRIGHT_ROOF = 15
    STREET = 16
    GARDEN = 17
    ROCK = 18
    GRAVEL = 19
    LANE = 20
    MAIN_ROAD = 21


_CLASS_OF_KIND = np.array(
    [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 7, 7], np.uint8
)

_BLOCK = 512  # pixels
TEXTURE_STEP = 1 / 100
SLOPE_STEP = 1 / 8192


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of 10 m pixels, counted from the zone's origin: columns east, rows south."""

    column: int
    row: int
    height: int
    width: int

    @classmethod
    def of_tile(cls, tile: TileId, height: int, width: int) -> "Window":
        """The upper left `height` by `width` pixels of a tile."""
        easting, northing = tile.upper_left()
        return cls(easting // PIXEL_SIZE_M, -northing // PIXEL_SIZE_M, height, width)

    def grown(self, margin: int) -> "Window":
        return Window(
            self.column - margin,
            self.row - margin,
            self.height + 2 * margin,
            self.width + 2 * margin,
        )

    @property
    def columns(self) -> Positions:
        """Pixel centres, in pixels."""
        return self.column + 0.5 + np.arange(self.width, dtype=np.float64)

    @property
    def rows(self) -> Positions:
        return self.row + 0.5 + np.arange(self.height, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Ground:
    """What stays the same over the dates; each array has the shape of its window.

    `kind` is a `Kind`. `timing` (0 to 255) shifts the calendar of a parcel; of water it is the
    turbidity. `soil` and `canopy` vary brightness, in steps of `TEXTURE_STEP` around 0.
    `slope_east` and `slope_south` are those of terrain, canopies and roofs, in `SLOPE_STEP`.
    `parcel` is the id of a field parcel, or 0.
    """

    kind: npt.NDArray[np.uint8]
    timing: npt.NDArray[np.uint8]
    soil: npt.NDArray[np.int8]
    canopy: npt.NDArray[np.int8]
    slope_east: npt.NDArray[np.int16]
    slope_south: npt.NDArray[np.int16]
    parcel: npt.NDArray[np.uint32]

    @property
    def landcover(self) -> npt.NDArray[np.uint8]:
        """Index into `CLASSES`."""
        return _CLASS_OF_KIND[self.kind]


def ground(
    window: Window, epsg: int, seed: int, each: Callable[..., Iterable[None]] = map
) -> Ground:
    """The ground of a window of a UTM zone, computed in blocks.

    `each` applies a function to all blocks; that of a pool of threads does so side by side.
    """
    shape = (window.height, window.width)
    whole = Ground(
        np.empty(shape, np.uint8),
        np.empty(shape, np.uint8),
        np.empty(shape, np.int8),
        np.empty(shape, np.int8),
        np.empty(shape, np.int16),
        np.empty(shape, np.int16),
        np.empty(shape, np.uint32),
    )
    plan = plan_over(window.grown(1).columns, window.grown(1).rows, epsg, seed)

    def fill(block: tuple[Window, tuple[slice, slice]]) -> None:
        part, place = block
        made = _block(part, plan, epsg, seed)
        for name in Ground.__slots__:
            getattr(whole, name)[place] = getattr(made, name)

    for _ in each(fill, blocks(window, _BLOCK)):
        pass
    return whole


def blocks(window: Window, side: int) -> list[tuple[Window, tuple[slice, slice]]]:
    """The window cut at absolute multiples of `side`, each part with its place in the window."""
    columns = _cuts(window.column, window.width, side)
    rows = _cuts(window.row, window.height, side)
    return [
        (
            Window(window.column + left, window.row + top, bottom - top, right - left),
            (slice(top, bottom), slice(left, right)),
        )
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _cuts(start: int, length: int, side: int) -> list[int]:
    first = side - start % side
    return [0, *range(first, length, side), length]


def _block(window: Window, plan: Plan, epsg: int, seed: int) -> Ground:
    """The ground of one block; a pixel more on each side gives slopes at its edge."""
    corner = (window.column // _BLOCK * _BLOCK, window.row // _BLOCK * _BLOCK)
    fields = _Fields(window.grown(1), corner, plan, epsg, seed)
    surface = _Surface.empty(fields.window)
    _farmland(surface, fields)
    _forest(surface, fields)
    _hills(surface, fields)
    _settlements(surface, fields)
    _waters(surface, fields)
    _main_roads(surface, fields)
    return _textured(surface, fields)


class _Fields:
    """Smooth fields over the pixels of one block, each made once."""

    def __init__(
        self, window: Window, origin: tuple[int, int], plan: Plan, epsg: int, seed: int
    ) -> None:
        self.window = window
        # Positions in 32-bit floats count from the same place for every window over this ground.
        self.origin = origin
        self.plan = plan
        self._zone = (seed, epsg)
        self._made: dict[str, Floats] = {}

    def salt(self, *parts: object) -> int:
        return salt(*self._zone, *parts)

    def planned(self, name: str) -> Floats:
        """A field of the plan at each pixel."""
        if name not in self._made:
            self._made[name] = self.plan.over(name, self.window.columns, self.window.rows)
        return self._made[name]

    def noise(self, name: str, cell: float) -> Floats:
        return noise(self.window.columns, self.window.rows, cell, self.salt(name))

    def voronoi(self, name: str, cell: float) -> Cells:
        """Cells over positions that are bent gently, so that borders and lanes curve."""
        left, top = self.origin
        x = (self.window.columns - left).astype(np.float32)[None, :]
        y = (self.window.rows - top).astype(np.float32)[:, None]
        x = x + 3.5 * self.noise("curve x", 70)
        y = y + 3.5 * self.noise("curve y", 70)
        return voronoi(x, y, self.origin, cell, self.salt(name))


@dataclass(frozen=True, slots=True)
class _Surface:
    """A block while it is made: layers are laid one over the other."""

    kind: npt.NDArray[np.uint8]
    key: Hashes  # of the parcel, lot or stand: what its pixels have in common
    parcel: npt.NDArray[np.uint32]
    across: Floats  # distance to the long edge of the parcel, in pixels

    @classmethod
    def empty(cls, window: Window) -> "_Surface":
        shape = (window.height, window.width)
        return cls(
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.uint32),
            np.zeros(shape, np.uint32),
            np.zeros(shape, np.float32),
        )

    def lay(self, where: npt.NDArray[np.bool_], kind: Kind) -> None:
        """Cover pixels with a kind that belongs to no parcel."""
        self.kind[where] = kind
        self.parcel[where] = 0


def _farmland(surface: _Surface, fields: _Fields) -> None:
    """Parcels of crops, grass and wood over the whole block, with lanes between farm blocks."""
    farms = fields.voronoi("farms", 105)
    field = plots(farms, (8, 24), (16, 60), fields.salt("fields"))
    preference = fraction(rehashed(farms.key, 7))[farms.site]
    kind = _use(field, preference, fields)
    surface.kind[:] = kind
    surface.key[:] = field.key
    surface.parcel[:] = np.maximum(field.key, 1)
    surface.across[:] = field.across
    grazed = np.isin(kind, (Kind.PASTURE, Kind.MEADOW))
    hedge = (field.edge < 0.7) & (fraction(rehashed(field.key, 8)) < np.where(grazed, 0.5, 0.06))
    surface.lay(hedge, Kind.BROADLEAF)
    grown = kind >= Kind.WHEAT
    surface.lay(grown & (field.edge < 0.45), Kind.MEADOW)
    surface.lay((farms.border < 0.6) & (fraction(farms.pair) < 0.6), Kind.LANE)


_WINTER = np.array([Kind.WHEAT, Kind.WHEAT, Kind.BARLEY, Kind.RAPESEED], np.uint8)
_SUMMER = np.array([Kind.MAIZE, Kind.MAIZE, Kind.BEET, Kind.SUNFLOWER], np.uint8)
_GRASS = np.array([Kind.MEADOW, Kind.PASTURE], np.uint8)
_WOOD = np.array([Kind.BROADLEAF, Kind.CONIFER, Kind.YOUNG_STAND], np.uint8)


def _use(field: Plots, preference: Floats, fields: _Fields) -> npt.NDArray[np.uint8]:
    """The kind of each parcel, from the plan at its centre and from chance."""
    centre = fields.plan.near(field.centre_x, field.centre_y, fields.origin)
    plan = {name: fields.plan.fields[name][centre] for name in ("forest", "pasture", "river")}
    chance, taste, pick = (fraction(rehashed(field.key, each)) for each in (1, 2, 3))
    wooded = plan["forest"] + 0.14 * (chance - 0.5) > 0.03
    wooded |= chance > 0.975
    grassy = plan["pasture"] + 0.2 * (taste - 0.5) > -0.01
    grassy |= taste > 0.9
    grassy |= np.abs(plan["river"]) < 22 * taste
    winter = fraction(rehashed(field.key, 4)) < np.where(preference < 0.5, 0.86, 0.12)
    choice = (pick * np.float32(4)).astype(np.int64)
    kind = np.where(winter, _WINTER[choice], _SUMMER[choice])
    kind = np.where(grassy, _GRASS[choice // 2], kind)
    stand = np.digitize(pick, (0.5, 0.93))
    return np.where(wooded, _WOOD[stand], kind).astype(np.uint8)


def _forest(surface: _Surface, fields: _Fields) -> None:
    """Woods with natural edges, where they are not parcels already; rides between stands."""
    inside = fields.planned("forest") + 0.03 * fields.noise("forest edge", 12)
    inside += 0.02 * fields.noise("forest edge fine", 4)
    wooded = inside > 0.02
    stand = fraction(rehashed(surface.key, 5)) - 0.5 + 0.45 * fields.noise("stands", 60)
    young = fraction(rehashed(surface.key, 6)) < 0.07
    planted = np.where(young, Kind.YOUNG_STAND, np.where(stand > 0, Kind.CONIFER, Kind.BROADLEAF))
    covered = wooded & (surface.kind != Kind.LANE)
    surface.kind[covered] = planted[covered]
    surface.parcel[covered] = 0


def _hills(surface: _Surface, fields: _Fields) -> None:
    """Rock and gravel on the hills, in a belt of heath, with trees in sheltered places."""
    height = fields.planned("hills") + 0.035 * fields.noise("outcrop", 22)
    height += 0.02 * fields.noise("outcrop fine", 6)
    surface.lay(height > -0.035, Kind.HEATH)
    surface.lay((height > -0.02) & (fields.noise("copse", 14) > 1.1), Kind.CONIFER)
    bare = height > 0.0
    gravel = fields.noise("scree", 30) > 0.35
    surface.lay(bare & gravel, Kind.GRAVEL)
    surface.lay(bare & ~gravel, Kind.ROCK)
    surface.lay(bare & (fields.noise("ledge", 5) > 1.5), Kind.HEATH)


def _settlements(surface: _Surface, fields: _Fields) -> None:
    """Towns and villages: quarters with streets, lots along them, gardens behind."""
    ragged = fields.noise("town edge", 9)
    town = fields.planned("town") + 0.02 * ragged > 0.0
    village = (fields.planned("village") + 4 * ragged > 0) & (fields.planned("forest") < 0.03)
    inside = town | village
    if not inside.any():
        return
    quarters = fields.voronoi("quarters", 48).only(inside)
    kind, key = _lots(quarters, town[inside], fields)
    surface.kind[inside] = kind
    surface.key[inside] = key
    surface.parcel[inside] = 0


def _lots(
    quarters: Cells, town: npt.NDArray[np.bool_], fields: _Fields
) -> tuple[npt.NDArray[np.uint8], Hashes]:
    """Kind and hash of lots: houses along streets, halls in one town quarter of five, gardens."""
    block = plots(quarters, (7, 13), (11, 24), fields.salt("street blocks"))
    lot = plots(quarters, (1.7, 2.6), (2.0, 3.4), fields.salt("lots"))
    industrial = (fraction(rehashed(quarters.key, 3)) < 0.2)[quarters.site] & town
    dense = fraction(rehashed(quarters.key, 4))[quarters.site]
    chance = fraction(block.key)
    house = (block.edge < 2.0 + 2.5 * dense) & (fraction(lot.key) < 0.45 + 0.4 * dense)
    house &= chance < 0.93
    hall = industrial & (block.edge > 1.4) & (chance < 0.8)
    street = (block.edge < 0.5) | (quarters.border < 0.7)
    tiled = fraction(rehashed(lot.key, 1)) < 0.72
    kind = np.select(
        [street, hall & (chance < 0.45), hall | (house & ~tiled & ~industrial), industrial, house],
        [Kind.STREET, Kind.BRIGHT_ROOF, Kind.GREY_ROOF, Kind.STREET, Kind.TILED_ROOF],
        Kind.GARDEN,
    )
    return kind.astype(np.uint8), np.where(hall, block.key, lot.key)


def _waters(surface: _Surface, fields: _Fields) -> None:
    """Lakes, the river and streams, with trees along the banks."""
    stream = np.abs(fields.planned("stream"))
    trees = fields.noise("bank", 7)
    open_land = surface.kind < Kind.TILED_ROOF
    surface.lay(open_land & (stream < 1.8 + 0.6 * trees), Kind.BROADLEAF)
    river = np.abs(fields.planned("river")) - 4.5 - 1.2 * fields.noise("river width", 90)
    surface.lay(open_land & (river < 2.5 + 3 * trees) & (trees > 0.2), Kind.BROADLEAF)
    lake = fields.planned("lake") + 0.012 * fields.noise("shore", 10)
    island = fields.noise("island", 26) > 2.2
    surface.lay((lake > -0.012) & (trees > 0.3), Kind.BROADLEAF)
    surface.lay((river < 0) | ((lake > 0.0) & ~island) | (stream < 0.55), Kind.WATER)


def _main_roads(surface: _Surface, fields: _Fields) -> None:
    on_land = fields.planned("lake") < 0.02
    surface.lay(on_land & (np.abs(fields.planned("main road")) < 1.1), Kind.MAIN_ROAD)


# By kind: how much soil or roofs, and canopies, vary: between parcels, over 600 m, 140 m, at 16 m.
_SOIL_VARIATION = np.array(
    [[0, 0, 0, 0]]  # water
    + [[0.05, 0.05, 0.05, 0.05]] * 3  # woods
    + [[0.10, 0.06, 0.06, 0.03]] * 2
    + [[0.0, 0.10, 0.08, 0.06]]  # heath
    + [[0.22, 0.10, 0.09, 0.025]] * 6  # crops
    + [[0.32, 0.0, 0.0, 0.08]] * 3  # roofs
    + [[0.0, 0.05, 0.0, 0.08], [0.25, 0.0, 0.05, 0.12]]  # streets, gardens
    + [[0.0, 0.10, 0.12, 0.10], [0.0, 0.06, 0.10, 0.06]]  # rock, gravel
    + [[0.0, 0.06, 0.05, 0.06], [0.0, 0.03, 0.0, 0.05]],  # roads
    np.float32,
)
_CANOPY_VARIATION = np.array(
    [[0, 0, 0, 0]]
    + [[0.12, 0.05, 0.07, 0.10], [0.10, 0.05, 0.06, 0.12], [0.15, 0.05, 0.08, 0.06]]
    + [[0.10, 0.05, 0.08, 0.05], [0.16, 0.04, 0.05, 0.02], [0.0, 0.08, 0.14, 0.09]]
    + [[0.14, 0.05, 0.06, 0.02]] * 6
    + [[0, 0, 0, 0]] * 4
    + [[0.25, 0.0, 0.1, 0.18]]
    + [[0, 0, 0, 0]] * 4,
    np.float32,
)
# By kind: height over the terrain and its roughness, in metres, as far as 10 m pixels show them.
_HEIGHT = np.array(
    [0, 6, 7, 2, 0, 0, 0.2] + [0.2] * 6 + [2.0, 2.5, 3.0, 0, 1.0, 0, 0, 0, 0], np.float32
)
_ROUGHNESS = np.array(
    [0, 1.1, 1.3, 0.3, 0, 0, 0.25] + [0] * 6 + [0.5, 0.4, 0.1, 0, 0.8, 1.2, 0.3, 0, 0]
)


def _textured(surface: _Surface, fields: _Fields) -> Ground:
    """Brightness, slopes and timing of the finished block, without the extra pixel."""
    inner = (slice(1, -1), slice(1, -1))
    kind = surface.kind
    wide, middle, fine = (
        fields.noise(name, cell)
        for name, cell in (("soil wide", 40), ("soil", 9), ("soil fine", 1.6))
    )
    crown = fields.noise("crowns", 1.3)
    own = 2 * fraction(rehashed(surface.key, 9)) - 1
    vigour = 2 * fraction(rehashed(surface.key, 10)) - 1
    soil = _mixed(_SOIL_VARIATION, kind, own, wide, middle, fine)
    canopy = _mixed(_CANOPY_VARIATION, kind, vigour, -wide, fields.noise("stand", 6), crown)
    in_crop = (kind >= Kind.WHEAT) & (kind <= Kind.SUNFLOWER)
    tramline = np.cos(surface.across * np.float32(2 * np.pi / 3.3)) * in_crop
    soil += 0.025 * tramline
    canopy -= 0.045 * tramline
    height = _terrain(fields) + _HEIGHT[kind] + _ROUGHNESS[kind] * crown
    slope_south, slope_east = np.gradient(height, float(PIXEL_SIZE_M))
    level = kind == Kind.WATER
    timing = (fraction(rehashed(surface.key, 11)) * 256).astype(np.uint8)
    timing[level] = _turbidity(fields)[level]
    return Ground(
        kind=kind[inner],
        timing=timing[inner],
        soil=_steps(soil[inner], TEXTURE_STEP, np.int8),
        canopy=_steps(canopy[inner], TEXTURE_STEP, np.int8),
        slope_east=_steps(np.where(level, 0, slope_east)[inner], SLOPE_STEP, np.int16),
        slope_south=_steps(np.where(level, 0, slope_south)[inner], SLOPE_STEP, np.int16),
        parcel=surface.parcel[inner],
    )


def _mixed(weights: Floats, kind: npt.NDArray[np.uint8], *parts: Floats) -> Floats:
    """The parts summed with the weights of each pixel's kind."""
    total = np.zeros(kind.shape, np.float32)
    for index, part in enumerate(parts):
        total += weights[:, index].take(kind) * part
    return total


def _terrain(fields: _Fields) -> Floats:
    """Elevation in metres: rolling land, steep hills, flat valley floors."""
    rolling = 26 * fields.noise("land", 260) + 9 * fields.noise("land middle", 90)
    rolling += 2.2 * fields.noise("land fine", 28)
    hills = np.clip(fields.planned("hills") + 0.12, 0, None) * 5
    crags = 16 * fields.noise("crags", 26) + 5 * fields.noise("crags fine", 8)
    valley = np.minimum(np.abs(fields.planned("river")) / 90, 1)
    lake = np.clip((0.02 - fields.planned("lake")) / 0.08, 0, 1)
    elevation: Floats = (rolling + hills * (120 + crags)) * valley * lake
    return elevation


def _turbidity(fields: _Fields) -> npt.NDArray[np.uint8]:
    """Of water: high in rivers and along shores, low in the middle of lakes."""
    shore = np.clip(1 - fields.planned("lake") / 0.10, 0, 1)
    murk = 150 * shore + 40 + 25 * fields.noise("murk", 35)
    turbidity: npt.NDArray[np.uint8] = np.clip(murk, 0, 255).astype(np.uint8)
    return turbidity


def _steps(
    values: npt.NDArray[np.floating[Any]], step: float, dtype: type[Any]
) -> npt.NDArray[Any]:
    limits = np.iinfo(dtype)
    whole: npt.NDArray[Any] = np.clip(np.rint(values / step), limits.min, limits.max)
    return whole.astype(dtype)
