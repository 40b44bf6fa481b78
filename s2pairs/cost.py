"""What a build will read, ask for, write and take, before it reads a pixel.

`s2pairs build --plan` prints it. Scenes and patches are those that the build would take; how long
it takes is reckoned from the speed at which this machine decodes a made image just then.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import numpy.typing as npt

from s2pairs.errors import CubeError
from s2pairs.filling import readings
from s2pairs.masks import Flags
from s2pairs.plan import Plan
from s2pairs.scenes import Catalogue, Listing, PixelWindow, Scene, Wanted
from s2pairs.tiles import TileId

FREE_REQUESTS = FREE_UNITS = 10_000
"""A month, for a free account of the Copernicus Data Space."""
PER_MINUTE = 300
"""Requests, and as many processing units, for the same account."""
COMPRESSION = 1.5
"""Times by which pixels shrink in a cube, as made and real scenes did: only about right."""
_MASK_BYTES = 150  # of a mask of 64 x 64 pixels, compressed, with its place in the index


@dataclass(frozen=True)
class ReadCost:
    """What reading some windows of a scene takes."""

    bytes: int
    """From the disk or the network, compressed as they lie there."""
    pixels: int
    """To decode: whole blocks, each counted once."""
    requests: int = 0
    processing_units: float = 0.0
    assumed_bytes: int = 0
    """Those of `bytes` that are in files whose size nobody says."""

    def __add__(self, other: "ReadCost") -> "ReadCost":
        return ReadCost(*map(add, astuple(self), astuple(other)))


@runtime_checkable
class Priced(Protocol):
    """A catalogue that can tell its price. It reads no pixel and sends nothing for it."""

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """Of reading these windows in these bands, and their masks, once."""
        ...

    def cost_of_listing(self, tile: TileId, wanted: Wanted) -> ReadCost:
        """Of what a build reads of the tile's scenes before it chooses among them.

        `scenes` has been asked for that tile. Searches are not counted.
        """
        ...


@final
class Watched:
    """A catalogue that takes down what is read of it, such as to choose dates by region."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.looks: list[tuple[Scene, Sequence[str], Sequence[PixelWindow]]] = []
        """Scene, bands and windows of each reading; no band where it was of masks."""

    def scenes(self, tile: TileId) -> Listing:
        """Those of the catalogue."""
        return self._catalogue.scenes(tile)

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """As the catalogue reads them."""
        self.looks.append((scene, (band,), windows))
        return self._catalogue.read(scene, band, windows)

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """As the catalogue has them."""
        self.looks.append((scene, (), windows))
        return self._catalogue.masks(scene, windows)


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
        """Decoding on all workers, or what a quota allows in a minute; not the network."""
        if self.read is None:
            return None
        decoding = self.read.pixels / self.decoded_per_second / self.workers
        units = self.read.processing_units
        metered = max(self.read.requests, units) if units else 0.0
        return max(decoding, metered / PER_MINUTE * 60)

    def as_json(self) -> dict[str, Any]:
        read = None if self.read is None else vars(self.read)
        quota = {"requests": FREE_REQUESTS, "processing_units": FREE_UNITS}
        values = {**vars(self), "read": read, "seconds": self.seconds, "free_a_month": quota}
        return {"kind": "plan", **values}


def estimate(
    listings: Mapping[TileId, Listing],
    planned: Plan,
    catalogue: Catalogue,
    workers: int,
    wanted: Wanted,
    looks: Sequence[tuple[Scene, Sequence[str], Sequence[PixelWindow]]] = (),
) -> Estimate:
    """The cost of building `planned` from `catalogue` with so many workers.

    `wanted` is what the build would be told to choose from, and `looks` what choosing has read: the
    build will read it again.
    """
    scenes = {
        (tile.name, scene.product): scene
        for tile, listing in listings.items()
        for scene in listing.scenes
    }
    read = None
    if isinstance(catalogue, Priced):
        # what the very tasks of the build would ask for
        costs = [
            catalogue.cost(scene, planned.bands, windows)
            for scene, windows in readings(planned, scenes)
        ]
        costs += [catalogue.cost(scene, bands, windows) for scene, bands, windows in looks]
        costs += [catalogue.cost_of_listing(tile, wanted) for tile in listings]
        read = reduce(add, costs, ReadCost(0, 0))
    taken = _regions_by_scene(planned)
    images = planned.product.size
    return Estimate(
        scenes={
            tile.name: [
                _described(scene, len(taken.get((tile.name, scene.product), ())))
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
        regions={
            tile.name: len(set(planned.table.region[planned.table.tile == tile.name].tolist()))
            for tile in listings
        },
        cube_bytes=round(images * (planned.layout.chunk_bytes / COMPRESSION + _MASK_BYTES)),
        read=read,
        decoded_per_second=decoding_speed(),
        workers=workers,
        notes=_notes(read),
    )


def _described(scene: Scene, regions: int) -> dict[str, Any]:
    return {
        "product": scene.product,
        "acquired": scene.acquired.isoformat(),
        "cloud_cover": scene.cloud_cover,
        "regions": regions,
    }


def _regions_by_scene(planned: Plan) -> dict[tuple[str, str], set[int]]:
    """By tile and product, the regions that take it."""
    taken: dict[tuple[str, str], set[int]] = {}
    places = zip(planned.table.tile.tolist(), planned.table.region.tolist(), strict=True)
    for (tile, region), products in zip(places, planned.product.tolist(), strict=True):
        for product in products:
            taken.setdefault((tile, product), set()).add(region)
    return taken


def _notes(read: ReadCost | None) -> tuple[str, ...]:
    if read is None:
        return ("this source cannot tell what reading costs",)
    notes = ["time is for decoding alone, as fast as a made image was decoded just now"]
    if read.assumed_bytes:
        notes.append(
            f"{read.assumed_bytes / read.bytes:.0%} of the bytes are of files whose size nobody "
            "says; they are taken for files of the usual size"
        )
    if read.processing_units:
        months = max(read.requests / FREE_REQUESTS, read.processing_units / FREE_UNITS)
        notes.append(
            f"{months:.2f} months of a free account ({FREE_REQUESTS} requests and {FREE_UNITS} "
            f"processing units each, {PER_MINUTE} a minute)"
        )
        if months > 1:
            notes.append("more than one month's free quota: ask for less, or take stac: or safe:")
    return tuple(notes)


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
        asked = f", {read.requests} requests" if read.requests else ""
        if read.processing_units:
            asked += f", {read.processing_units:.1f} processing units"
        told.append(
            f"to read: about {read.bytes / 1e6:.1f} MB{asked}; to decode: "
            f"{read.pixels / 1e6:.0f} million pixels, about {planned.seconds:.0f} s "
            f"with {planned.workers} workers"
        )
    return [*told, *planned.notes]
