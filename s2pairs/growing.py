"""Cubes out of cubes: further tiles, further dates, two cubes as one.

What comes out is a new cube with its own plan. Shards that are the same in an old cube are taken
over as they are (linked, on one file system); of the others, looks that an old cube has are copied
and the rest is read from the products.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from s2pairs.build import Had, Request, choose, make, plan, plan_of_table, scenes_of
from s2pairs.cube import Cube, begun, open_cube, same_plan
from s2pairs.errors import CubeError, SourceError
from s2pairs.filling import Scenes, tasks
from s2pairs.lock import held
from s2pairs.patches import PATCH_M
from s2pairs.pieces import Piece, joined, of_cube, of_products, with_dates
from s2pairs.plan import Plan
from s2pairs.running import Progress, Workers
from s2pairs.scenes import Catalogue, Listing, Source
from s2pairs.storage import LocalStore, Place, store_at
from s2pairs.tiles import PIXEL_SIZE_M, TileId


@dataclass(frozen=True)
class Grown:
    """What came out."""

    path: Place
    patches: int
    dates: int
    added: int
    """Patches or dates that are new."""
    left_out: int
    """Patches that could not stand beside those before."""
    shards: int


def append_tiles(
    path: Place,
    tiles: Sequence[TileId],
    source: Source,
    out: Place,
    *,
    workers: int | Workers,
    progress: Progress,
) -> Grown:
    """A cube with the patches of further tiles, chosen as its own were; `out` may be `path`.

    Tiles that it has already are passed over. What was there stays as it is, byte for byte, but
    for the last shard, which is filled up.
    """
    with _held(path, out):
        cube = open_cube(path)
        new = [tile for tile in tiles if tile.name not in cube.parameters.get("tiles", ())]
        if not new:
            return Grown(path, len(cube), cube.dates, 0, 0, cube.shards)
        request = replace(_request(cube), tiles=tuple(new))
        catalogue = source(request.bands, request.wanted)
        chosen = choose(request, catalogue)
        more = plan(request, chosen)
        names = [*cube.parameters["tiles"], *(tile.name for tile in new)]
        piece = joined(of_cube(cube), of_products(more), {**cube.parameters, "tiles": names})
        _grow(path, out, piece, scenes_of(chosen), catalogue, workers, progress)
        added = len(piece.plan.table) - len(cube)
        return _grown(out, piece, added, len(more.table) - added)


def append_dates(
    path: Place,
    count: int,
    start: datetime | None,
    end: datetime | None,
    source: Source,
    out: Place,
    *,
    workers: int | Workers,
    progress: Progress,
) -> Grown:
    """A cube with `count` further dates of its patches from [`start`, `end`); `out` may be `path`.

    Chosen as its own were, from days that it does not have yet, and put in order of time.
    """
    with _held(path, out):
        cube = open_cube(path)
        request = replace(_request(cube), dates=count, start=start, end=end)
        asked = {name: request.parameters()[name] for name in ("dates", "start", "end")}
        before = cube.parameters.get("dates_appended", [])
        if asked in before:
            return Grown(path, len(cube), cube.dates, 0, 0, cube.shards)
        request = replace(
            request, tiles=tuple(tile for tile in request.tiles if tile.name in cube.tile)
        )
        catalogue = source(request.bands, request.wanted)
        chosen = choose(request, catalogue, _had(cube))
        _check_regions(cube, chosen, count)
        _check_grids(cube, chosen)
        more = plan_of_table(request, chosen, cube.table)
        parameters = {**cube.parameters, "dates_appended": [*before, asked]}
        piece = with_dates(cube, more, parameters)
        _grow(path, out, piece, scenes_of(chosen), catalogue, workers, progress)
        return _grown(out, piece, count, 0)


def merge(
    paths: Sequence[Place], out: Place, *, workers: int | Workers, progress: Progress
) -> Grown:
    """Several cubes as one: the patches of the first, then what of the others can stand beside.

    They must have the same bands, level and number of dates.
    """
    with held(out):
        cubes = [open_cube(path) for path in paths]
        parameters = {"merged": [{"digest": c.digest, **c.parameters} for c in cubes]}
        piece = of_cube(cubes[0])
        for cube in cubes[1:]:
            piece = joined(piece, of_cube(cube), parameters)
        _fill(out, piece, {}, None, workers, progress)
        kept = len(piece.plan.table)
        return _grown(out, piece, kept - len(cubes[0]), sum(map(len, cubes)) - kept)


def _request(cube: Cube) -> Request:
    if "tiles" not in cube.parameters:
        raise CubeError(
            f"{cube.path} was merged from cubes that may have been asked for otherwise; append to "
            "one of these and merge again"
        )
    return Request.of(cube.parameters)


def _had(cube: Cube) -> Had:
    """When the looks of each region were acquired; those of one region are of the same scenes."""
    places = zip(cube.tile.tolist(), cube.region.tolist(), cube.acquired, strict=True)
    had: dict[str, dict[int, np.ndarray]] = {}
    for tile, region, acquired in places:
        had.setdefault(tile, {})[region] = acquired
    return had


def _check_regions(cube: Cube, chosen: Mapping[TileId, Listing], count: int) -> None:
    lacking = [
        f"{region} of {tile}"
        for tile, listing in chosen.items()
        if listing.of_region
        for region in np.unique(cube.region[cube.tile == tile.name]).tolist()
        if region not in listing.of_region
    ]
    if lacking:
        few = ", ".join(lacking[:5]) + (" …" if len(lacking) > 5 else "")
        raise SourceError(
            f"{len(lacking)} regions of {cube.path} have fewer than {count} further days that are "
            f"clear there: {few}. All patches of a cube have as many dates; ask for fewer --dates, "
            "or for a longer period from --start to --end"
        )


def _check_grids(cube: Cube, chosen: Mapping[TileId, Listing]) -> None:
    """A source whose images begin elsewhere would give other ground for the same row and column."""
    for tile, listing in chosen.items():
        first = int(np.argmax(cube.tile == tile.name))
        left = cube.x[first] - PATCH_M / 2 - int(cube.col[first]) * PIXEL_SIZE_M
        top = cube.y[first] + PATCH_M / 2 + int(cube.row[first]) * PIXEL_SIZE_M
        for scene in listing.scenes:
            grid = scene.grid
            if (grid.epsg, grid.left, grid.top) != (cube.epsg[first], left, top):
                raise SourceError(
                    f"tile {tile}, product {scene.product}: its pixels begin at ({grid.left:.0f}, "
                    f"{grid.top:.0f}) of EPSG:{grid.epsg}, those of {cube.path} at ({left:.0f}, "
                    f"{top:.0f}) of EPSG:{cube.epsg[first]}; take the source of the cube",
                    tile=tile.name,
                    product=scene.product,
                )


def _grown(path: Place, piece: Piece, added: int, left_out: int) -> Grown:
    plan = piece.plan
    return Grown(path, len(plan.table), plan.layout.dates, added, left_out, plan.shards)


def _fill(
    place: Place,
    piece: Piece,
    scenes: Scenes,
    catalogue: Catalogue | None,
    workers: int | Workers,
    progress: Progress,
) -> None:
    stands = begun(place, piece.plan)
    todo = tasks(
        store_at(place),
        stands,
        scenes,
        catalogue,
        origins=piece.origins,
    )
    make(place, stands, todo, workers, progress)


def _grow(
    path: Place,
    out: Place,
    piece: Piece,
    scenes: Scenes,
    catalogue: Catalogue,
    workers: int | Workers,
    progress: Progress,
) -> None:
    """Fill a cube at `out`; if that is `path`, beside it, and then in its place.

    The old cube stands until the new one is whole.
    """
    if not _in_place(path, out):
        _fill(out, piece, scenes, catalogue, workers, progress)
        return
    place = _replaceable(path)
    grown = _named(place, _GROWN)
    if grown.exists() and not _is_begun(grown, piece.plan):
        shutil.rmtree(grown)  # of another append, which was interrupted
    _fill(grown, piece, scenes, catalogue, workers, progress)
    open_cube(grown)  # or it says what is wrong, and the old one stays
    place.rename(_named(place, _REPLACED))
    _finish(place)


_GROWN, _REPLACED = "grown", "replaced"


@contextmanager
def _held(path: Place, out: Place) -> Iterator[None]:
    """Hold what will be written: `out`, or the cube itself if it shall be replaced there.

    A kill between the two renames left both folders, neither at its place: that is ended first.
    """
    if not _in_place(path, out):
        with held(out):
            yield
        return
    place = _replaceable(path)
    with held(place):
        if _named(place, _REPLACED).exists():
            _finish(place)
        yield


def _finish(place: Path) -> None:
    """Put the new cube in the place of the old one, which has been moved out of it."""
    grown, replaced = _named(place, _GROWN), _named(place, _REPLACED)
    if not place.exists():
        (grown if grown.exists() else replaced).rename(place)
    if replaced.exists():
        shutil.rmtree(replaced)


def _named(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}")


def _in_place(path: Place, out: Place) -> bool:
    old, new = (store_at(each).place for each in (path, out))
    if isinstance(old, Path) and isinstance(new, Path):
        return old.resolve() == new.resolve()
    return old == new


def _replaceable(path: Place) -> Path:
    """The folder of a cube, not a link to it."""
    store = store_at(path)
    if not isinstance(store, LocalStore):
        raise CubeError(f"{path} cannot be replaced where it is; give a new place with --out")
    return store.place.resolve()


def _is_begun(place: Path, plan: Plan) -> bool:
    try:
        same_plan(place, plan)
    except CubeError:
        return False
    return True
