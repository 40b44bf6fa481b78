"""The cube on disk: create, open, read, check. docs/cube.md specifies it.

The only file that imports zarr. A cube is a Zarr 3 group whose coordinates are written when it
is created, from its plan; its pixels come shard by shard (ledger.py).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs import ledger, shards
from s2pairs.errors import CubeError
from s2pairs.masks import NO_DATA, Flags
from s2pairs.patches import PATCH_PX, SPLITS, PatchTable
from s2pairs.plan import (
    COORDINATES,
    FORMAT,
    FORMAT_VERSION,
    Array,
    Plan,
    content_digest,
    group_attributes,
    plan_arrays,
)
from s2pairs.shards import Index, Pixels, ShardLayout, Values

_LONGEST_CHUNK = 65_536
_AGAIN = "run the same s2pairs build command again"
_CHANGED = "coordinates or attributes were changed or are missing"


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a cube; `shard` is None where it concerns the whole cube."""

    shard: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.shard is None else f"shard {self.shard}: {self.what}"


@dataclass(frozen=True)
class Cube:
    """A cube on disk. Made by `open_cube`, which refuses an incomplete one."""

    path: Path
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
        return _late_column(self.path, "acquired").astype("datetime64[ms]")

    @cached_property
    def product(self) -> npt.NDArray[np.str_]:
        """(patch, date)."""
        return _late_column(self.path, "product")

    @cached_property
    def valid_fraction(self) -> npt.NDArray[np.float32]:
        """(patch, date): the part of the pixels that has data in every band, 0 to 1."""
        return self._fraction("valid_fraction")

    @cached_property
    def clear_fraction(self) -> npt.NDArray[np.float32]:
        """(patch, date): the part that has data and is neither cloud nor shadow, 0 to 1.

        As far as the source knows; `mask` says how it knows.
        """
        return self._fraction("clear_fraction")

    def _fraction(self, name: str) -> npt.NDArray[np.float32]:
        parts = [ledger.read_fraction(self.path, name, s, self.layout) for s in range(self.shards)]
        return np.concatenate(parts)[: len(self)]

    @property
    def shards(self) -> int:
        return -(-len(self.table) // self.shard_patches)

    @cached_property
    def digest(self) -> str:
        """One SHA-256 for the whole cube, from its plan and its ledger, in hexadecimal."""
        rows = b"".join(ledger.recorded_digest(self.path, shard) for shard in range(self.shards))
        return hashlib.sha256(self.plan_digest.encode() + rows).hexdigest()

    def read(self, patches: npt.ArrayLike) -> Pixels:
        """Stored values (n, date, band, 64, 64) of patches, all dates, in the order asked for."""
        return self._every_date(patches, "reflectance")

    def read_masks(self, patches: npt.ArrayLike) -> Flags:
        """What is known of the pixels (n, date, 64, 64) of patches, as the bits of masks.py."""
        return self._every_date(patches, "mask")

    def _every_date(self, patches: npt.ArrayLike, name: str) -> Values:
        places = np.asarray(patches, dtype=np.intp).ravel()
        dates = np.tile(np.arange(self.dates), len(places))
        flat = self._read(name, np.repeat(places, self.dates), dates)
        return flat.reshape(len(places), self.dates, *flat.shape[1:])

    def read_pairs(
        self, patches: npt.ArrayLike, date_a: npt.ArrayLike, date_b: npt.ArrayLike
    ) -> tuple[Pixels, Pixels]:
        """Stored values, twice (n, band, 64, 64): each patch at its date a and at its date b."""
        places = np.asarray(patches, dtype=np.intp).ravel()
        dates = np.concatenate([np.asarray(each, np.intp).ravel() for each in (date_a, date_b)])
        if len(dates) != 2 * len(places):
            raise CubeError(f"{len(places)} patches need as many dates a and b, not {len(dates)}")
        both = self._read("reflectance", np.tile(places, 2), dates)
        return both[: len(places)], both[len(places) :]

    @property
    def layout(self) -> ShardLayout:
        return ShardLayout(self.shard_patches, self.dates, (len(self.bands), PATCH_PX, PATCH_PX))

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
        for rows in np.split(order, np.flatnonzero(np.diff(of_shard)) + 1):
            if len(rows):
                self._read_shard(name, rows, patches, dates, out)
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
        path = ledger.shard_file(self.path, shard, name)
        inside = patches[rows] - shard * self.shard_patches
        places = zip(inside.tolist(), dates[rows].tolist(), strict=True)
        try:
            chunks = shards.read_chunks(path, self._index(name, shard), self._layout(name), places)
            for row, chunk in zip(rows, chunks, strict=True):
                out[row] = chunk
        except FileNotFoundError as error:
            raise CubeError(f"{path} is missing; {_AGAIN}") from error

    def _index(self, name: str, shard: int) -> Index:
        known = self._indices.get((name, shard))
        if known is None:
            known = self._indices[name, shard] = shards.read_index(
                ledger.shard_file(self.path, shard, name), self._layout(name)
            )
        return known

    @cached_property
    def _indices(self) -> dict[tuple[str, int], Index]:
        return {}


def open_cube(path: Path) -> Cube:
    """Open a complete cube; `CubeError` if it is none, is unfinished, lacks a shard or was changed.

    A missing file would read as its array's fill value without a word. So every shard's object
    must be there, and the coordinates, array metadata and attributes must have the plan's digest.
    Whether the bytes of the shards are right is what `check` says.
    """
    cube = _open_unchanged(path)
    built = sum(any(ledger.recorded_digest(path, shard)) for shard in range(cube.shards))
    if built < cube.shards:
        raise CubeError(
            f"{path} is unfinished: {built} of {cube.shards} shards are built; {_AGAIN}"
        )
    missing = [s for s in range(cube.shards) if not ledger.objects_exist(path, s)]
    if missing:
        few = ", ".join(map(str, missing[:5]))
        raise CubeError(f"{path} lacks shard {few} ({len(missing)} of {cube.shards}); {_AGAIN}")
    return cube


def create(path: Path, plan: Plan) -> None:
    """Write an empty cube: everything but the pixels. It appears at `path` whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_group(new, plan)
        for folder, _, files in os.walk(new):
            for name in files:
                ledger.fsync(Path(folder, name))
            ledger.fsync(Path(folder))
        new.rename(path)
        ledger.fsync(path.parent)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise CubeError(f"cannot create {path}: {error.strerror}") from error


def same_plan(path: Path, plan: Plan) -> None:
    """`CubeError` unless the cube at `path` was begun with this very plan; says what differs."""
    cube = _open_unchanged(path)
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
    if cube.plan_digest != plan.digest:
        before, now = set(cube.product.ravel().tolist()), set(plan.product.ravel().tolist())
        products = ", ".join(sorted(before ^ now)[:3]) or "their list or this program's version"
        raise CubeError(
            f"{path} was begun from other products; what differs: {products}; "
            "restore the source or use another --out"
        )


def check(path: Path) -> Iterator[tuple[Damage | None, int, int]]:
    """Read a whole cube: for each part its damage or None, how many are done, how many there are.

    The parts are the shards and, as one more, all that was written with the plan.
    """
    cube = _open(path)
    total = cube.shards + 1
    changed = f"{_CHANGED}; remove {path} and build it again"
    yield None if _static_parts_hold(cube) else Damage(None, changed), 1, total
    for shard in range(cube.shards):
        what = ledger.damage(path, shard)
        yield Damage(shard, f"{what}; {_AGAIN}") if what else None, shard + 2, total


def describe(cube: Cube) -> dict[str, str]:
    """What a user wants to know of a cube, as lines of name and text."""
    days = cube.acquired.astype("datetime64[D]")
    raw = len(cube) * cube.dates * len(cube.bands) * PATCH_PX * PATCH_PX * 2
    pixels = sum(ledger.shard_file(cube.path, shard).stat().st_size for shard in range(cube.shards))
    on_disk = sum(file.stat().st_size for file in cube.path.rglob("*") if file.is_file())
    valid, clear = cube.valid_fraction, cube.clear_fraction
    names, counts = np.unique(cube.tile, return_counts=True)
    return {
        "patches": f"{len(cube)} of {PATCH_PX} x {PATCH_PX} pixels of 10 m",
        "tiles": ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)),
        "splits": ", ".join(f"{name} {(cube.split == name).sum()}" for name in SPLITS),
        "dates": f"{cube.dates} a patch, {days.min()} to {days.max()}",
        "bands": ", ".join(cube.bands),
        "level": str(cube.attributes["level"]),
        "valid pixels": f"{valid.mean():.1%} on average; {(valid < 1).mean():.1%} of the "
        f"images have some no-data, {(valid == 0).mean():.1%} nothing else",
        "clear pixels": f"{clear.mean():.1%} on average, as far as the source knows; "
        f"{(clear < 0.5).mean():.1%} of the images are clear in less than half",
        "products": f"{len(cube.attributes['products'])} used, "
        f"{len(cube.attributes['products_left_out'])} left out",
        "on disk": f"{on_disk / 1e6:.1f} MB in {cube.shards} shards; "
        f"pixels compressed {raw / pixels:.2f} times",
        "digest": cube.digest,
    }


def _static_parts_hold(cube: Cube) -> bool:
    """Whether coordinates, array metadata and attributes are still those of the plan.

    The group keeps the arrays' metadata twice (consolidated for xarray), so both are compared.
    """
    import zarr

    try:
        group, copy = (
            zarr.open_group(cube.path, mode="r", use_consolidated=consolidated)
            for consolidated in (False, True)
        )
        attributes = dict(group.attrs)
        expected = attributes.pop("plan_sha256")
        found = [_described(group[name]) for name in sorted(group.array_keys())]
        if found != [_described(copy[name]) for name in sorted(copy.array_keys())]:
            return False
        filled = [
            replace(array, values=_values(group, array.name))
            if array.name in {*COORDINATES, "band"}
            else array
            for array in found
        ]
        return content_digest(attributes, filled) == expected
    except Exception:  # noqa: BLE001, a decoder may raise anything on changed bytes
        return False


def _write_group(path: Path, plan: Plan) -> None:
    import warnings

    import zarr

    attributes = {**group_attributes(plan), "plan_sha256": plan.digest}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for array in plan_arrays(plan):
        if array.values is None:
            _create_empty(group, array, plan.layout)
        else:
            _create_filled(group, array, array.values)
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata are not in the specification of Zarr 3;
        # xarray warns when they are not in the group. Both ways of reading hold.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


def _create_filled(group: Any, array: Array, values: npt.NDArray[Any]) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    written = group.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=tuple(max(1, min(size, _LONGEST_CHUNK)) for size in array.shape),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        dimension_names=array.dims,
        attributes=array.attributes,
    )
    written[...] = values.astype(np.dtypes.StringDType()) if array.dtype == "string" else values


def _create_empty(group: Any, array: Array, layout: ShardLayout) -> None:
    """Metadata alone; the chunks come from `write_shard`, one file a shard and array."""
    from zarr.codecs import Crc32cCodec

    shard = {"reflectance": layout, "mask": layout.of_masks}.get(array.name)
    chunks: tuple[int, ...] = {
        "valid_fraction": (layout.patches, layout.dates),
        "clear_fraction": (layout.patches, layout.dates),
        "shard_sha256": (1, *array.shape[1:]),
    }.get(array.name, (1, 1))
    group.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(*chunks, *shard.chunk) if shard else chunks,
        shards=(layout.patches, layout.dates, *shard.chunk) if shard else None,
        compressors=[*([_blosc(shard)] if shard else []), Crc32cCodec()],
        fill_value=_FILL.get(array.name, 0),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.dims,
        attributes=array.attributes,
    )


# What is missing must not read as data.
_FILL = {"mask": NO_DATA, "valid_fraction": float("nan"), "clear_fraction": float("nan")}


def _blosc(layout: ShardLayout) -> Any:
    from zarr.codecs import BloscCodec

    return BloscCodec(
        typesize=np.dtype(layout.dtype).itemsize,
        cname=shards.COMPRESSOR,
        clevel=shards.COMPRESSION_LEVEL,
        shuffle="bitshuffle",
        blocksize=layout.chunk_bytes,
    )


def _open(path: Path) -> Cube:
    """A cube that may be unfinished; `CubeError` if there is none of ours."""
    if not path.is_dir():
        raise CubeError(f"{path} is not a cube: no such folder")
    group = _open_group(path)
    attributes = dict(group.attrs)
    if attributes.get("format") != FORMAT:
        raise CubeError(f"{path} is not a cube of s2pairs")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise CubeError(
            f"{path} has format version {attributes.get('format_version')}; "
            f"this program reads {FORMAT_VERSION}; build it again"
        )
    try:
        columns = {name: _column(group, name) for name in vars(PatchTable)["__annotations__"]}
        reflectance = group["reflectance"]
        return Cube(
            path=path,
            bands=tuple(attributes["bands"]),
            dates=reflectance.shape[1],
            table=PatchTable(**columns),
            parameters=json.loads(attributes["parameters"]),
            attributes=attributes,
            plan_digest=attributes["plan_sha256"],
            shard_patches=reflectance.shards[0],
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CubeError(f"{path} is damaged ({error}); remove it and build it again") from error


def _open_unchanged(path: Path) -> Cube:
    """A cube that may be unfinished; `CubeError` if anything but its shards was changed."""
    cube = _open(path)
    if not _static_parts_hold(cube):
        raise CubeError(f"{path} is damaged: {_CHANGED}; run s2pairs check {path}")
    return cube


def _open_group(path: Path) -> Any:
    import zarr

    try:
        return zarr.open_group(path, mode="r", use_consolidated=False)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CubeError(f"{path} is not a cube of s2pairs: {error}") from error


def _column(group: Any, name: str) -> npt.NDArray[Any]:
    values = _values(group, name)
    # Short names as fixed-width text, which numpy compares fast; product names would be wide.
    return np.array(values.tolist(), dtype=str) if name in ("tile", "split") else values


def _values(group: Any, name: str) -> npt.NDArray[Any]:
    return np.asarray(group[name][...])


def _late_column(path: Path, name: str) -> npt.NDArray[Any]:
    """A column that is read only when it is asked for; `open_cube` has found it in order."""
    try:
        return _column(_open_group(path), name)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CubeError(
            f"{path} was damaged after it was opened ({error}); run s2pairs check {path}"
        ) from error


def _described(array: Any) -> Array:
    """An array of the group as its metadata say, without values."""
    metadata = array.metadata.to_dict()
    return Array(
        name=array.basename,
        dtype=metadata["data_type"],
        shape=tuple(array.shape),
        dims=tuple(metadata["dimension_names"]),
        attributes=dict(array.attrs),
        values=None,
    )
