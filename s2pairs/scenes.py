"""Scenes: what a source of Sentinel-2 products can answer, and choosing the dates of a tile."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from s2pairs.errors import SceneError, SourceError
from s2pairs.masks import Flags
from s2pairs.tiles import PIXEL_SIZE_M, TileId


@dataclass(frozen=True, slots=True)
class Grid:
    """The 10 m pixel grid of a product: UTM zone, upper left corner in metres, size in pixels."""

    epsg: int
    left: float
    top: float
    height: int
    width: int

    @property
    def width_m(self) -> int:
        return self.width * PIXEL_SIZE_M


@dataclass(frozen=True, slots=True)
class PixelWindow:
    """A rectangle of 10 m pixels: its upper left pixel and its size."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One product of one tile: what its metadata say and where its bands lie."""

    product: str
    tile: TileId
    level: str
    """`L1C` (top of atmosphere) or `L2A` (surface)."""
    acquired: datetime
    """Sensing start of the datatake, UTC: one moment for all tiles of one pass."""
    generated: datetime
    datatake: str
    """The datatake without its baseline, so that a reprocessed product has the same one."""
    baseline: str
    cloud_cover: float
    """Percent of the product's pixels."""
    quantification: float
    add_offset: Mapping[str, int]
    """By band name; 0 where the metadata name none."""
    grid: Grid
    assets: Mapping[str, str]
    """Where the pixels of each band that was asked for are, in the words of its source: a path, a
    URL."""
    simulated: bool
    """Made by `s2pairs simulate`: no satellite has seen it."""
    coverage: float = 1.0
    """Part of the tile that the product sees, 0 to 1, as its metadata say."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """Where its masks are, by kind, both in the words of its source; empty if it has none."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A product that is not used, and why."""

    product: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds of one tile."""

    scenes: tuple[Scene, ...]
    left_out: tuple[LeftOut, ...]
    of_region: Mapping[int, tuple[Scene, ...]] = field(default_factory=dict)
    """Scenes by number of region, where each was chosen for itself; else empty."""

    def at(self, region: int) -> tuple[Scene, ...]:
        """The scenes of a region, in order of time."""
        return self.of_region[region] if self.of_region else self.scenes


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a build will choose from, for sources that need not ask or open the rest."""

    max_cloud: float
    start: datetime | None = None
    end: datetime | None = None

    def allows(self, acquired: datetime, cloud_cover: float) -> bool:
        """False where `choose_dates` will reject the scene by its date or its cloud."""
        return (
            cloud_cover <= self.max_cloud
            and (self.start is None or acquired >= self.start)
            and (self.end is None or acquired < self.end)
        )


Rejected = list[tuple[Scene, str]]
"""Scenes that are not used, each with the reason."""

_AS_FULL = 0.05  # footprints of one ground differ by less from version to version and day to day


class Catalogue(Protocol):
    """A source of scenes."""

    def scenes(self, tile: TileId) -> Listing:
        """The usable scenes of a tile in order of product name, and the products left out."""
        ...

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Digital numbers (height, width) of a band in each window, on the 10 m grid.

        Coarser bands are brought to it by nearest neighbour. `SceneError` if pixels are broken.
        """
        ...

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What the source says of the pixels (height, width) in each window, bits of masks.py.

        Cloud, cirrus, shadow and snow as far as the source knows them, on the 10 m grid; None if
        it has no mask of this product, and then clouds are estimated from the bands. No-data may
        be flagged too: it serves to choose dates, while a cube takes it from the pixels.
        `SceneError` if a mask is broken.
        """
        ...


Source = Callable[[Sequence[str], Wanted], Catalogue]
"""Opens a source for these bands and for what will be chosen from."""

T = TypeVar("T")


def naming(scene: Scene, read: Callable[[], T]) -> T:
    """What `read` returns; its errors name the scene's tile and product."""
    try:
        return read()
    except SceneError as error:
        raise SceneError(
            f"tile {scene.tile}, product {scene.product}: {error}",
            tile=scene.tile.name,
            product=scene.product,
        ) from error


def choose_dates(
    tile: TileId,
    listing: Listing,
    *,
    count: int,
    max_cloud: float,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Listing:
    """Exactly `count` scenes of a tile, as regular in time as the products allow.

    Candidates lie in [`start`, `end`), have at most `max_cloud` percent of cloud, and are one a
    datatake (the highest baseline, then the newest) and one a day (the least cloud). Of several
    parts or passes only those count that see nearly as much of the tile as the fullest. The period
    is cut into `count` equal steps and the scenes nearest to the steps' middles are taken, with
    the least sum of distances. Without `start` or `end` the period is that of the candidates.
    The rest is returned as left out, with reasons. Too few candidates, or products of both levels,
    are a `SourceError`.
    """
    one_level(listing.scenes)
    left_out = list(listing.left_out)
    candidates = list(listing.scenes)
    for sieve in (
        _copies,
        lambda scenes: _outside_period(scenes, start, end),
        lambda scenes: _too_cloudy(scenes, max_cloud),
        _same_datatake,
        _same_day,
    ):
        rejected = sieve(candidates)
        left_out += [LeftOut(scene.product, reason) for scene, reason in rejected]
        candidates = _without(candidates, [scene for scene, _ in rejected])
    if len(candidates) < count:
        raise SourceError(_too_few(tile, len(candidates), count, left_out), tile=tile.name)
    chosen = _nearest_to_regular_step(candidates, count, start, end)
    left_out += [
        LeftOut(scene.product, f"not among the {count} nearest to a regular step")
        for scene in _without(candidates, chosen)
    ]
    return Listing(tuple(chosen), tuple(sorted(left_out, key=lambda entry: entry.product)))


def choose_dates_by_region(
    tile: TileId,
    listing: Listing,
    regions: Sequence[int],
    clear: Callable[[Scene], Sequence[float]],
    *,
    count: int,
    max_cloud: float,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Listing:
    """As `choose_dates`, but of each region the scenes that are clear there.

    `clear` gives, for each of `regions` (their numbers), the part of its pixels that a scene sees
    without cloud or shadow, 0 to 1. A scene is for a region where at most `max_cloud` percent of
    the region is not so, whatever the cloud of the whole product; of one day the clearest there,
    then the newest version. So a region may take its dates from both parts of a split datatake.
    Regions with fewer than `count` such days are not in the answer; a tile without any is a
    `SourceError`.
    """
    one_level(listing.scenes)
    left_out = list(listing.left_out)
    candidates = list(listing.scenes)
    for sieve in (_copies, lambda scenes: _outside_period(scenes, start, end)):
        rejected = sieve(candidates)
        left_out += [LeftOut(scene.product, reason) for scene, reason in rejected]
        candidates = _without(candidates, [scene for scene, _ in rejected])
    shares = {scene.product: np.asarray(clear(scene), dtype=np.float64) for scene in candidates}
    days = {
        number: _clearest_of_days(candidates, shares, index, 1 - max_cloud / 100)
        for index, number in enumerate(regions)
    }
    of_region = {
        number: tuple(_nearest_to_regular_step(usable, count, start, end))
        for number, usable in days.items()
        if len(usable) >= count
    }
    if not of_region:
        most = max(map(len, days.values()), default=0)
        raise SourceError(
            _too_few(tile, most, count, left_out, "in its best region"), tile=tile.name
        )
    used = {scene.product for scenes in of_region.values() for scene in scenes}
    left_out += [
        LeftOut(
            scene.product,
            f"chosen for no region: at most {shares[scene.product].max():.0%} of one is clear",
        )
        for scene in candidates
        if scene.product not in used
    ]
    chosen = sorted(
        (scene for scene in candidates if scene.product in used), key=lambda each: each.acquired
    )
    by_name = sorted(left_out, key=lambda entry: entry.product)
    return Listing(tuple(chosen), tuple(by_name), of_region)


def _clearest_of_days(
    scenes: Sequence[Scene],
    shares: Mapping[str, npt.NDArray[np.float64]],
    index: int,
    least: float,
) -> list[Scene]:
    """Of each day the scene that is clearest in a region, of those with at least `least` clear."""
    usable = [scene for scene in scenes if shares[scene.product][index] >= least - 1e-9]
    return [
        max(same, key=lambda scene: (round(shares[scene.product][index], 2), _version(scene)))
        for same in _grouped(usable, lambda scene: f"{scene.acquired:%Y-%m-%d}")
    ]


def one_level(scenes: Iterable[Scene]) -> str:
    """The level of all these scenes, `L1C` or `L2A`; two of them are a `SourceError`."""
    levels = {scene.level: scene.product for scene in scenes}
    if len(levels) > 1:
        raise SourceError(
            "the source mixes top-of-atmosphere and surface reflectance "
            f"({', '.join(f'{level}: {name}' for level, name in sorted(levels.items()))}); "
            "put each level in a folder of its own"
        )
    return next(iter(levels), "")


def _without(scenes: Sequence[Scene], gone: Sequence[Scene]) -> list[Scene]:
    # by identity: a product that is there twice has one name and, but for assets, one content
    return [scene for scene in scenes if not any(scene is other for other in gone)]


def _copies(scenes: Sequence[Scene]) -> Rejected:
    first: dict[str, Scene] = {}
    return [
        (scene, "a copy: the same product is there twice")
        for scene in scenes
        if first.setdefault(scene.product, scene) is not scene
    ]


def _outside_period(
    scenes: Sequence[Scene], start: datetime | None, end: datetime | None
) -> Rejected:
    return [
        (scene, f"outside the period: {scene.acquired:%Y-%m-%d}")
        for scene in scenes
        if (start and scene.acquired < start) or (end and scene.acquired >= end)
    ]


def _too_cloudy(scenes: Sequence[Scene], max_cloud: float) -> Rejected:
    return [
        (scene, f"too cloudy: {scene.cloud_cover:.1f} % > {max_cloud:g} %")
        for scene in scenes
        # `not <=`, so that an assessment of NaN is not taken for a clear sky
        if not scene.cloud_cover <= max_cloud
    ]


def _same_datatake(scenes: Sequence[Scene]) -> Rejected:
    """All but one of each datatake.

    They are versions of one product, or parts of a datatake that was split at a datastrip. Parts
    are not joined: the one that sees more of the tile stays.
    """
    rejected: Rejected = []
    for versions in _grouped(scenes, lambda scene: scene.datatake):
        best = max(_fullest(versions), key=_version)
        rejected += [
            (scene, f"same datatake as {best.product}, {_more(best, scene, 'the newer version')}")
            for scene in versions
            if scene is not best
        ]
    return rejected


def _version(scene: Scene) -> tuple[float, datetime, str]:
    return float(scene.baseline), scene.generated, scene.product


def _same_day(scenes: Sequence[Scene]) -> Rejected:
    rejected: Rejected = []
    for passes in _grouped(scenes, lambda scene: f"{scene.acquired:%Y-%m-%d}"):
        best = min(_fullest(passes), key=lambda scene: (scene.cloud_cover, scene.acquired))
        rejected += [
            (scene, f"same day as {best.product}, {_more(best, scene, 'which has no more cloud')}")
            for scene in passes
            if scene is not best
        ]
    return rejected


def _grouped(scenes: Sequence[Scene], key: Callable[[Scene], str]) -> list[list[Scene]]:
    groups: dict[str, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(key(scene), []).append(scene)
    return list(groups.values())


def _fullest(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes that see nearly as much of the tile as the one that sees most."""
    most = max(scene.coverage for scene in scenes)
    return [scene for scene in scenes if scene.coverage >= most - _AS_FULL]


def _more(best: Scene, other: Scene, else_: str) -> str:
    if other in _fullest([best, other]):
        return else_
    return f"which sees more of the tile ({best.coverage:.0%}, not {other.coverage:.0%})"


def _nearest_to_regular_step(
    scenes: Sequence[Scene], count: int, start: datetime | None, end: datetime | None
) -> list[Scene]:
    """`count` scenes in order of time with the least sum of distances to the steps' middles."""
    from scipy.optimize import linear_sum_assignment

    ordered = sorted(scenes, key=lambda scene: scene.acquired)
    times = np.array([scene.acquired.timestamp() for scene in ordered])
    first = start.timestamp() if start else times[0]
    last = end.timestamp() if end else times[-1]
    middles = first + (np.arange(count) + 0.5) * (last - first) / count
    # On a line the cheapest assignment to ordered targets can be had in order, so sorting is free.
    _, columns = linear_sum_assignment(np.abs(middles[:, None] - times[None, :]))
    return [ordered[column] for column in sorted(columns)]


def _too_few(
    tile: TileId, usable: int, count: int, left_out: Sequence[LeftOut], where: str = ""
) -> str:
    found = usable + len(left_out)
    if not found and not where:
        return f"tile {tile} has no product in the source; {count} dates are needed"
    reasons: dict[str, int] = {}
    for entry in left_out:
        reason = entry.reason.partition(":")[0].partition(" as ")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    rejected = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    return (
        f"tile {tile} has {usable} usable dates{where and f' {where}'} of the {count} needed: "
        f"{found} products found, "
        f"left out {rejected or 'none'}; "
        "try fewer --dates, a higher --max-cloud or a longer period"
    )


def utc(text: str) -> datetime:
    """A moment such as `2020-07-17T22:19:41.024Z`, as datetime in UTC; `ValueError` otherwise."""
    moment = datetime.fromisoformat(text.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
