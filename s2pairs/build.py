"""The straight line: tiles, scenes, patches, cube. One task fills a few whole shards."""

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt

from s2pairs import cube as cubes
from s2pairs import ledger
from s2pairs.bands import stored_from_dn
from s2pairs.clearness import clear_shares
from s2pairs.errors import CubeError, S2PairsError, SceneError, SourceError
from s2pairs.masks import Flags, complete
from s2pairs.patches import PATCH_PX, SPLITS, PatchTable, Region, choose_patches, draw_regions
from s2pairs.plan import Plan
from s2pairs.scenes import (
    Catalogue,
    Grid,
    Listing,
    PixelWindow,
    Scene,
    choose_dates,
    choose_dates_by_region,
    naming,
    one_level,
)
from s2pairs.shards import Pixels, Values
from s2pairs.tiles import TileId

TASK_BYTES = 100 * 2**20
"""Pixels that one task holds in memory; with 4 bands and 12 dates, 4 shards."""

Progress = Callable[[int, int], None]
"""Called with the shards done and the shards in all."""


Choice = Literal["tile", "region"]


@dataclass(frozen=True)
class Request:
    """What a cube should hold."""

    tiles: tuple[TileId, ...]
    bands: tuple[str, ...]
    dates: int = 12
    max_cloud: float = 2.0
    regions: int = 100
    region_size: int = 512
    start: datetime | None = None
    end: datetime | None = None
    seed: int = 0
    choice: Choice = "tile"
    """Dates for a whole tile, or for each region those that are clear there."""

    def __post_init__(self) -> None:
        if self.start and self.end and self.end <= self.start:
            raise S2PairsError(f"the period ends before it starts: {self.start} to {self.end}")

    def parameters(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = dict(vars(self))
        values["tiles"] = [tile.name for tile in self.tiles]
        values["bands"] = list(self.bands)
        for name in ("start", "end"):
            moment = values[name]
            values[name] = moment.isoformat() if moment else None
        return values


@dataclass(frozen=True)
class Report:
    """What a build made."""

    path: Path
    patches: int
    dates: int
    shards: int
    already_built: int
    left_out: int
    products: tuple[str, ...]
    left_out_because: tuple[str, ...]
    """Name and reason of each product that is not used."""
    remarks: tuple[str, ...]
    """What was asked for and is not there: tiles without patches, empty splits."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}


def build(
    request: Request,
    catalogue: Catalogue,
    out: Path,
    *,
    workers: int,
    progress: Progress,
) -> Report:
    """Make or go on making the cube at `out`.

    The same request and products give the same bytes, however often the build was interrupted.
    Shards that stand are checked and kept. `SourceError` if a tile has too few dates, `CubeError`
    if `out` is something else or another build holds it, `SceneError` if a product breaks while
    it is read.
    """
    with _lock(out):
        listings = choose(request, catalogue)
        planned = plan(request, listings)
        scenes = {
            (tile.name, scene.product): scene
            for tile, listing in listings.items()
            for scene in listing.scenes
        }
        if out.exists():
            cubes.same_plan(out, planned)
        else:
            cubes.create(out, planned)

        def fill(task: range) -> int:
            missing = [shard for shard in task if not ledger.is_built(out, shard)]
            parts = _read_shards(planned, missing, scenes, catalogue)
            for shard, (pixels, masks) in zip(missing, parts, strict=True):
                ledger.write_shard(out, shard, planned.layout, pixels, masks)
            return len(task) - len(missing)

        try:
            stood = _run(fill, _tasks(planned), workers, progress)
        except SceneError as error:
            raise SceneError(
                f"{error}; replace that product and run the same command again, or remove both it "
                f"and {out} and build anew",
                tile=error.tile,
                product=error.product,
            ) from error
    return Report(
        path=out,
        patches=len(planned.table),
        dates=request.dates,
        shards=planned.shards,
        already_built=stood,
        left_out=sum(len(listing.left_out) for listing in listings.values()),
        products=tuple(planned.attributes["products"]),
        left_out_because=tuple(planned.attributes["products_left_out"]),
        remarks=_remarks(request, planned.table),
    )


def _remarks(request: Request, table: PatchTable) -> tuple[str, ...]:
    empty = [tile.name for tile in request.tiles if tile.name not in table.tile]
    tiles = f"no patch of {', '.join(empty)}, whose ground belongs to the tiles before or lies "
    splits = [name for name in SPLITS if name not in table.split]
    return (
        *([f"{tiles}between splits"] if empty else []),
        *([f"no patch for {', '.join(splits)}"] if splits else []),
    )


def choose(request: Request, catalogue: Catalogue) -> dict[TileId, Listing]:
    """The scenes of each tile, and what is left out of each."""
    return {tile: _choose_of_tile(tile, request, catalogue) for tile in request.tiles}


def _choose_of_tile(tile: TileId, request: Request, catalogue: Catalogue) -> Listing:
    listing = catalogue.scenes(tile)
    count, max_cloud = request.dates, request.max_cloud
    start, end = request.start, request.end
    if request.choice == "tile" or not listing.scenes:
        return choose_dates(tile, listing, count=count, max_cloud=max_cloud, start=start, end=end)
    grid = _one_grid(tile, listing.scenes)
    regions = draw_regions(tile, grid, request.region_size, request.seed)
    return choose_dates_by_region(
        tile,
        listing,
        [region.number for region in regions],
        lambda scene: _clear_shares(catalogue, scene, regions, request.bands),
        count=count,
        max_cloud=max_cloud,
        start=start,
        end=end,
    )


def _clear_shares(
    catalogue: Catalogue, scene: Scene, regions: Sequence[Region], bands: Sequence[str]
) -> list[float]:
    try:
        return naming(scene, partial(clear_shares, catalogue, scene, regions, bands))
    except SceneError as error:
        raise SceneError(
            f"{error}; replace or remove that product and run the same command again",
            tile=error.tile,
            product=error.product,
        ) from error


def plan(request: Request, listings: Mapping[TileId, Listing]) -> Plan:
    """All of a cube but its pixels."""
    grids = {tile: _one_grid(tile, listing.scenes) for tile, listing in listings.items()}
    table = choose_patches(
        grids,
        regions=request.regions,
        region_size=request.region_size,
        seed=request.seed,
        usable={tile: listing.of_region for tile, listing in listings.items()}
        if request.choice == "region"
        else None,
    )
    by_name = {tile.name: listing for tile, listing in listings.items()}
    places = zip(table.tile.tolist(), table.region.tolist(), strict=True)
    scenes = [by_name[tile].at(region) for tile, region in places]
    return Plan(
        bands=request.bands,
        level=one_level(scene for listing in listings.values() for scene in listing.scenes),
        table=table,
        acquired=np.array(
            [[scene.acquired.replace(tzinfo=None) for scene in each] for each in scenes],
            dtype="datetime64[ms]",
        ),
        product=np.array([[scene.product for scene in each] for each in scenes]),
        parameters=request.parameters(),
        attributes=_attributes(listings),
    )


def _one_grid(tile: TileId, scenes: Sequence[Scene]) -> Grid:
    grids = {scene.grid: scene.product for scene in scenes}
    if len(grids) > 1:
        (one, first), (other, second) = list(grids.items())[:2]
        raise SourceError(
            f"the products of tile {tile} do not share one pixel grid: {first} has {one}, "
            f"{second} has {other}; remove the odd ones"
        )
    return scenes[0].grid


def _attributes(listings: Mapping[TileId, Listing]) -> dict[str, Any]:
    scenes = [scene for listing in listings.values() for scene in listing.scenes]
    years = sorted({scene.acquired.year for scene in scenes if not scene.simulated})
    notices = ["contains simulated data"] if any(scene.simulated for scene in scenes) else []
    if years:
        listed = ", ".join(f"[{year}]" for year in years)
        notices.append(f"contains modified Copernicus Sentinel data {listed}")
    return {
        "title": "Patches of Sentinel-2 images at several dates",
        "creator": f"crossmi {version('crossmi')} (s2pairs)",
        "products": [scene.product for scene in scenes],
        "products_left_out": [
            f"{entry.product}: {entry.reason}"
            for listing in listings.values()
            for entry in listing.left_out
        ],
        "notice": "; ".join(notices),
    }


def _tasks(plan: Plan) -> list[range]:
    """Runs of shards that are read together: one decoding of an image's block serves them all."""
    shard = plan.layout.patches * plan.layout.dates * plan.layout.chunk_bytes
    together = max(1, TASK_BYTES // shard)
    return [
        range(first, min(first + together, plan.shards))
        for first in range(0, plan.shards, together)
    ]


def _run(
    fill: Callable[[range], int], tasks: Sequence[range], workers: int, progress: Progress
) -> int:
    """The sum of `fill(task)` over the tasks, scheduled by dask, reporting as each one ends.

    Returns or raises, on Ctrl-C too, when no task runs any more: the caller then gives up the lock.
    """
    import dask.threaded

    total = sum(map(len, tasks))
    done = 0
    counting = threading.Lock()
    progress(0, total)

    def reported(task: range) -> int:
        nonlocal done
        result = fill(task)
        with counting:
            done += len(task)
            progress(done, total)
        return result

    graph = {f"shards-{task.start}": (reported, task) for task in tasks}
    # dask leaves the tasks of its own threads running when one fails; leaving this pool waits.
    with ThreadPoolExecutor(workers) as pool:
        return sum(dask.threaded.get(graph, list(graph), pool=pool))


def _read_shards(
    plan: Plan, shards: Sequence[int], scenes: Mapping[tuple[str, str], Scene], catalogue: Catalogue
) -> list[tuple[Pixels, Flags]]:
    """Stored values (patch, date, band, 64, 64) and masks (patch, date, 64, 64) of each shard.

    `scenes` are by tile and product.
    """
    size = plan.layout.patches
    rows = [np.arange(s * size, min((s + 1) * size, len(plan.table))) for s in shards]
    if not rows:
        return []
    chosen = np.concatenate(rows)
    table = plan.table.take(chosen)
    pixels = np.empty((len(table), plan.layout.dates, *plan.layout.chunk), dtype=np.uint16)
    masks = np.empty((len(table), plan.layout.dates, *plan.layout.of_masks.chunk), dtype=np.uint8)
    for (tile, product), places in _by_scene(table, plan.product[chosen]).items():
        scene = scenes[tile, product]
        windows = [_bounds(table, patches) for patches, _ in places]
        for band, name in enumerate(plan.bands):
            read = naming(scene, partial(catalogue.read, scene, name, windows))
            offset = scene.add_offset[name]
            for (patches, date), window, dn in zip(places, windows, read, strict=True):
                stored = stored_from_dn(dn, offset, scene.quantification)
                pixels[patches, date, band] = _cut(stored, window, table, patches)
        known = naming(scene, partial(catalogue.masks, scene, windows))
        for index, ((patches, date), window) in enumerate(zip(places, windows, strict=True)):
            said = None if known is None else _cut(known[index], window, table, patches)
            masks[patches, date] = complete(said, pixels[patches, date], plan.bands)
    ends = np.cumsum([len(each) for each in rows])[:-1]
    return list(zip(np.split(pixels, ends), np.split(masks, ends), strict=True))


def _by_scene(
    table: PatchTable, products: npt.NDArray[np.str_]
) -> dict[tuple[str, str], list[tuple[list[int], int]]]:
    """By tile and product, what is read of it: the rows of a region's patches, and their date."""
    regions: dict[tuple[str, int], list[int]] = {}
    keys = zip(table.tile.tolist(), table.region.tolist(), strict=True)
    for row, key in enumerate(keys):
        regions.setdefault(key, []).append(row)
    places: dict[tuple[str, str], list[tuple[list[int], int]]] = {}
    for (tile, _), rows in regions.items():
        for date, product in enumerate(products[rows[0]].tolist()):
            places.setdefault((tile, product), []).append((rows, date))
    return places


def _bounds(table: PatchTable, rows: Sequence[int]) -> PixelWindow:
    """The smallest window that holds these patches."""
    top, left = int(table.row[rows].min()), int(table.col[rows].min())
    bottom, right = int(table.row[rows].max()) + PATCH_PX, int(table.col[rows].max()) + PATCH_PX
    return PixelWindow(top, left, bottom - top, right - left)


def _cut(values: Values, window: PixelWindow, table: PatchTable, rows: Sequence[int]) -> Values:
    """The patches (n, 64, 64) of these rows out of the values of a window."""
    corners = zip(table.row[rows] - window.row, table.col[rows] - window.col, strict=True)
    return np.stack([values[r : r + PATCH_PX, c : c + PATCH_PX] for r, c in corners])


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise CubeError(
            f"cannot write {path}: {error.strerror}; --out must lie in a folder that can be written"
        ) from error


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the cube for this process; `CubeError` that names the holder if another has it.

    The lock is the operating system's, on a file beside the cube, and dies with its holder: a
    file that a killed build left behind stops nobody.
    """
    if out.name in ("", ".."):
        raise CubeError(f"{out} names no folder to make; give a path such as {out / 'cube.zarr'}")
    path = out.with_name(f"{out.name}.lock")
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CubeError(f"{out} is being built by {holder}; wait for it or stop it") from None
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # the holder before has just finished and removed the file that was opened here
            raise CubeError(f"another build of {out} has just ended; try again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink()
