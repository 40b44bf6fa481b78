"""Tile lists and the ground of a tile.

A Sentinel-2 tile is named after its 100 km square of the Military Grid Reference System and is
a square of 109,800 m in that square's UTM zone.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from s2pairs.errors import TileError

TILE_SIZE_PX = 10_980
PIXEL_SIZE_M = 10

_PATTERN = re.compile(r"(0[1-9]|[1-5][0-9]|60)([C-HJ-NP-X])([A-HJ-NP-Z])([A-HJ-NP-V])", re.ASCII)
_LOOKS_LIKE = "a tile id is a UTM zone 01-60, a latitude band and two letters, such as 31TCJ"
_FALSE_NORTHING_SOUTH = 10_000_000
_BANDS_OF_LATITUDE = "CDEFGHJKLMNPQRSTUVWX"
_COLUMNS = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_SQUARE_M = 100_000
_CYCLE_M = 20 * _SQUARE_M
_METRES_PER_DEGREE = 10_000_000 / 90
# How far the northing of a latitude is from that many degrees times metres, at most: 16 km on the
# central meridian and 10 km more at the edge of a zone.
_SLACK_M = 30_000


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """An MGRS tile name that exists, such as `31TCJ`. Build it with `TileId.parse`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> "TileId":
        """Read `31TCJ` or `T31TCJ` in any case; anything else is a `TileError`."""
        name = text.strip().upper().removeprefix("T")
        # the long s and its like are no letters of ASCII until they are made capitals
        if not text.strip().isascii() or not _PATTERN.fullmatch(name):
            raise TileError(f"{text.strip()[:40]!r} is not a tile id: {_LOOKS_LIKE}")
        tile = cls(name)
        tile.upper_left()  # a well-formed name may still not exist in its zone
        return tile

    def __str__(self) -> str:
        return self.name

    @property
    def zone(self) -> int:
        return int(self.name[:2])

    @property
    def southern(self) -> bool:
        return self.name[2] < "N"

    @property
    def epsg(self) -> int:
        """EPSG code of WGS 84 / UTM in the tile's zone and hemisphere."""
        return (32700 if self.southern else 32600) + self.zone

    def upper_left(self) -> tuple[int, int]:
        """UTM easting and northing, in metres, of the tile's upper left corner."""
        easting, northing = _square_corner(self.name)
        false_northing = _FALSE_NORTHING_SOUTH if self.southern else 0
        top = northing + 100_000 - false_northing
        return easting // 60 * 60, false_northing + math.ceil(top / 60) * 60


def tile_at(epsg: int, x: float, y: float) -> TileId:
    """The tile whose 100 km square holds a point of that UTM zone; `TileError` if there is none."""
    from rasterio.warp import transform

    zone = epsg % 100
    if epsg // 100 not in (326, 327) or not 1 <= zone <= 60:
        raise TileError(f"EPSG:{epsg} is no UTM zone")
    latitude = transform(f"EPSG:{epsg}", "EPSG:4326", [x], [y])[1][0]
    letters, column = _COLUMNS[(zone - 1) % 3], math.floor(x / _SQUARE_M) - 1
    if not -80 <= latitude < 84 or not 0 <= column < len(letters):
        raise TileError(f"({x:g}, {y:g}) of EPSG:{epsg} lies on no tile")
    band = _BANDS_OF_LATITUDE[min(int((latitude + 80) // 8), len(_BANDS_OF_LATITUDE) - 1)]
    row = math.floor(y / _SQUARE_M) + (5 if zone % 2 == 0 else 0)
    return TileId.parse(f"{zone:02d}{band}{letters[column]}{_ROWS[row % len(_ROWS)]}")


def _square_corner(name: str) -> tuple[int, int]:
    """Lower left corner of a 100 km square (UTM metres), in closed form.

    Column letters run A-H, J-R, S-Z over three zones. Row letters run A-V from the equator in odd
    zones, from F in even ones, and repeat every 2,000 km, so the latitude band has to decide.
    """
    zone, letter, column, row = int(name[:2]), name[2], name[3], name[4]
    columns = _COLUMNS[(zone - 1) % 3]
    if column not in columns:
        raise TileError(f"{name} is not a tile of the grid: zone {zone} has columns {columns}")
    easting = (columns.index(column) + 1) * _SQUARE_M
    index = _ROWS.index(row) - (5 if zone % 2 == 0 else 0)
    # The provider counts tiles beyond 80 degrees south, where the system ends, to band C.
    south = -83 if letter == "C" else -80 + 8 * _BANDS_OF_LATITUDE.index(letter)
    north = 84 if letter == "X" else -72 + 8 * _BANDS_OF_LATITUDE.index(letter)
    false_northing = 0 if letter >= "N" else _FALSE_NORTHING_SOUTH
    lowest = false_northing + south * _METRES_PER_DEGREE - _SQUARE_M - _SLACK_M
    northing = math.ceil((lowest - index * _SQUARE_M) / _CYCLE_M) * _CYCLE_M + index * _SQUARE_M
    if northing > false_northing + north * _METRES_PER_DEGREE + _SLACK_M:
        raise TileError(f"{name} is not a tile of the grid: no row {row} in latitude band {letter}")
    return easting, northing


def read_tiles(path: Path) -> list[TileId]:
    """Tiles of a list, one a line, in the order of the file.

    Text after `#` and blank lines are ignored. A bad line and a repeated tile are errors that
    carry the line's number; so is a list without any tile.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TileError(f"cannot read the tile list {path}: {error}") from error
    lines: dict[TileId, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            tile = TileId.parse(entry)
        except TileError as error:
            raise TileError(f"{path}, line {number}: {error}") from None
        if tile in lines:
            raise TileError(f"{path}, line {number}: {tile} stands already on line {lines[tile]}")
        lines[tile] = number
    if not lines:
        raise TileError(f"{path} names no tile; write one a line: {_LOOKS_LIKE}")
    return list(lines)
