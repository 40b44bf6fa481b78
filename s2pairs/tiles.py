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
_NORTHING_CYCLE = 2_000_000


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """An MGRS tile name that exists, such as `31TCJ`. Build it with `TileId.parse`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> "TileId":
        """Read `31TCJ` or `T31TCJ` in any case; anything else is a `TileError`."""
        name = text.strip().upper().removeprefix("T")
        if not _PATTERN.fullmatch(name):
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


def _square_corner(name: str) -> tuple[int, int]:
    """Lower left corner of a 100 km square (UTM metres), by the mgrs package."""
    import mgrs

    try:
        _, _, easting, northing = mgrs.MGRS().MGRSToUTM(name)
    except (mgrs.core.MGRSError, ValueError) as error:
        raise TileError(f"{name} is not a tile of the grid: {_LOOKS_LIKE}") from error
    return round(easting), _in_latitude_band(name, round(northing))


def _in_latitude_band(name: str, northing: int) -> int:
    """Undo an error of 2,000 km that the mgrs package makes in latitude band C.

    The row letters of the grid repeat every 2,000 km, so the latitude band decides.
    """
    latitude = -80 + 8 * _BANDS_OF_LATITUDE.index(name[2]) + 4
    expected = latitude * 10_000_000 / 90 + (_FALSE_NORTHING_SOUTH if name[2] < "N" else 0)
    cycles = round((expected - northing) / _NORTHING_CYCLE)
    return northing + cycles * _NORTHING_CYCLE


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
