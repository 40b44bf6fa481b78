"""Reading a cube back against its ledger, and mending what is missing or damaged."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC

import numpy as np
import numpy.typing as npt

from s2pairs import group
from s2pairs.cube import AGAIN, CHANGED, Cube, open_any, open_unchanged, plan_of
from s2pairs.errors import S2PairsError
from s2pairs.filling import Fill, Scenes, fill, tasks
from s2pairs.lock import held
from s2pairs.running import Progress, Threads, Workers, run_all
from s2pairs.scenes import Catalogue, Source, Wanted
from s2pairs.storage import Place, Store, store_at
from s2pairs.tiles import TileId

_READERS = 4


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a cube; `shard` is None where it concerns the whole cube."""

    shard: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.shard is None else f"shard {self.shard}: {self.what}"


@dataclass(frozen=True)
class Repaired:
    """What a repair found and did."""

    shards: int
    """In the cube."""
    rebuilt: int
    put_back: tuple[str, ...]
    """What else was mended."""
    remaining: tuple[str, ...]
    """What could not be, each with the reason."""


def check(path: Place) -> Iterator[tuple[Damage | None, int, int]]:
    """Read a whole cube: for each part its damage or None, how many are done, how many there are.

    The parts are the shards and, as one more, all that was written with the plan.
    """
    cube = open_any(path)
    total = cube.shards + 1
    store = cube.store
    with _reading_shards(cube) as found:
        # while they are read
        changed = _damage_of_plan(store)
        yield Damage(None, f"{changed}; {_advice(path)}") if changed else None, 1, total
        for shard, what in found:
            damage = Damage(shard, f"{what}; {AGAIN}, or {_advice(path)}") if what else None
            yield damage, shard + 2, total


def _advice(path: Place) -> str:
    return f"s2pairs check {path} --repair SOURCE mends it"


@contextmanager
def _reading_shards(cube: Cube) -> Iterator[Iterator[tuple[int, str | None]]]:
    """Begin to read all shards; gives each with what is wrong with it, in order."""
    with ThreadPoolExecutor(max(_READERS, cube.store.lanes)) as pool:
        yield enumerate(pool.map(cube.ledger.damage, range(cube.shards)))


def _damage_of_plan(store: Store) -> str | None:
    if not group.holds(store.place):
        return CHANGED
    if store.read_many([group.COPY]) != [group.copy_of(store)]:
        return f"the copy of its coordinates in {store.path(group.COPY)} is damaged or missing"
    return None


def repair(path: Place, source: Source, *, workers: int | Workers, progress: Progress) -> Repaired:
    """Put changed coordinates back from their copy, and rebuild missing and damaged shards.

    `source` opens the catalogue. Products are found there by name, so what was merged or appended
    is mended alike. Each rebuilt shard must have the bytes that the ledger
    has of it; where the ledger's own row is lost, it is written anew. What needs a product that is
    not there, or that gives other pixels than it gave, remains and is told. `progress` counts
    shards read, then shards rebuilt.
    """
    with held(path):
        store = store_at(path)
        store.sweep()
        put_back = _mend_plan(store)
        cube = open_unchanged(path)
        broken = _broken_shards(cube, progress)
        remaining = _rebuild(cube, broken, source, workers, progress) if broken else []
    return Repaired(cube.shards, len(broken) - len(remaining), put_back, tuple(remaining))


def _mend_plan(store: Store) -> tuple[str, ...]:
    """What of the plan's parts was put back."""
    if not store.exists() or not store.exists(group.COPY):
        group.open_ours(store)  # which says so where it is no cube at all
    if not group.holds(store.place):
        group.put_back(store)
        return ("coordinates and attributes, from their copy",)
    copy = group.copy_of(store)
    if store.read_many([group.COPY]) != [copy]:
        store.write(group.COPY, copy)
        return ("the copy of coordinates and attributes",)
    return ()


def _broken_shards(cube: Cube, progress: Progress) -> list[int]:
    broken = []
    with _reading_shards(cube) as found:
        for shard, what in found:
            broken += [shard] if what else []
            progress(shard + 1, cube.shards)
    return broken


def _rebuild(
    cube: Cube,
    broken: Sequence[int],
    source: Source,
    workers: int | Workers,
    progress: Progress,
) -> list[str]:
    """Rebuild shards; returns what remains, one sentence a shard."""
    rows = np.isin(np.arange(len(cube)) // cube.shard_patches, broken)
    catalogue = source(cube.bands, _wanted(cube, rows))
    scenes = _scenes(np.unique(cube.tile[rows]).tolist(), catalogue)
    todo = tasks(
        cube.store,
        plan_of(cube),
        scenes,
        catalogue,
        shards=broken,
        binding=True,
    )
    runner = Threads(workers) if isinstance(workers, int) else workers
    return [reason for reasons in run_all(_mend, todo, runner, progress) for reason in reasons]


def _mend(task: Fill) -> list[str]:
    """Fill the shards of a task, each for itself where not all can be; the reasons that remain."""
    try:
        fill(task)
    except S2PairsError as error:
        if task.parts == 1:
            return [f"shard {task.shards[0]}: {error}"]
        return [reason for number in range(task.parts) for reason in _mend(task.take([number]))]
    return []


def _wanted(cube: Cube, rows: npt.NDArray[np.bool_]) -> Wanted:
    """The period of these patches' looks, with a day before and behind."""
    # sources may take a datatake's first moment or a granule's own
    first, last = cube.acquired[rows].min(), cube.acquired[rows].max()
    day = np.timedelta64(1, "D")
    start, end = (each.item().replace(tzinfo=UTC) for each in (first - day, last + day))
    return Wanted(100.0, start, end)


def _scenes(tiles: Sequence[str], catalogue: Catalogue) -> Scenes:
    """What the catalogue has of these tiles, by tile and product."""
    return {
        (name, scene.product): scene
        for name in tiles
        for scene in catalogue.scenes(TileId.parse(name)).scenes
    }
