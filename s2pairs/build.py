"""The straight line: tiles, scenes, patches, cube."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from s2pairs import cube as cubes
from s2pairs.clearness import clear_shares
from s2pairs.errors import CubeError, S2PairsError, SceneError, SourceError
from s2pairs.filling import Fill, Scenes, fill, shared_out, tasks
from s2pairs.ledger import Ledger
from s2pairs.lock import held
from s2pairs.patches import (
    SPLITS,
    PatchTable,
    Region,
    check_region_size,
    choose_patches,
    draw_regions,
)
from s2pairs.plan import Plan
from s2pairs.running import Progress, Scheduler, Threads, Workers, run_all
from s2pairs.scenes import (
    Catalogue,
    Grid,
    LeftOut,
    Listing,
    Scene,
    Wanted,
    choose_dates,
    choose_dates_by_region,
    naming,
    one_level,
)
from s2pairs.storage import Place, store_at
from s2pairs.tiles import TileId

Choice = Literal["tile", "region"]
Had = Mapping[str, Mapping[int, npt.NDArray[np.datetime64]]]
"""By tile and region, when the looks were acquired that a cube has already."""


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
        check_region_size(self.region_size)

    @property
    def wanted(self) -> Wanted:
        """What dates are chosen from; by region the cloud of a whole product says nothing."""
        clouds = 100.0 if self.choice == "region" else self.max_cloud
        return Wanted(clouds, self.start, self.end)

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Request":
        """The request whose `parameters` these are; further ones are passed over."""
        values = {name: parameters[name] for name in cls.__annotations__ if name in parameters}
        for name in ("start", "end"):
            if values.get(name):
                values[name] = datetime.fromisoformat(values[name])
        values["tiles"] = tuple(map(TileId.parse, values["tiles"]))
        values["bands"] = tuple(values["bands"])
        return cls(**values)

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

    path: Place
    patches: int
    dates: int
    shards: int
    already_built: int
    left_out: int
    products: tuple[str, ...]
    left_out_because: tuple[str, ...]
    """Name and reason of each product that is not used."""
    remarks: tuple[str, ...]
    """What was asked for and is not there: regions, tiles without patches, empty splits."""

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}


def build(
    request: Request,
    catalogue: Catalogue,
    out: Place,
    *,
    workers: int | Workers,
    progress: Progress,
) -> Report:
    """Make or go on making the cube at `out`, with so many threads or with other workers.

    The same request and products give the same bytes, however often the build was interrupted.
    Shards that stand are checked and kept. `SourceError` if a tile has too few dates, `CubeError`
    if `out` is something else or another build holds it, `SceneError` if a product breaks while
    it is read.
    """
    with held(out):
        listings = choose(request, catalogue)
        planned = plan(request, listings)
        stands = cubes.begun(out, planned)
        scenes = scenes_of(listings)
        todo = tasks(store_at(out), stands, scenes, catalogue)
        stood = make(out, stands, todo, workers, progress)
    return Report(
        path=out,
        patches=len(planned.table),
        dates=request.dates,
        shards=planned.shards,
        already_built=stood,
        left_out=sum(len(listing.left_out) for listing in listings.values()),
        products=tuple(planned.attributes["products"]),
        left_out_because=tuple(planned.attributes["products_left_out"]),
        remarks=remarks(request, listings, planned.table),
    )


def make(
    out: Place, planned: Plan, todo: Sequence[Fill], workers: int | Workers, progress: Progress
) -> int:
    """Go on with a cube that was begun; returns how many shards stood. The caller holds it."""
    store_at(out).sweep()
    runner = Threads(workers) if isinstance(workers, int) else workers
    if isinstance(runner, Threads):
        todo = shared_out(todo, runner.count)
    try:
        stood = sum(run_all(fill, todo, runner, progress))
    except SceneError as error:
        raise SceneError(
            f"{error}; replace that product and run the same command again, or remove both it "
            f"and {out} and build anew",
            tile=error.tile,
            product=error.product,
        ) from error
    _check_ours(out, planned)
    if isinstance(runner, Scheduler):
        _check_seen(out, planned)
    return stood


def _check_ours(out: Place, planned: Plan) -> None:
    """Where no lock holds, another build may have begun here at the same moment."""
    if cubes.open_any(out).plan_digest != planned.digest:
        raise CubeError(
            f"another build, of other products or parameters, has put its cube at {out} while this "
            "one ran; give one of them another --out, and run the other again"
        )


def _check_seen(out: Place, planned: Plan) -> None:
    rows = Ledger(store_at(out), planned.digest).digests(range(planned.shards))
    if not all(map(any, rows)):
        raise CubeError(
            f"the cluster's workers are done, and {sum(map(any, rows))} of {planned.shards} shards "
            f"are at {out}: they see another place by that name. Use a path that all machines "
            "share, or a URL such as s3://bucket/cube.zarr"
        )


def scenes_of(listings: Mapping[TileId, Listing]) -> Scenes:
    """The chosen scenes by tile and product."""
    return {
        (tile.name, scene.product): scene
        for tile, listing in listings.items()
        for scene in listing.scenes
    }


def remarks(
    request: Request, listings: Mapping[TileId, Listing], table: PatchTable
) -> tuple[str, ...]:
    """What was asked for and is not there."""
    empty = [tile.name for tile in request.tiles if tile.name not in table.tile]
    tiles = f"no patch of {', '.join(empty)}, whose ground belongs to the tiles before or lies "
    splits = [name for name in SPLITS if name not in table.split]
    return (
        *_too_few_regions(request, listings),
        *([f"{tiles}between splits"] if empty else []),
        *([f"no patch for {', '.join(splits)}"] if splits else []),
    )


def _too_few_regions(request: Request, listings: Mapping[TileId, Listing]) -> Iterator[str]:
    """Where dates were chosen by region, the tiles that have fewer such regions than were asked."""
    if request.choice != "region":
        return
    for tile, listing in listings.items():
        grid = listing.scenes[0].grid
        there = (grid.height // request.region_size) * (grid.width // request.region_size)
        found, wanted = len(listing.of_region), min(request.regions, there)
        if found < wanted:
            yield (
                f"tile {tile} has {found} regions of the {wanted} asked for: of its {there} the "
                f"others have fewer than {request.dates} clear dates; allow more cloud or a "
                "longer period"
            )


def choose(request: Request, catalogue: Catalogue, had: Had | None = None) -> dict[TileId, Listing]:
    """The scenes of each tile, and what is left out of each.

    With `had` they are for its regions alone, and of none a scene of a day or a datatake that it
    has there.
    """
    return {
        tile: _choose_of_tile(tile, request, catalogue, (had or {}).get(tile.name, {}))
        for tile in request.tiles
    }


def _choose_of_tile(
    tile: TileId,
    request: Request,
    catalogue: Catalogue,
    had: Mapping[int, npt.NDArray[np.datetime64]],
) -> Listing:
    listing = _without_had(catalogue.scenes(tile), had)
    count, max_cloud = request.dates, request.max_cloud
    start, end = request.start, request.end
    if request.choice == "tile" or not listing.scenes:
        return choose_dates(tile, listing, count=count, max_cloud=max_cloud, start=start, end=end)
    grid = _one_grid(tile, listing.scenes)
    drawn = draw_regions(tile, grid, request.region_size, request.seed)
    regions = [region for region in drawn if not had or region.number in had]

    def clear(scene: Scene) -> list[float]:
        shares = _clear_shares(catalogue, scene, regions, request.bands)
        return [
            -1.0 if region.number in had and _is_had(scene, had[region.number]) else share
            for region, share in zip(regions, shares, strict=True)
        ]

    return choose_dates_by_region(
        tile,
        listing,
        [region.number for region in regions],
        clear,
        count=count,
        max_cloud=max_cloud,
        start=start,
        end=end,
    )


def _without_had(listing: Listing, had: Mapping[int, npt.NDArray[np.datetime64]]) -> Listing:
    """Without the scenes that no region lacks."""
    there = [bool(had) and all(_is_had(s, times) for times in had.values()) for s in listing.scenes]
    left_out = [
        LeftOut(scene.product, "its day is in the cube")
        for scene, known in zip(listing.scenes, there, strict=True)
        if known
    ]
    kept = (scene for scene, known in zip(listing.scenes, there, strict=True) if not known)
    return Listing(tuple(kept), (*listing.left_out, *left_out))


def _is_had(scene: Scene, times: npt.NDArray[np.datetime64]) -> bool:
    """Whether one of the looks is of the same datatake or of another pass of that day.

    Sources give a datatake's moment differently by up to some minutes, maybe across midnight.
    """
    acquired = np.datetime64(scene.acquired.replace(tzinfo=None), "ms")
    same_day = times.astype("datetime64[D]") == acquired.astype("datetime64[D]")
    return bool((same_day | (np.abs(times - acquired) < np.timedelta64(12, "h"))).any())


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
    return plan_of_table(request, listings, table)


def plan_of_table(request: Request, listings: Mapping[TileId, Listing], table: PatchTable) -> Plan:
    """The plan of these patches, at the dates of their tiles or regions."""
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
