"""Cubes out of cubes: further tiles, further dates, two cubes as one.

What comes out is a new cube with its own plan. Shards that are the same in an old cube are taken
over as they are (linked, on one file system); of the others, looks that an old cube has are copied
and the rest is read from the products.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.build import Request, choose, make, plan, plan_of_table, scenes_of
from s2pairs.cube import Cube, open_cube, plan_of
from s2pairs.errors import CubeError
from s2pairs.filling import Origins, Scenes, tasks
from s2pairs.lock import held
from s2pairs.masks import Flags
from s2pairs.patches import join_tables, without_conflicts
from s2pairs.plan import Plan
from s2pairs.running import Progress, Workers
from s2pairs.scenes import Catalogue, Listing, PixelWindow, Scene
from s2pairs.storage import LocalStore, Place, store_at
from s2pairs.tiles import TileId


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
    catalogue: Catalogue,
    out: Place,
    *,
    workers: int | Workers,
    progress: Progress,
) -> Grown:
    """A cube with the patches of further tiles, chosen as its own were; `out` may be `path`.

    Tiles that it has already are passed over. What was there stays as it is, byte for byte, but
    for the last shard, which is filled up.
    """
    with _becoming(path, out) as place:
        cube = open_cube(path)
        new = [tile for tile in tiles if tile.name not in cube.parameters.get("tiles", ())]
        if not new:
            return Grown(path, len(cube), cube.dates, 0, 0, cube.shards)
        request = replace(_request(cube), tiles=tuple(new))
        chosen = choose(request, catalogue)
        more = plan(request, chosen)
        names = [*cube.parameters["tiles"], *(tile.name for tile in new)]
        piece = joined(of_cube(cube), of_products(more), {**cube.parameters, "tiles": names})
        _make(place, piece, scenes_of(chosen), catalogue, workers, progress)
        added = len(piece.plan.table) - len(cube)
        return _grown(out, piece, added, len(more.table) - added)


def append_dates(
    path: Place,
    count: int,
    start: datetime | None,
    end: datetime | None,
    catalogue: Catalogue,
    out: Place,
    *,
    workers: int | Workers,
    progress: Progress,
) -> Grown:
    """A cube with `count` further dates of its patches from [`start`, `end`); `out` may be `path`.

    Chosen as its own were, from what it does not have yet, and put in order of time.
    """
    with _becoming(path, out) as place:
        cube = open_cube(path)
        request = replace(_request(cube), dates=count, start=start, end=end)
        asked = {name: request.parameters()[name] for name in ("dates", "start", "end")}
        before = cube.parameters.get("dates_appended", [])
        if asked in before:
            return Grown(path, len(cube), cube.dates, 0, 0, cube.shards)
        chosen = choose(request, _Without(catalogue, set(cube.product.ravel().tolist())))
        more = plan_of_table(request, chosen, cube.table)
        parameters = {**cube.parameters, "dates_appended": [*before, asked]}
        piece = with_dates(cube, more, parameters)
        _make(place, piece, scenes_of(chosen), catalogue, workers, progress)
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
        _make(out, piece, {}, None, workers, progress)
        kept = len(piece.plan.table)
        return _grown(out, piece, kept - len(cubes[0]), sum(map(len, cubes)) - kept)


def _make(
    place: Place,
    piece: "Piece",
    scenes: Scenes,
    catalogue: Catalogue | None,
    workers: int | Workers,
    progress: Progress,
) -> None:
    todo = tasks(store_at(place), piece.plan, scenes, catalogue, origins=piece.origins)
    make(place, piece.plan, todo, workers, progress)


def _grown(path: Place, piece: "Piece", added: int, left_out: int) -> Grown:
    plan = piece.plan
    return Grown(path, len(plan.table), plan.layout.dates, added, left_out, plan.shards)


def _request(cube: Cube) -> Request:
    if "tiles" not in cube.parameters:
        raise CubeError(
            f"{cube.path} was merged from cubes that may have been asked for otherwise; append to "
            "one of these and merge again"
        )
    return Request.of(cube.parameters)


@dataclass(frozen=True)
class _Without:
    """A catalogue without the products that a cube has."""

    catalogue: Catalogue
    products: set[str]

    def scenes(self, tile: TileId) -> Listing:
        listing = self.catalogue.scenes(tile)
        kept = tuple(scene for scene in listing.scenes if scene.product not in self.products)
        return Listing(kept, listing.left_out)

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        return self.catalogue.read(scene, band, windows)

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        return self.catalogue.masks(scene, windows)


@contextmanager
def _becoming(path: Place, out: Place) -> Iterator[Place]:
    """Where to build what shall be at `out`; if that is the cube itself, it is replaced at the end.

    The old cube stands until the new one is whole. A kill between the two renames leaves both
    folders, and the same command goes on from there.
    """
    old, new = store_at(path), store_at(out)
    if old.place != new.place:
        with held(out):
            yield out
        return
    if not isinstance(old, LocalStore):
        raise CubeError(f"{path} cannot be replaced where it is; give a new place with --out")
    beside, replaced = (
        old.place.with_name(f".{old.place.name}.{what}") for what in ("grown", "replaced")
    )
    with held(path):
        if replaced.exists():
            _finish(old.place, beside, replaced)
        yield beside
        if beside.exists():
            old.place.rename(replaced)
            _finish(old.place, beside, replaced)


def _finish(place: Path, beside: Path, replaced: Path) -> None:
    if not place.exists():
        beside.rename(place)
    shutil.rmtree(replaced)


@dataclass(frozen=True)
class Piece:
    """A plan, and where its looks are taken from."""

    plan: Plan
    origins: Origins


def of_cube(cube: Cube) -> Piece:
    """A cube as it is."""
    rows, dates = len(cube), cube.dates
    origins = Origins(
        cubes=(cube.path,),
        cube=np.zeros(rows, dtype=np.intp),
        row=np.arange(rows),
        date=np.tile(np.arange(dates), (rows, 1)),
    )
    return Piece(plan_of(cube), origins)


def of_products(plan: Plan) -> Piece:
    """A plan whose looks all come from products."""
    return Piece(plan, Origins.none(len(plan.table), plan.layout.dates))


def joined(first: Piece, second: Piece, parameters: Mapping[str, Any]) -> Piece:
    """The patches of both, those of `second` behind.

    A patch of `second` is left out where its ground, or part of it, is in `first`, and where one
    of another split is nearer than the gap between splits. `CubeError` if bands, level or the
    number of dates differ.
    """
    _check_alike(first.plan, second.plan)
    keep = without_conflicts(second.plan.table, first.plan.table)
    plan = Plan(
        bands=first.plan.bands,
        level=first.plan.level,
        table=join_tables([first.plan.table, second.plan.table.take(keep)]),
        acquired=np.concatenate([first.plan.acquired, second.plan.acquired[keep]]),
        product=np.concatenate([first.plan.product, second.plan.product[keep]]),
        parameters=parameters,
        attributes=_joined_attributes(first.plan.attributes, second.plan.attributes),
    )
    return Piece(plan, first.origins.before(second.origins.take(keep)))


def with_dates(cube: Cube, more: Plan, parameters: Mapping[str, Any]) -> Piece:
    """The patches of a cube with the dates of `more`, a plan of the same patches, in order of time.

    `CubeError` where a patch would have one product twice.
    """
    before = of_cube(cube)
    for old, new in zip(before.plan.product, more.product, strict=True):
        twice = set(old.tolist()) & set(new.tolist())
        if twice:
            raise CubeError(f"{cube.path} has {min(twice)} already; choose another period")
    acquired = np.concatenate([before.plan.acquired, more.acquired], axis=1)
    product = np.concatenate([before.plan.product, more.product], axis=1)
    added = np.full(more.product.shape, -1)
    date = np.concatenate([before.origins.date, added], axis=1)
    order = np.argsort(acquired, axis=1, kind="stable")
    acquired, product, date = (
        np.take_along_axis(each, order, axis=1) for each in (acquired, product, date)
    )
    plan = replace(
        before.plan,
        acquired=acquired,
        product=product,
        parameters=parameters,
        attributes=_joined_attributes(before.plan.attributes, more.attributes),
    )
    return Piece(plan, replace(before.origins, date=date))


def _check_alike(first: Plan, second: Plan) -> None:
    for what, one, other in (
        ("bands", ", ".join(first.bands), ", ".join(second.bands)),
        ("the level", first.level, second.level),
        ("the number of dates", first.layout.dates, second.layout.dates),
    ):
        if one != other:
            raise CubeError(
                f"cubes of one kind can be joined; {what} differ: {one} in the first, {other} in "
                "the second; build the second like the first"
            )


def _joined_attributes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the group; lists hold what either has, once."""
    lists = {
        name: list(dict.fromkeys([*first[name], *second[name]]))
        for name in ("products", "products_left_out")
    }
    used = set(lists["products"])
    # what the one left out the other may use
    lists["products_left_out"] = [
        entry for entry in lists["products_left_out"] if entry.partition(": ")[0] not in used
    ]
    return {**first, **lists, "notice": _joined_notice([first["notice"], second["notice"]])}


def _joined_notice(notices: Sequence[str]) -> str:
    """Whether any is simulated, and the years of all."""
    parts = dict.fromkeys(part for notice in notices for part in notice.split("; "))
    years = sorted({year for part in parts for year in re.findall(r"\[(\d{4})\]", part)})
    plain = [part for part in parts if not re.search(r"\[\d{4}\]", part)]
    listed = ", ".join(f"[{year}]" for year in years)
    modified = [f"contains modified Copernicus Sentinel data {listed}"] if years else []
    return "; ".join([*plain, *modified])
