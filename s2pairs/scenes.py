"""Scenes: what a source of Sentinel-2 products can answer, and choosing the dates of a tile."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from s2pairs.errors import SourceError
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
class Window:
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
    paths: Mapping[str, Path]
    """File of each band that was asked for."""
    simulated: bool
    """Made by `s2pairs simulate`: no satellite has seen it."""


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


class Catalogue(Protocol):
    """A source of scenes."""

    def scenes(self, tile: TileId) -> Listing:
        """The usable scenes of a tile in order of product name, and the products left out."""
        ...

    def read(
        self, scene: Scene, band: str, windows: Sequence[Window]
    ) -> list[npt.NDArray[np.uint16]]:
        """Digital numbers (height, width) of a band in each window, on the 10 m grid.

        Coarser bands are brought to it by nearest neighbour. `SceneError` if pixels are broken.
        """
        ...


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
    datatake (the highest baseline, then the newest) and one a day (the least cloud). The period
    is cut into `count` equal steps and the scenes nearest to the steps' middles are taken, with
    the least sum of distances. Without `start` or `end` the period is that of the candidates.
    The rest is returned as left out, with reasons. Too few candidates are a `SourceError`.
    """
    left_out = list(listing.left_out)
    candidates = list(listing.scenes)
    for sieve in (
        lambda scenes: _outside_period(scenes, start, end),
        lambda scenes: _too_cloudy(scenes, max_cloud),
        _same_datatake,
        _same_day,
    ):
        rejected = sieve(candidates)
        names = {entry.product for entry in rejected}
        candidates = [scene for scene in candidates if scene.product not in names]
        left_out += rejected
    if len(candidates) < count:
        raise SourceError(_too_few(tile, len(candidates), count, left_out))
    chosen = _nearest_to_regular_step(candidates, count, start, end)
    spare = [scene for scene in candidates if scene not in chosen]
    left_out += [
        LeftOut(scene.product, f"not among the {count} nearest to a regular step")
        for scene in spare
    ]
    return Listing(tuple(chosen), tuple(sorted(left_out, key=lambda entry: entry.product)))


def _outside_period(
    scenes: Iterable[Scene], start: datetime | None, end: datetime | None
) -> list[LeftOut]:
    return [
        LeftOut(scene.product, f"outside the period: {scene.acquired:%Y-%m-%d}")
        for scene in scenes
        if (start and scene.acquired < start) or (end and scene.acquired >= end)
    ]


def _too_cloudy(scenes: Iterable[Scene], max_cloud: float) -> list[LeftOut]:
    return [
        LeftOut(scene.product, f"too cloudy: {scene.cloud_cover:.1f} % > {max_cloud:g} %")
        for scene in scenes
        # `not <=`, so that an assessment of NaN is not taken for a clear sky
        if not scene.cloud_cover <= max_cloud
    ]


def _same_datatake(scenes: Sequence[Scene]) -> list[LeftOut]:
    best: dict[str, Scene] = {}
    for scene in scenes:
        rival = best.setdefault(scene.datatake, scene)
        if _version(scene) > _version(rival):
            best[scene.datatake] = scene
    return [
        LeftOut(
            scene.product, f"same datatake as {best[scene.datatake].product}, the newer version"
        )
        for scene in scenes
        if scene is not best[scene.datatake]
    ]


def _version(scene: Scene) -> tuple[float, datetime, str]:
    return float(scene.baseline), scene.generated, scene.product


def _same_day(scenes: Sequence[Scene]) -> list[LeftOut]:
    best: dict[str, Scene] = {}
    for scene in sorted(scenes, key=lambda scene: (scene.cloud_cover, scene.acquired)):
        best.setdefault(f"{scene.acquired:%Y-%m-%d}", scene)
    kept = {scene.product for scene in best.values()}
    return [
        LeftOut(
            scene.product,
            f"same day as {best[f'{scene.acquired:%Y-%m-%d}'].product}, which has no more cloud",
        )
        for scene in scenes
        if scene.product not in kept
    ]


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


def _too_few(tile: TileId, usable: int, count: int, left_out: Sequence[LeftOut]) -> str:
    found = usable + len(left_out)
    if not found:
        return f"tile {tile} has no product in the source; {count} dates are needed"
    reasons: dict[str, int] = {}
    for entry in left_out:
        reason = entry.reason.partition(":")[0].partition(" as ")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    rejected = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    return (
        f"tile {tile} has {usable} usable dates of the {count} needed: {found} products found, "
        f"left out {rejected or 'none'}; "
        "try fewer --dates, a higher --max-cloud or a longer period"
    )


def utc(text: str) -> datetime:
    """A moment such as `2020-07-17T22:19:41.024Z`, as datetime in UTC; `ValueError` otherwise."""
    moment = datetime.fromisoformat(text.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
