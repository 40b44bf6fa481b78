"""What a build will read, ask for, write and take, before it reads a pixel.

`s2pairs build --plan` prints it. Scenes and patches are those that the build would take; how long
it takes is reckoned from the speed at which this machine decodes a made image just then.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np

from s2pairs.errors import CubeError
from s2pairs.patches import PATCH_PX
from s2pairs.plan import Plan
from s2pairs.scenes import Catalogue, Listing, PixelWindow, Scene
from s2pairs.tiles import TileId

FREE_REQUESTS = FREE_UNITS = 10_000
"""A month, for a free account of the Copernicus Data Space."""
REQUESTS_PER_MINUTE = 300
COMPRESSION = 1.5
"""Times by which pixels shrink in a cube, as made and real scenes did: only about right."""
_MASK_BYTES = 150  # of a mask of 64 x 64 pixels, compressed, with its place in the index
_BLOCK_PX = 1024


@dataclass(frozen=True)
class ReadCost:
    """What reading some windows of a scene takes."""

    bytes: int
    """From the disk or the network, compressed as they lie there."""
    pixels: int
    """To decode: whole blocks, each counted once."""
    requests: int = 0
    processing_units: float = 0.0


@runtime_checkable
class Priced(Protocol):
    """A catalogue that can tell its price."""

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """Of reading these windows in these bands once. Reads no pixel and sends nothing."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What a build would do."""

    scenes: Mapping[str, Sequence[Mapping[str, Any]]]
    """By tile: product, acquired, cloud_cover, and how many regions take it."""
    left_out: Mapping[str, Sequence[Mapping[str, str]]]
    """By tile: product and reason."""
    patches: int
    regions: Mapping[str, int]
    """By tile."""
    cube_bytes: int
    read: ReadCost | None
    """None where the source cannot tell."""
    decoded_per_second: float
    """Pixels of a made image that one core of this machine decoded in a second, just now."""
    workers: int
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def seconds(self) -> float | None:
        """Decoding on all workers, or the requests at the rate that is allowed; not the network."""
        if self.read is None:
            return None
        decoding = self.read.pixels / self.decoded_per_second / self.workers
        return max(decoding, self.read.requests / REQUESTS_PER_MINUTE * 60)

    def as_json(self) -> dict[str, Any]:
        read = None if self.read is None else vars(self.read)
        quota = {"requests": FREE_REQUESTS, "processing_units": FREE_UNITS}
        values = {**vars(self), "read": read, "seconds": self.seconds, "free_a_month": quota}
        return {"kind": "plan", **values}


def estimate(
    listings: Mapping[TileId, Listing], planned: Plan, catalogue: Catalogue, workers: int
) -> Estimate:
    """The cost of building `planned` from `catalogue` with so many workers."""
    windows = _windows_by_scene(planned)
    scenes = {
        (tile.name, scene.product): scene
        for tile, listing in listings.items()
        for scene in listing.scenes
    }
    read = None
    if isinstance(catalogue, Priced):
        costs = [
            catalogue.cost(scenes[key], planned.bands, places) for key, places in windows.items()
        ]
        read = ReadCost(*(sum(getattr(cost, name) for cost in costs) for name in _FIELDS))
    pairs = list(zip(planned.table.tile.tolist(), planned.table.region.tolist(), strict=True))
    images = planned.product.size
    return Estimate(
        scenes={
            tile.name: [
                _described(scene, len(windows.get((tile.name, scene.product), ())))
                for scene in listing.scenes
            ]
            for tile, listing in listings.items()
        },
        left_out={
            tile.name: [
                {"product": entry.product, "reason": entry.reason} for entry in listing.left_out
            ]
            for tile, listing in listings.items()
        },
        patches=len(planned.table),
        regions={tile.name: sum(t == tile.name for t, _ in set(pairs)) for tile in listings},
        cube_bytes=round(images * (planned.layout.chunk_bytes / COMPRESSION + _MASK_BYTES)),
        read=read,
        decoded_per_second=decoding_speed(),
        workers=workers,
        notes=_notes(read),
    )


_FIELDS = ("bytes", "pixels", "requests", "processing_units")


def _described(scene: Scene, regions: int) -> dict[str, Any]:
    return {
        "product": scene.product,
        "acquired": scene.acquired.isoformat(),
        "cloud_cover": scene.cloud_cover,
        "regions": regions,
    }


def _notes(read: ReadCost | None) -> tuple[str, ...]:
    if read is None:
        return ("this source cannot tell what reading costs",)
    notes = ["time is for decoding alone, as fast as a made image was decoded just now"]
    months = max(read.requests / FREE_REQUESTS, read.processing_units / FREE_UNITS)
    if read.requests or read.processing_units:
        notes.append(
            f"{months:.2f} months of a free account ({FREE_REQUESTS} requests and {FREE_UNITS} "
            "processing units each)"
        )
    if months > 1:
        notes.append("more than one month's free quota: ask for less, or take stac: or safe:")
    return tuple(notes)


def _windows_by_scene(planned: Plan) -> dict[tuple[str, str], list[PixelWindow]]:
    """By tile and product, the windows that hold the patches of each region."""
    table = planned.table
    rows: dict[tuple[str, int], list[int]] = {}
    places = zip(table.tile.tolist(), table.region.tolist(), strict=True)
    for row, place in enumerate(places):
        rows.setdefault(place, []).append(row)
    windows: dict[tuple[str, str], list[PixelWindow]] = {}
    for (tile, _), own in rows.items():
        top, left = int(table.row[own].min()), int(table.col[own].min())
        height = int(table.row[own].max()) + PATCH_PX - top
        width = int(table.col[own].max()) + PATCH_PX - left
        for product in planned.product[own[0]].tolist():
            windows.setdefault((tile, product), []).append(PixelWindow(top, left, height, width))
    return windows


def decoding_speed() -> float:
    """Pixels a second at which one core decodes JPEG 2000, measured on a made image of 512 x 512.

    Smooth ground with the noise of a real scene: about 7 bits a pixel, as genuine 10 m bands.
    """
    from affine import Affine
    from rasterio.io import MemoryFile

    side = 512
    draw = np.random.default_rng(0)
    ground = np.cumsum(draw.normal(0, 4, (side, side)), axis=1) + draw.normal(0, 20, (side, side))
    numbers = np.clip(1500 + ground, 1, 10_000).astype(np.uint16)
    with MemoryFile(ext=".jp2") as memory:
        with memory.open(
            driver="JP2OpenJPEG",
            height=side,
            width=side,
            count=1,
            dtype="uint16",
            crs="EPSG:32631",
            transform=Affine(10, 0, 0, 0, -10, 0),
            QUALITY=100,
            REVERSIBLE="YES",
        ) as image:
            image.write(numbers, 1)
        started = perf_counter()
        with memory.open() as image:
            image.read(1)
        return side * side / (perf_counter() - started)


def touched_blocks(
    windows: Sequence[PixelWindow], step: int, block: int = _BLOCK_PX
) -> set[tuple[int, int]]:
    """Blocks of an image that windows of 10 m pixels touch; its pixels are `step` times 10 m."""
    side = block * step
    return {
        (row, col)
        for window in windows
        for row in range(window.row // side, (window.row + window.height - 1) // side + 1)
        for col in range(window.col // side, (window.col + window.width - 1) // side + 1)
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write for scripts to read; `CubeError` if `path` cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.new")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise CubeError(f"cannot write {path}: {error.strerror}; choose another file") from error


def lines(planned: Estimate) -> list[str]:
    """The estimate for people."""
    told = []
    for tile, scenes in planned.scenes.items():
        told.append(f"{tile}: {len(scenes)} scenes for {planned.regions[tile]} regions")
        told += [
            f"  take {each['product']}  {each['acquired'][:10]}  cloud {each['cloud_cover']:.1f} %"
            + ("" if each["regions"] == planned.regions[tile] else f"  {each['regions']} regions")
            for each in scenes
        ]
        told += [f"  leave {each['product']}: {each['reason']}" for each in planned.left_out[tile]]
    told.append(f"cube: {planned.patches} patches, about {planned.cube_bytes / 1e6:.1f} MB")
    if planned.read is not None and planned.seconds is not None:
        read = planned.read
        asked = (
            f", {read.requests} requests, {read.processing_units:.1f} processing units"
            if read.requests
            else ""
        )
        told.append(
            f"to read: about {read.bytes / 1e6:.1f} MB{asked}; to decode: "
            f"{read.pixels / 1e6:.0f} million pixels, about {planned.seconds:.0f} s "
            f"with {planned.workers} workers"
        )
    return [*told, *planned.notes]
