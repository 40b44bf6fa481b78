"""A cube: create, open, read. docs/cube.md specifies it.

A cube is a Zarr 3 group whose coordinates are written when it is created, from its plan (group.py);
its pixels come shard by shard (ledger.py, shards.py). It lies in a folder or in object storage
(storage.py).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs import group, shards
from s2pairs.errors import CubeError
from s2pairs.ledger import Ledger, read_measure, shard_key
from s2pairs.masks import Flags
from s2pairs.patches import PATCH_PX, PatchTable
from s2pairs.plan import FILES, MEASURES, Plan, group_attributes
from s2pairs.shards import Index, Pixels, ShardLayout, Values
from s2pairs.storage import LocalStore, Place, Store, store_at

AGAIN = "run the same s2pairs build command again"
CHANGED = "coordinates or attributes were changed or are missing"
_KNOWN_INDICES = 2048  # of shards; 12 KiB each with 12 dates


@dataclass(frozen=True)
class Cube:
    """A cube that can be read. Made by `open_cube`, which refuses an incomplete one."""

    path: Place
    """A local path, or a URL."""
    bands: tuple[str, ...]
    dates: int
    """Dates of each patch."""
    table: PatchTable
    parameters: Mapping[str, Any]
    attributes: Mapping[str, Any]
    plan_digest: str
    shard_patches: int

    def __len__(self) -> int:
        return len(self.table)

    @property
    def patches(self) -> int:
        """Number of patches."""
        return len(self.table)

    @property
    def tile(self) -> npt.NDArray[np.str_]:
        return self.table.tile

    @property
    def region(self) -> npt.NDArray[np.int32]:
        return self.table.region

    @property
    def row(self) -> npt.NDArray[np.int32]:
        return self.table.row

    @property
    def col(self) -> npt.NDArray[np.int32]:
        return self.table.col

    @property
    def epsg(self) -> npt.NDArray[np.int32]:
        return self.table.epsg

    @property
    def x(self) -> npt.NDArray[np.float64]:
        return self.table.x

    @property
    def y(self) -> npt.NDArray[np.float64]:
        return self.table.y

    @property
    def split(self) -> npt.NDArray[np.str_]:
        return self.table.split

    @cached_property
    def acquired(self) -> npt.NDArray[np.datetime64]:
        """(patch, date), milliseconds, UTC."""
        return group.read_column(self.path, "acquired").astype("datetime64[ms]")

    @cached_property
    def product(self) -> npt.NDArray[np.str_]:
        """(patch, date)."""
        return group.read_column(self.path, "product")

    @property
    def valid_fraction(self) -> npt.NDArray[np.float32]:
        """(patch, date): the part of the pixels that has data in every band, 0 to 1."""
        return self.measures["valid_fraction"]

    @property
    def clear_fraction(self) -> npt.NDArray[np.float32]:
        """(patch, date): the part that has data and is neither cloud nor shadow, 0 to 1.

        As far as the source knows; `mask` says how it knows.
        """
        return self.measures["clear_fraction"]

    @property
    def shift(self) -> npt.NDArray[np.float32]:
        """(patch, date): how far the ground lies from where the first clear date has it, in pixels.

        NaN where that cannot be told.
        """
        return np.hypot(self.measures["dy"], self.measures["dx"])

    @cached_property
    def measures(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """What is told of each patch at each date (patch, date), by the names of `MEASURES`."""
        every = range(self.shards)
        parts = {name: read_measure(self.store, name, every, self.layout) for name in MEASURES}
        return {name: part.reshape(-1, self.dates)[: len(self)] for name, part in parts.items()}

    @property
    def shards(self) -> int:
        return -(-len(self.table) // self.shard_patches)

    @cached_property
    def digest(self) -> str:
        """One SHA-256 for the whole cube, from its plan and its ledger, in hexadecimal."""
        rows = b"".join(self.ledger.digests(range(self.shards)))
        return hashlib.sha256(self.plan_digest.encode() + rows).hexdigest()

    def read(self, patches: npt.ArrayLike) -> Pixels:
        """Stored values (n, date, band, 64, 64) of patches, all dates, in the order asked for."""
        return self._every_date(patches, "reflectance")

    def read_masks(self, patches: npt.ArrayLike) -> Flags:
        """What is known of the pixels (n, date, 64, 64) of patches, as the bits of masks.py."""
        return self._every_date(patches, "mask")

    def read_looks(self, patches: npt.ArrayLike, dates: npt.ArrayLike) -> Pixels:
        """Stored values (n, band, 64, 64): each patch at its date."""
        return self._read("reflectance", *_places(patches, dates))

    def read_look_masks(self, patches: npt.ArrayLike, dates: npt.ArrayLike) -> Flags:
        """What is known of the pixels (n, 64, 64): each patch at its date."""
        return self._read("mask", *_places(patches, dates))

    def read_pairs(
        self, patches: npt.ArrayLike, date_a: npt.ArrayLike, date_b: npt.ArrayLike
    ) -> tuple[Pixels, Pixels]:
        """Stored values, twice (n, band, 64, 64): each patch at its date a and at its date b."""
        places, first = _places(patches, date_a)
        places, second = _places(places, date_b)
        both = self._read("reflectance", np.tile(places, 2), np.concatenate([first, second]))
        return both[: len(places)], both[len(places) :]

    @property
    def layout(self) -> ShardLayout:
        return ShardLayout(self.shard_patches, self.dates, (len(self.bands), PATCH_PX, PATCH_PX))

    @cached_property
    def store(self) -> Store:
        return store_at(self.path)

    @property
    def ledger(self) -> Ledger:
        """Which of its shards stand."""
        return Ledger(self.store, self.plan_digest)

    def __reduce__(self) -> tuple[Callable[[Place], "Cube"], tuple[Place]]:
        # another process opens it anew
        return open_cube, (self.path,)

    def _every_date(self, patches: npt.ArrayLike, name: str) -> Values:
        places = np.asarray(patches, dtype=np.intp).ravel()
        dates = np.tile(np.arange(self.dates), len(places))
        flat = self._read(name, np.repeat(places, self.dates), dates)
        return flat.reshape(len(places), self.dates, *flat.shape[1:])

    def _layout(self, name: str) -> ShardLayout:
        return self.layout if name == "reflectance" else self.layout.of_masks

    def _read(
        self, name: str, patches: npt.NDArray[np.intp], dates: npt.NDArray[np.intp]
    ) -> Values:
        for kind, values, size in (("patch", patches, len(self)), ("date", dates, self.dates)):
            if len(values) and (values.min() < 0 or values.max() >= size):
                raise CubeError(f"{self.path} has {size} {kind} indices, from 0; asked for more")
        layout = self._layout(name)
        out = np.empty((len(patches), *layout.chunk), dtype=layout.dtype)
        # In the order of the disk, each shard opened once.
        order = np.lexsort((dates, patches))
        of_shard = patches[order] // self.shard_patches
        runs = [run for run in np.split(order, np.flatnonzero(np.diff(of_shard)) + 1) if len(run)]

        def read(rows: npt.NDArray[np.intp]) -> None:
            self._read_shard(name, rows, patches, dates, out)

        if self.store.lanes == 1 or len(runs) == 1:
            for rows in runs:
                read(rows)
        else:
            with ThreadPoolExecutor(min(self.store.lanes, len(runs))) as pool:
                list(pool.map(read, runs))
        return out

    def _read_shard(
        self,
        name: str,
        rows: npt.NDArray[np.intp],
        patches: npt.NDArray[np.intp],
        dates: npt.NDArray[np.intp],
        out: Values,
    ) -> None:
        shard = int(patches[rows[0]]) // self.shard_patches
        key = shard_key(shard, name)
        inside = patches[rows] - shard * self.shard_patches
        places = zip(inside.tolist(), dates[rows].tolist(), strict=True)
        try:
            index = self._index(name, shard)
            chunks = shards.read_chunks(self.store, key, index, self._layout(name), places)
            for row, chunk in zip(rows, chunks, strict=True):
                out[row] = chunk
        except FileNotFoundError as error:
            raise CubeError(f"{self.store.path(key)} is missing; {AGAIN}") from error

    @cached_property
    def _index(self) -> Callable[[str, int], Index]:
        """The index of a shard in an array; those asked for last are remembered."""

        @lru_cache(maxsize=_KNOWN_INDICES)
        def index(name: str, shard: int) -> Index:
            key = shard_key(shard, name)
            return shards.read_index(self.store, key, self._layout(name))

        return index


def open_cube(path: Place) -> Cube:
    """Open a complete cube; `CubeError` if it is none, is unfinished, lacks a shard or was changed.

    A missing file would read as its array's fill value without a word. So every shard's files
    must be there, and the coordinates, array metadata and attributes must have the plan's digest.
    Whether the bytes of the shards are right is what `check` says.
    """
    cube = open_unchanged(path)
    built = sum(map(any, cube.ledger.digests(range(cube.shards))))
    if built < cube.shards:
        raise CubeError(f"{path} is unfinished: {built} of {cube.shards} shards are built; {AGAIN}")
    there = cube.store.sizes()
    missing = [
        shard
        for shard in range(cube.shards)
        if not all(shard_key(shard, name) in there for name in FILES)
    ]
    if missing:
        few = ", ".join(map(str, missing[:5]))
        raise CubeError(f"{path} lacks shard {few} ({len(missing)} of {cube.shards}); {AGAIN}")
    return cube


def open_unchanged(path: Place) -> Cube:
    """A cube that may be unfinished; `CubeError` if anything but its shards was changed."""
    cube = open_any(path)
    if not group.holds(cube.path):
        raise CubeError(f"{path} is damaged: {CHANGED}; run s2pairs check {path}")
    return cube


def open_any(path: Place) -> Cube:
    """A cube that may be unfinished or changed; `CubeError` if there is none of ours."""
    store = store_at(path)
    found = group.read_group(store)
    try:
        return Cube(
            path=store.place,
            bands=tuple(found.attributes["bands"]),
            dates=found.dates,
            table=found.table,
            parameters=json.loads(found.attributes["parameters"]),
            attributes=found.attributes,
            plan_digest=found.attributes["plan_sha256"],
            shard_patches=found.shard_patches,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CubeError(
            f"{path} is damaged ({error!r}); run s2pairs check {path} --repair SOURCE"
        ) from error


def begun(path: Place, plan: Plan) -> Plan:
    """Create the cube or find it begun; the plan as it stands there.

    That differs from `plan` at most in the products that were left out: what came to a source
    since and is not chosen is no reason to begin again. `CubeError` for anything else there.
    """
    if store_at(path).exists():
        return same_plan(path, plan)
    create(path, plan)
    return plan


def create(path: Place, plan: Plan) -> None:
    """Write an empty cube: everything but the pixels. It appears at `path` whole or not at all."""
    store = store_at(path)
    # beside its place, so that it can be moved there
    new = (
        store.place.with_name(f".{store.place.name}.new")
        if isinstance(store, LocalStore)
        else Path(tempfile.mkdtemp(), "cube.zarr")
    )
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        group.write_group(new, plan)
        store.create(new, first=group.COPY)
    except OSError as error:
        raise CubeError(f"cannot create {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def plan_of(cube: Cube) -> Plan:
    """The plan that a cube was made from."""
    level = cube.attributes["level"]
    plan = Plan(
        bands=cube.bands,
        level=level,
        table=cube.table,
        acquired=cube.acquired,
        product=cube.product,
        parameters=cube.parameters,
        attributes={},
    )
    written = {*group_attributes(plan), "plan_sha256"}
    further = {name: value for name, value in cube.attributes.items() if name not in written}
    return replace(plan, attributes=further)


def same_plan(path: Place, plan: Plan) -> Plan:
    """The plan of the cube at `path`; `CubeError` that says what differs if it is not as this."""
    cube = open_unchanged(path)
    asked = json.loads(json.dumps(dict(plan.parameters)))
    differing = [
        f"{name} was {cube.parameters.get(name)!r}, now {asked.get(name)!r}"
        for name in sorted({*cube.parameters, *asked})
        if cube.parameters.get(name) != asked.get(name)
    ]
    if differing:
        raise CubeError(
            f"{path} was begun with other parameters: {'; '.join(differing)}; "
            "use the same ones or another --out"
        )
    stands = plan_of(cube)
    if not stands.holds_the_same(plan):
        before, now = set(cube.product.ravel().tolist()), set(plan.product.ravel().tolist())
        products = ", ".join(sorted(before ^ now)[:3]) or "their list or this program's version"
        raise CubeError(
            f"{path} was begun from other products; what differs: {products}; "
            "restore the source or use another --out"
        )
    return stands


def _places(
    patches: npt.ArrayLike, dates: npt.ArrayLike
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    of_patch, of_date = (np.asarray(each, dtype=np.intp).ravel() for each in (patches, dates))
    if len(of_patch) != len(of_date):
        raise CubeError(f"{len(of_patch)} patches need as many dates, not {len(of_date)}")
    return of_patch, of_date
