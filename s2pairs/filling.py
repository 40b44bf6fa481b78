"""Filling the shards of a cube: from products, or from other cubes. One task fills a few, whole."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import stored_from_dn
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import CubeError, SceneError
from s2pairs.ledger import Ledger, digest, encoded
from s2pairs.masks import Flags, complete
from s2pairs.patches import PATCH_PX, PatchTable
from s2pairs.plan import Plan
from s2pairs.scenes import Catalogue, PixelWindow, Scene, naming
from s2pairs.shards import Pixels, ShardLayout, Values
from s2pairs.storage import LocalStore, Place, Store

TASK_BYTES = 100 * 2**20
"""Pixels that one task holds in memory, or one shard; with 4 bands and 12 dates, 4 shards."""

Integers = npt.NDArray[np.intp]
Scenes = Mapping[tuple[str, str], Scene]
"""By tile and product."""


@dataclass(frozen=True)
class Origins:
    """Which looks are copied from other cubes: number of the cube, its patch, its date.

    -1 where a look comes from a product.
    """

    cubes: tuple[tuple[Place, str], ...]
    """Where each lies and the digest of its plan, since another may be put there."""
    cube: Integers
    """(patch,)"""
    row: Integers
    """(patch,)"""
    date: Integers
    """(patch, date)"""

    @classmethod
    def none(cls, patches: int, dates: int) -> "Origins":
        nowhere = np.full(patches, -1)
        return cls((), nowhere, nowhere, np.full((patches, dates), -1))

    def take(self, rows: Integers | npt.NDArray[np.bool_]) -> "Origins":
        return Origins(self.cubes, self.cube[rows], self.row[rows], self.date[rows])

    def before(self, other: "Origins") -> "Origins":
        """These patches, then those of the other."""
        moved = np.where(other.cube >= 0, other.cube + len(self.cubes), -1)
        return Origins(
            cubes=(*self.cubes, *other.cubes),
            cube=np.concatenate([self.cube, moved]),
            row=np.concatenate([self.row, other.row]),
            date=np.concatenate([self.date, other.date]),
        )

    def shard_of(self, layout: ShardLayout) -> tuple[Cube, int] | None:
        """The shard of another cube that is this one, patch for patch and date for date."""
        if not len(self.cube) or self.cube[0] < 0 or (self.cube != self.cube[0]).any():
            return None
        cube, first = opened(*self.cubes[self.cube[0]]), int(self.row[0])
        held = min(layout.patches, len(cube) - first)
        as_is = (
            cube.dates == layout.dates
            and cube.shard_patches == layout.patches
            and first % layout.patches == 0
            and len(self.row) == held
            and (self.row == np.arange(first, first + held)).all()
            and (self.date == np.arange(cube.dates)).all()
        )
        return (cube, first // layout.patches) if as_is else None


@lru_cache(maxsize=16)
def opened(place: Place, plan_digest: str) -> Cube:
    """A finished cube that looks are copied from, opened once a process."""
    cube = open_cube(place)
    if cube.plan_digest != plan_digest:
        raise CubeError(f"{place} was replaced by another cube meanwhile; run the command again")
    return cube


@dataclass(frozen=True)
class Fill:
    """A task: some shards of one cube and all that is needed to fill them.

    It can be sent to another process. Doing it twice, or in two places at a time, does no harm.
    """

    ledger: Ledger
    layout: ShardLayout
    bands: tuple[str, ...]
    shards: tuple[int, ...]
    table: PatchTable
    """The patches of these shards, one shard after the other."""
    product: npt.NDArray[np.str_]
    origins: Origins
    scenes: Scenes
    catalogue: Catalogue | None
    binding: bool = False
    """What the ledger holds binds: a shard that comes out otherwise is an error."""
    threads: int = 1
    """For compressing and writing. What decodes has threads of its own."""

    @property
    def parts(self) -> int:
        return len(self.shards)

    def rows(self, number: int) -> Integers:
        """The rows of the table that are in one of the shards."""
        first = number * self.layout.patches
        return np.arange(first, min(first + self.layout.patches, len(self.table)))

    def take(self, numbers: Sequence[int]) -> "Fill":
        """Some of the shards alone."""
        rows = np.concatenate([self.rows(number) for number in numbers])
        return replace(
            self,
            shards=tuple(self.shards[number] for number in numbers),
            table=self.table.take(rows),
            product=self.product[rows],
            origins=self.origins.take(rows),
        )


def tasks(
    store: Store,
    plan: Plan,
    scenes: Scenes,
    catalogue: Catalogue | None,
    *,
    origins: Origins | None = None,
    shards: Sequence[int] | None = None,
    binding: bool = False,
) -> list[Fill]:
    """Tasks that fill a cube, or these `shards` of it.

    Runs of shards are read together: one decoding of an image's block serves them all.
    """
    layout = plan.layout
    together = max(1, TASK_BYTES // (layout.patches * layout.dates * layout.chunk_bytes))
    wanted = range(plan.shards) if shards is None else shards
    origins = origins or Origins.none(len(plan.table), layout.dates)
    return [
        _task(
            Ledger(store, plan.digest),
            plan,
            origins,
            scenes,
            catalogue,
            tuple(wanted[first : first + together]),
            binding,
        )
        for first in range(0, len(wanted), together)
    ]


def readings(plan: Plan, scenes: Scenes) -> Iterator[tuple[Scene, list[PixelWindow]]]:
    """What filling a whole cube from products reads: task after task, of each scene its windows."""
    for task in tasks(LocalStore(Path()), plan, scenes, None):
        for (tile, product), places in _by_scene(task).items():
            windows = [_bounds(task.table, patches) for patches, _ in places]
            yield _scene(task, tile, product), windows


def _task(
    ledger: Ledger,
    plan: Plan,
    origins: Origins,
    scenes: Scenes,
    catalogue: Catalogue | None,
    shards: tuple[int, ...],
    binding: bool,
) -> Fill:
    size = plan.layout.patches
    rows = np.concatenate(
        [np.arange(s * size, min((s + 1) * size, len(plan.table))) for s in shards]
    )
    table, product = plan.table.take(rows), plan.product[rows]
    needed = {
        (str(tile), str(name))
        for tile, names in zip(table.tile, product, strict=True)
        for name in names
    }
    return Fill(
        ledger=ledger,
        layout=plan.layout,
        bands=plan.bands,
        shards=shards,
        table=table,
        product=product,
        origins=origins.take(rows),
        scenes={key: scenes[key] for key in needed if key in scenes},
        catalogue=catalogue,
        binding=binding,
    )


def fill(task: Fill) -> int:
    """Write the shards that do not stand yet; returns how many stood."""
    missing = [number for number, shard in enumerate(task.shards) if not task.ledger.stands(shard)]
    to_make = [number for number in missing if not _adopted(task, number)]
    if to_make:
        rest = task.take(to_make)
        pixels, masks = read_looks(rest)

        def write(number: int) -> None:
            rows = slice(number * rest.layout.patches, (number + 1) * rest.layout.patches)
            files = encoded(rest.layout, pixels[rows], masks[rows])
            _write(rest, rest.shards[number], files)

        with ThreadPoolExecutor(task.threads) as pool:
            for done in [pool.submit(write, number) for number in range(len(rest.shards))]:
                done.result()
    return len(task.shards) - len(missing)


def shared_out(todo: Sequence[Fill], threads: int) -> list[Fill]:
    """The tasks, with the threads that would have nothing to do where there are few of them."""
    each = max(1, threads // max(1, len(todo)))
    return [replace(task, threads=each) for task in todo]


def _adopted(task: Fill, number: int) -> bool:
    """Whether the shard was in another cube as it is, and was taken over."""
    same = task.origins.take(task.rows(number)).shard_of(task.layout)
    if same is None:
        return False
    cube, shard = same
    # a damaged one is not spread; reading it then says what is wrong
    if not cube.ledger.stands(shard):
        return False
    task.ledger.adopt(task.shards[number], cube.ledger, shard)
    return True


def _write(task: Fill, shard: int, files: Mapping[str, bytes]) -> None:
    (recorded,) = task.ledger.digests([shard])
    if task.binding and any(recorded) and digest(files) != recorded:
        products = ", ".join(sorted({product for _, product in task.scenes})[:3])
        raise SceneError(
            f"shard {shard} of {task.ledger.store.place} comes out otherwise than it was built; "
            f"its products ({products} …) or this program have changed since, and nothing was "
            "overwritten. Bring the products back, or build a new cube"
        )
    task.ledger.write(shard, files)


def read_looks(task: Fill) -> tuple[Pixels, Flags]:
    """Stored values (patch, date, band, 64, 64) and masks (patch, date, 64, 64) of a task."""
    layout = task.layout
    pixels = np.empty((len(task.table), layout.dates, *layout.chunk), dtype=np.uint16)
    masks = np.empty((len(task.table), layout.dates, *layout.of_masks.chunk), dtype=np.uint8)
    _copy_looks(task, pixels, masks)
    for (tile, product), places in _by_scene(task).items():
        _read_scene(task, _scene(task, tile, product), places, pixels, masks)
    return pixels, masks


def _copy_looks(task: Fill, pixels: Pixels, masks: Flags) -> None:
    origins = task.origins
    for number, origin in enumerate(origins.cubes):
        rows, dates = np.nonzero((origins.cube == number)[:, None] & (origins.date >= 0))
        if len(rows):
            cube = opened(*origin)
            there = origins.row[rows], origins.date[rows, dates]
            pixels[rows, dates] = cube.read_looks(*there)
            masks[rows, dates] = cube.read_look_masks(*there)


def _scene(task: Fill, tile: str, product: str) -> Scene:
    try:
        return task.scenes[tile, product]
    except KeyError:
        raise SceneError(
            f"{product} of tile {tile} is not in the source; shard {task.shards[0]} of "
            f"{task.ledger.store.place} needs it"
        ) from None


def _read_scene(
    task: Fill,
    scene: Scene,
    places: Sequence[tuple[list[int], int]],
    pixels: Pixels,
    masks: Flags,
) -> None:
    catalogue = task.catalogue
    assert catalogue is not None
    windows = [_bounds(task.table, patches) for patches, _ in places]
    for band, name in enumerate(task.bands):
        read = naming(scene, partial(catalogue.read, scene, name, windows))
        offset = scene.add_offset[name]
        for (patches, date), window, dn in zip(places, windows, read, strict=True):
            stored = stored_from_dn(dn, offset, scene.quantification)
            pixels[patches, date, band] = _cut(stored, window, task.table, patches)
    known = naming(scene, partial(catalogue.masks, scene, windows))
    for number, ((patches, date), window) in enumerate(zip(places, windows, strict=True)):
        said = None if known is None else _cut(known[number], window, task.table, patches)
        masks[patches, date] = complete(said, pixels[patches, date], task.bands)


def _by_scene(task: Fill) -> dict[tuple[str, str], list[tuple[list[int], int]]]:
    """By tile and product, what is read of it: the rows of a region's patches, and their date."""
    groups: dict[tuple[str, str], dict[tuple[int, int], list[int]]] = {}
    for row, date in zip(*np.nonzero(task.origins.date < 0), strict=True):
        scene = str(task.table.tile[row]), str(task.product[row, date])
        place = int(task.table.region[row]), int(date)
        groups.setdefault(scene, {}).setdefault(place, []).append(int(row))
    return {
        scene: [(rows, date) for (_, date), rows in places.items()]
        for scene, places in groups.items()
    }


def _bounds(table: PatchTable, rows: Sequence[int]) -> PixelWindow:
    """The smallest window that holds these patches."""
    top, left = int(table.row[rows].min()), int(table.col[rows].min())
    bottom, right = int(table.row[rows].max()) + PATCH_PX, int(table.col[rows].max()) + PATCH_PX
    return PixelWindow(top, left, bottom - top, right - left)


def _cut(values: Values, window: PixelWindow, table: PatchTable, rows: Sequence[int]) -> Values:
    """The patches (n, 64, 64) of these rows out of the values of a window."""
    corners = zip(table.row[rows] - window.row, table.col[rows] - window.col, strict=True)
    return np.stack([values[r : r + PATCH_PX, c : c + PATCH_PX] for r, c in corners])
