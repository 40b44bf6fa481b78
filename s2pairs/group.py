"""The Zarr group of a cube: its coordinates, array metadata and attributes, written with its plan.

The only file that imports zarr. A copy of it all lies in the cube, so that what is damaged can be
put back.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs import shards
from s2pairs.errors import CubeError
from s2pairs.masks import NO_DATA
from s2pairs.patches import PatchTable
from s2pairs.plan import (
    COORDINATES,
    FILES,
    FORMAT,
    FORMAT_VERSION,
    MEASURES,
    Array,
    Plan,
    content_digest,
    group_attributes,
    plan_arrays,
)
from s2pairs.shards import ShardLayout
from s2pairs.storage import LocalStore, Place, Store

COPY = "shard_sha256/plan.zip"
"""Where the copy is: in the folder of an array, which Zarr asks for chunks by name alone."""
_LONGEST_CHUNK = 65_536
_FILLED = (*COORDINATES, "band")
_ARRAYS = (*_FILLED, *FILES, "shard_sha256")


@dataclass(frozen=True)
class Group:
    """What is read of a group when it is opened."""

    attributes: Mapping[str, Any]
    table: PatchTable
    dates: int
    shard_patches: int


def write_group(folder: Path, plan: Plan) -> None:
    """Everything but the shards, and its copy, into a local folder."""
    import warnings

    import zarr

    attributes = {**group_attributes(plan), "plan_sha256": plan.digest}
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
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
    (folder / COPY).write_bytes(copy_of(LocalStore(folder)))


def read_group(store: Store) -> Group:
    """`CubeError` if there is no cube of ours, or one that cannot be understood."""
    group = open_ours(store)
    attributes = dict(group.attrs)
    try:
        columns = {name: _column(group, name) for name in vars(PatchTable)["__annotations__"]}
        reflectance = group["reflectance"]
        return Group(
            attributes=attributes,
            table=PatchTable(**columns),
            dates=reflectance.shape[1],
            shard_patches=reflectance.shards[0],
        )
    except Exception as error:
        raise CubeError(
            f"{store.place} is damaged ({error}); run s2pairs check {store.place} --repair SOURCE"
        ) from error


def open_ours(store: Store) -> Any:
    """The Zarr group of a cube of this format; `CubeError` for anything else."""
    if not store.exists():
        raise CubeError(f"{store.place} is not a cube: there is no such folder")
    group = _open(store.place)
    if group.attrs.get("format") != FORMAT:
        raise CubeError(f"{store.place} is not a cube of s2pairs")
    if group.attrs.get("format_version") != FORMAT_VERSION:
        raise CubeError(
            f"{store.place} has format version {group.attrs.get('format_version')}; "
            f"this program reads {FORMAT_VERSION}; build it again"
        )
    return group


def read_column(place: Place, name: str) -> npt.NDArray[Any]:
    """A coordinate that is read only when it is asked for; opening has found it in order."""
    try:
        return _column(_open(place), name)
    except Exception as error:
        raise CubeError(
            f"{place} was damaged after it was opened ({error}); run s2pairs check {place}"
        ) from error


def holds(place: Place) -> bool:
    """Whether coordinates, array metadata and attributes are still those of the plan.

    The group keeps the arrays' metadata twice (consolidated for xarray), so both are compared.
    """
    import zarr

    try:
        group, copy = (
            zarr.open_group(place, mode="r", use_consolidated=consolidated)
            for consolidated in (False, True)
        )
        attributes = dict(group.attrs)
        expected = attributes.pop("plan_sha256")
        found = [_described(group[name]) for name in sorted(_ARRAYS)]
        if found != [_described(copy[name]) for name in sorted(copy.array_keys())]:
            return False
        filled = [
            replace(array, values=_values(group, array.name)) if array.name in _FILLED else array
            for array in found
        ]
        return content_digest(attributes, filled) == expected
    except Exception:  # noqa: BLE001, as above
        return False


def copy_of(store: Store) -> bytes:
    """The copy of all that is written with the plan; the same bytes for the same files."""
    packed = io.BytesIO()
    keys = sorted(_keys(store))
    with zipfile.ZipFile(packed, "w") as archive:
        for key, data in zip(keys, store.read_many(keys), strict=True):
            if data is not None:  # zarr writes no chunk that is all fill value
                entry = zipfile.ZipInfo(key)  # of 1980
                entry.create_system = 3
                archive.writestr(entry, data)
    return packed.getvalue()


def _keys(store: Store) -> Iterator[str]:
    """The files that are written with the plan; whatever else lies there is none of ours."""
    group = _open(store.place)
    yield "zarr.json"
    for name in _ARRAYS:
        yield f"{name}/zarr.json"
    for name in _FILLED:
        chunks = (
            range(-(-size // part))
            for size, part in zip(group[name].shape, group[name].chunks, strict=True)
        )
        yield from ("/".join([name, "c", *map(str, place)]) for place in product(*chunks))


def put_back(store: Store) -> None:
    """Write what differs from the copy; `CubeError` if the copy is no cube's either."""
    lost = (
        f"the coordinates of {store.place} are damaged and so is their copy; remove it and build "
        "it again"
    )
    try:
        archive = zipfile.ZipFile(io.BytesIO(store.read(COPY)))
        packed = {key: archive.read(key) for key in archive.namelist() if ".." not in key}
    except (FileNotFoundError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError) as error:
        raise CubeError(lost) from error
    with TemporaryDirectory() as folder:
        for key, data in packed.items():
            path = Path(folder, *key.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if not holds(Path(folder)):
            raise CubeError(lost)
        files = {key: packed[key] for key in _keys(LocalStore(Path(folder))) if key in packed}
    # last the one by which a cube is known
    for key in sorted(files, key=lambda key: key == "zarr.json"):
        if store.read_many([key]) != [files[key]]:
            store.write(key, files[key])


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
    """Metadata alone; the chunks come from the ledger's writers, one file a shard and array."""
    from zarr.codecs import Crc32cCodec

    shard = {"reflectance": layout, "mask": layout.of_masks}.get(array.name)
    chunks: tuple[int, ...] = {
        "shard_sha256": (1, *array.shape[1:]),
        **dict.fromkeys(MEASURES, (layout.patches, layout.dates)),
    }.get(array.name, (1, 1))
    group.create_array(
        array.name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(*chunks, *shard.chunk) if shard else chunks,
        shards=(layout.patches, layout.dates, *shard.chunk) if shard else None,
        compressors=[*([_blosc(shard)] if shard else []), Crc32cCodec()],
        # what is missing reads as no-data
        fill_value={"float32": float("nan")}.get(
            array.dtype, NO_DATA if array.name == "mask" else 0
        ),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.dims,
        attributes=array.attributes,
    )


def _blosc(layout: ShardLayout) -> Any:
    from zarr.codecs import BloscCodec

    return BloscCodec(
        typesize=np.dtype(layout.dtype).itemsize,
        cname=shards.COMPRESSOR,
        clevel=shards.COMPRESSION_LEVEL,
        shuffle="bitshuffle",
        blocksize=layout.chunk_bytes,
    )


def _open(place: Place) -> Any:
    import zarr

    try:
        return zarr.open_group(place, mode="r", use_consolidated=False)
    except Exception as error:
        raise CubeError(f"{place} is not a cube of s2pairs: {error}") from error


def _column(group: Any, name: str) -> npt.NDArray[Any]:
    values = _values(group, name)
    # Short names as fixed-width text, which numpy compares fast; product names would be wide.
    return np.array(values.tolist(), dtype=str) if name in ("tile", "split") else values


def _values(group: Any, name: str) -> npt.NDArray[Any]:
    return np.asarray(group[name][...])


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
