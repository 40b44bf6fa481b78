"""The cube on disk: layout, shards, ledger; create, fill, open, check. docs/cube.md specifies it.

The only file that imports zarr. A cube is a Zarr 3 group whose coordinates are written when it
is created. Its pixels are filled shard by shard; the ledger says which shards stand and what
their bytes hash to. A shard enters the ledger only after its bytes are on the disk, so whatever
the ledger says is true after a kill or a power cut.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs import shards
from s2pairs.bands import OFFSET, QUANTIFICATION, SCALE, STORED_NO_DATA, wavelengths_nm
from s2pairs.errors import CubeError
from s2pairs.patches import PATCH_PX, SPLITS, PatchTable
from s2pairs.shards import Index, Pixels, ShardLayout

FORMAT = "s2pairs cube"
FORMAT_VERSION = 1
SHARD_PATCHES = 64
_DIGEST_BYTES = 32
_LONGEST_CHUNK = 65_536
_AGAIN = "run the same s2pairs build command again"

_COORDINATES = {
    "tile": "MGRS tile",
    "region": "number of the region on its tile's grid of regions, row after row",
    "row": "pixel row of the patch's upper left pixel on the tile's 10 m grid",
    "col": "pixel column of the patch's upper left pixel on the tile's 10 m grid",
    "epsg": "EPSG code of the tile's UTM zone",
    "x": "UTM easting of the patch's centre",
    "y": "UTM northing of the patch's centre",
    "split": "train, validation or test, by ground",
    "acquired": "sensing start of the datatake, UTC",
    "product": "name of the product",
}
_UNITS = {"x": "m", "y": "m", "acquired": "milliseconds since 1970-01-01"}


@dataclass(frozen=True)
class Plan:
    """All of a cube but its pixels."""

    bands: tuple[str, ...]
    level: str
    """`L1C` or `L2A`."""
    table: PatchTable
    acquired: npt.NDArray[np.datetime64]
    """(patch, date), milliseconds, UTC."""
    product: npt.NDArray[np.str_]
    """(patch, date)."""
    parameters: Mapping[str, Any]
    """What the user asked for, as JSON values: a cube is resumed only with the same."""
    attributes: Mapping[str, Any]
    """Further attributes of the group."""

    @property
    def layout(self) -> ShardLayout:
        return _layout(SHARD_PATCHES, self.product.shape[1], len(self.bands))

    @property
    def shards(self) -> int:
        return -(-len(self.table) // SHARD_PATCHES)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything here, in hexadecimal."""
        return _digest(_attributes(self), _arrays(self))


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
        return _column(_open_group(self.path), "acquired").astype("datetime64[ms]")

    @cached_property
    def product(self) -> npt.NDArray[np.str_]:
        """(patch, date)."""
        return _column(_open_group(self.path), "product")

    @cached_property
    def valid_fraction(self) -> npt.NDArray[np.float32]:
        """(patch, date): the part of the pixels that has data in every band, 0 to 1."""
        return np.concatenate([self._valid_fraction(shard) for shard in range(self.shards)])

    @property
    def shards(self) -> int:
        return -(-len(self.table) // self.shard_patches)

    @cached_property
    def digest(self) -> str:
        """One SHA-256 for the whole cube, from its plan and its ledger, in hexadecimal."""
        ledger = b"".join(_recorded(self.path, shard) for shard in range(self.shards))
        return hashlib.sha256(self.plan_digest.encode() + ledger).hexdigest()

    def read(self, patches: npt.ArrayLike) -> Pixels:
        """Stored values (n, date, band, 64, 64) of patches, all dates, in the order asked for."""
        places = np.asarray(patches, dtype=np.intp).ravel()
        every_date = np.tile(np.arange(self.dates), len(places))
        flat = self._read(np.repeat(places, self.dates), every_date)
        return flat.reshape(len(places), self.dates, *flat.shape[1:])

    def read_pairs(
        self, patches: npt.ArrayLike, date_a: npt.ArrayLike, date_b: npt.ArrayLike
    ) -> tuple[Pixels, Pixels]:
        """Stored values, twice (n, band, 64, 64): each patch at its date a and at its date b."""
        places = np.asarray(patches, dtype=np.intp).ravel()
        dates = np.concatenate([np.asarray(each, np.intp).ravel() for each in (date_a, date_b)])
        if len(dates) != 2 * len(places):
            raise CubeError(f"{len(places)} patches need as many dates a and b, not {len(dates)}")
        both = self._read(np.tile(places, 2), dates)
        return both[: len(places)], both[len(places) :]

    @property
    def layout(self) -> ShardLayout:
        return _layout(self.shard_patches, self.dates, len(self.bands))

    def _read(self, patches: npt.NDArray[np.intp], dates: npt.NDArray[np.intp]) -> Pixels:
        for name, values, size in (("patch", patches, len(self)), ("date", dates, self.dates)):
            if len(values) and (values.min() < 0 or values.max() >= size):
                raise CubeError(f"{self.path} has {size} {name} indices, from 0; asked for more")
        out = np.empty((len(patches), *self.layout.chunk), dtype=np.uint16)
        # In the order of the disk, each shard opened once.
        order = np.lexsort((dates, patches))
        of_shard = patches[order] // self.shard_patches
        for rows in np.split(order, np.flatnonzero(np.diff(of_shard)) + 1):
            if len(rows):
                self._read_shard(rows, patches, dates, out)
        return out

    def _read_shard(
        self,
        rows: npt.NDArray[np.intp],
        patches: npt.NDArray[np.intp],
        dates: npt.NDArray[np.intp],
        out: Pixels,
    ) -> None:
        shard = int(patches[rows[0]]) // self.shard_patches
        path = _shard_file(self.path, shard)
        inside = patches[rows] - shard * self.shard_patches
        places = zip(inside.tolist(), dates[rows].tolist(), strict=True)
        try:
            chunks = shards.read_chunks(path, self._index(shard), self.layout, places)
            for row, chunk in zip(rows, chunks, strict=True):
                out[row] = chunk
        except FileNotFoundError as error:
            raise CubeError(f"{path} is missing; {_AGAIN}") from error

    def _index(self, shard: int) -> Index:
        known = self._indices.get(shard)
        if known is None:
            known = self._indices[shard] = shards.read_index(
                _shard_file(self.path, shard), self.layout
            )
        return known

    @cached_property
    def _indices(self) -> dict[int, Index]:
        return {}

    def _valid_fraction(self, shard: int) -> npt.NDArray[np.float32]:
        path = _fraction_file(self.path, shard)
        body = shards.without_crc(path.read_bytes(), path)
        rows = min(self.shard_patches, len(self) - shard * self.shard_patches)
        return np.frombuffer(body, dtype="<f4").reshape(-1, self.dates)[:rows]


def open_cube(path: Path) -> Cube:
    """Open a complete cube; `CubeError` if it is none, is unfinished, or lacks a shard.

    A missing shard would read as no-data without a word, so every shard's object must be there.
    Whether its bytes are right is what `check` says.
    """
    cube = _open(path)
    built = sum(any(_recorded(path, shard)) for shard in range(cube.shards))
    if built < cube.shards:
        raise CubeError(
            f"{path} is unfinished: {built} of {cube.shards} shards are built; {_AGAIN}"
        )
    missing = [s for s in range(cube.shards) if not _objects_exist(path, s)]
    if missing:
        raise CubeError(
            f"{path} lacks shard {', '.join(map(str, missing[:5]))} "
            f"({len(missing)} of {cube.shards}, file {_shard_file(path, missing[0])}); {_AGAIN}"
        )
    return cube


def create(path: Path, plan: Plan) -> None:
    """Write an empty cube: everything but the pixels. It appears at `path` whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_group(new, plan)
    for folder, _, files in os.walk(new):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    new.rename(path)
    _fsync(path.parent)


def same_plan(path: Path, plan: Plan) -> None:
    """`CubeError` unless the cube at `path` was begun with this very plan; says what differs."""
    cube = _open(path)
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


def is_built(path: Path, shard: int) -> bool:
    """Whether a shard stands in the ledger and its bytes are what the ledger says."""
    return _damage(path, shard) is None


def write_shard(path: Path, shard: int, layout: ShardLayout, pixels: Pixels) -> None:
    """Write one shard (up to S patches, date, band, 64, 64), then enter it in the ledger.

    One caller a shard at a time. The bytes depend on the pixels alone.
    """
    valid = (pixels != STORED_NO_DATA).all(axis=2).mean(axis=(2, 3), dtype=np.float64)
    fraction = np.full((layout.patches, layout.dates), np.nan, dtype="<f4")
    fraction[: len(valid)] = valid
    data, fraction_data = shards.encode(pixels, layout), shards.with_crc(fraction.tobytes())
    _put(_shard_file(path, shard), data)
    _put(_fraction_file(path, shard), fraction_data)
    digest = hashlib.sha256(data + fraction_data).digest()
    _put(_ledger_file(path, shard), shards.with_crc(digest))


def check(path: Path) -> Iterator[tuple[Damage | None, int, int]]:
    """Read a whole cube: for each part its damage or None, how many are done, how many there are.

    The parts are the shards and, as one more, all that was written with the plan.
    """
    cube = _open(path)
    total = cube.shards + 1
    changed = f"coordinates or attributes were changed; remove {path} and build it again"
    yield None if _static_parts_hold(cube) else Damage(None, changed), 1, total
    for shard in range(cube.shards):
        what = _damage(path, shard)
        yield Damage(shard, f"{what}; {_AGAIN}") if what else None, shard + 2, total


def describe(cube: Cube) -> dict[str, str]:
    """What a user wants to know of a cube, as lines of name and text."""
    days = cube.acquired.astype("datetime64[D]")
    raw = len(cube) * cube.dates * len(cube.bands) * PATCH_PX * PATCH_PX * 2
    pixels = sum(_shard_file(cube.path, shard).stat().st_size for shard in range(cube.shards))
    on_disk = sum(file.stat().st_size for file in cube.path.rglob("*") if file.is_file())
    valid = cube.valid_fraction
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
        "products": f"{len(cube.attributes['products'])} used, "
        f"{len(cube.attributes['products_left_out'])} left out",
        "on disk": f"{on_disk / 1e6:.1f} MB in {cube.shards} shards; "
        f"pixels compressed {raw / pixels:.2f} times",
        "digest": cube.digest,
    }


def _damage(path: Path, shard: int) -> str | None:
    recorded = _recorded(path, shard)
    if not any(recorded):
        return "it is not built"
    digest = hashlib.sha256()
    for file in (_shard_file(path, shard), _fraction_file(path, shard)):
        try:
            digest.update(file.read_bytes())
        except FileNotFoundError:
            return f"the file {file} is missing"
    if digest.digest() != recorded:
        return f"the bytes of {_shard_file(path, shard)} are not those that were built"
    return None


def _static_parts_hold(cube: Cube) -> bool:
    """Whether coordinates, array metadata and attributes are still those of the plan.

    The group keeps the arrays' metadata twice (consolidated for xarray), so both are compared.
    """
    import zarr

    for use_consolidated in (True, False):
        try:
            group = zarr.open_group(cube.path, mode="r", use_consolidated=use_consolidated)
            attributes = dict(group.attrs)
            expected = attributes.pop("plan_sha256")
            found = [_read_array(group, name) for name in sorted(group.array_keys())]
        except Exception:  # noqa: BLE001, a decoder may raise anything on changed bytes
            return False
        if _digest(attributes, found) != expected:
            return False
    return True


@dataclass(frozen=True)
class _Array:
    """One array of the group as its metadata and, if it is written with the plan, its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    values: npt.NDArray[Any] | None


def _arrays(plan: Plan) -> list[_Array]:
    patches, dates = plan.product.shape
    columns: dict[str, npt.NDArray[Any]] = {
        **vars(plan.table),
        "acquired": plan.acquired.astype("datetime64[ms]").astype(np.int64),
        "product": plan.product,
        "band": np.array(plan.bands),
    }
    notes = {**_COORDINATES, "band": "name of the spectral band"}
    arrays = [_coordinate(name, columns[name], notes[name]) for name in columns]
    kind = {"L1C": "toa", "L2A": "surface"}[plan.level]
    return [
        *arrays,
        _Array(
            "reflectance",
            "uint16",
            (patches, dates, len(plan.bands), PATCH_PX, PATCH_PX),
            ("patch", "date", "band", "y", "x"),
            {
                "standard_name": f"{kind}_bidirectional_reflectance",
                "units": "1",
                "scale_factor": SCALE,
                "add_offset": OFFSET,
                "_FillValue": STORED_NO_DATA,
                "coordinates": " ".join([*_COORDINATES, "valid_fraction"]),
            },
            None,
        ),
        _Array(
            "valid_fraction",
            "float32",
            (patches, dates),
            ("patch", "date"),
            {"long_name": "part of the patch's pixels that has data in every band", "units": "1"},
            None,
        ),
        _Array(
            "shard_sha256",
            "uint8",
            (plan.shards, _DIGEST_BYTES),
            ("shard", "byte"),
            {"long_name": "SHA-256 of the shard's files; zero where the shard is not built"},
            None,
        ),
    ]


def _coordinate(name: str, values: npt.NDArray[Any], note: str) -> _Array:
    dims = {"band": ("band",), "acquired": ("patch", "date"), "product": ("patch", "date")}
    attributes = {"long_name": note}
    if name in _UNITS:
        attributes["units"] = _UNITS[name]
    kind = "string" if values.dtype.kind in "UT" else str(values.dtype)
    return _Array(name, kind, values.shape, dims.get(name, ("patch",)), attributes, values)


def _attributes(plan: Plan) -> dict[str, Any]:
    """The group's attributes, but for the digest that covers them."""
    return {
        "Conventions": "CF-1.11",
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "level": plan.level,
        "bands": list(plan.bands),
        "wavelengths_nm": wavelengths_nm(plan.bands),
        "quantification": QUANTIFICATION,
        "parameters": json.dumps(dict(plan.parameters), sort_keys=True),
        **plan.attributes,
    }


def _digest(attributes: Mapping[str, Any], arrays: Sequence[_Array]) -> str:
    """SHA-256 over attributes, array metadata and the values that are written with the plan."""
    digest = hashlib.sha256()
    for array in sorted(arrays, key=lambda array: array.name):
        described = [array.name, array.dtype, array.shape, array.dims, dict(array.attributes)]
        digest.update(json.dumps(described, sort_keys=True).encode())
        if array.values is not None:
            text = array.values.dtype.kind in "UT"
            plain = "\n".join(array.values.ravel().tolist()).encode() if text else b""
            digest.update(plain or array.values.tobytes())
    digest.update(json.dumps(dict(attributes), sort_keys=True).encode())
    return digest.hexdigest()


def _write_group(path: Path, plan: Plan) -> None:
    import warnings

    import zarr

    attributes = {**_attributes(plan), "plan_sha256": plan.digest}
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for array in _arrays(plan):
        if array.values is None:
            _create_empty(group, array, plan.layout)
        else:
            _create_filled(group, array, array.values)
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata are not in the specification of Zarr 3;
        # xarray warns when they are not in the group. Both ways of reading hold.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


def _create_filled(group: Any, array: _Array, values: npt.NDArray[Any]) -> None:
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


def _create_empty(group: Any, array: _Array, layout: ShardLayout) -> None:
    """Metadata alone; the chunks come from `write_shard`, one file a shard and array."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    chunks: tuple[int, ...] = {
        "reflectance": (1, 1, *layout.chunk),
        "valid_fraction": (layout.patches, layout.dates),
        "shard_sha256": (1, _DIGEST_BYTES),
    }[array.name]
    pixels = array.name == "reflectance"
    blosc = BloscCodec(
        typesize=2,
        cname=shards.COMPRESSOR,
        clevel=shards.COMPRESSION_LEVEL,
        shuffle="bitshuffle",
        blocksize=layout.chunk_bytes,
    )
    group.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=(layout.patches, layout.dates, *layout.chunk) if pixels else None,
        compressors=[blosc, Crc32cCodec()] if pixels else [Crc32cCodec()],
        fill_value=float("nan") if array.dtype == "float32" else 0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.dims,
        attributes=array.attributes,
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
            f"this program reads {FORMAT_VERSION}"
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


def _open_group(path: Path) -> Any:
    import zarr

    try:
        return zarr.open_group(path, mode="r", use_consolidated=False)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CubeError(f"{path} is not a cube of s2pairs: {error}") from error


def _column(group: Any, name: str) -> npt.NDArray[Any]:
    values = np.asarray(group[name][...])
    # Short names as fixed-width text, which numpy compares fast; product names would be wide.
    return np.array(values.tolist(), dtype=str) if name in ("tile", "split") else values


def _read_array(group: Any, name: str) -> _Array:
    array = group[name]
    metadata = array.metadata.to_dict()
    return _Array(
        name=name,
        dtype=metadata["data_type"],
        shape=tuple(array.shape),
        dims=tuple(metadata["dimension_names"]),
        attributes=dict(array.attrs),
        values=array[...] if name in {*_COORDINATES, "band"} else None,
    )


def _layout(patches: int, dates: int, bands: int) -> ShardLayout:
    return ShardLayout(patches, dates, (bands, PATCH_PX, PATCH_PX))


def _shard_file(path: Path, shard: int) -> Path:
    return path / "reflectance" / f"c.{shard}.0.0.0.0"


def _fraction_file(path: Path, shard: int) -> Path:
    return path / "valid_fraction" / f"c.{shard}.0"


def _ledger_file(path: Path, shard: int) -> Path:
    return path / "shard_sha256" / f"c.{shard}.0"


def _objects_exist(path: Path, shard: int) -> bool:
    return _shard_file(path, shard).is_file() and _fraction_file(path, shard).is_file()


def _recorded(path: Path, shard: int) -> bytes:
    """A row of the ledger; zeros where there is none or it is damaged, so that it is rebuilt."""
    file = _ledger_file(path, shard)
    try:
        return shards.without_crc(file.read_bytes(), file)
    except (FileNotFoundError, CubeError):
        return bytes(_DIGEST_BYTES)


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and onto the disk before returning."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
