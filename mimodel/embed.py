"""Every look of a cube through a model: `mimodel embed` writes the index that index.py opens.

A part of the index is some whole shards of the cube, so one task reads each of its shards once and
writes files that no other task writes. A part stands when its receipt does, which is written last;
the index stands when index.json does. What stands is kept by the same command.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mimodel.artifact import Artifact
from mimodel.data.sentinel2 import Stored, band_indices, mosaic, read_cube, reading_a_cube
from mimodel.errors import DataError, PatchIndexError
from mimodel.index import (
    LOOK_FIELDS,
    LOOKS,
    PATCH_FIELDS,
    PATCHES,
    SAMPLE,
    SPEC_FILE,
    FileSpec,
    IndexPlan,
    IndexSpec,
    Sample,
    Scaling,
    encoder_digests,
    read_spec,
)
from mimodel.nearest import Vectors
from s2pairs.bands import OFFSET, SCALE, STORED_NO_DATA, reflectance_from_stored
from s2pairs.cube import Cube
from s2pairs.patches import PATCH_PX

_PART_SHARDS = 8
_PLAN_FILE, _RECEIPTS = "plan.json", "parts"
_TRUE_COLOUR = ("B04", "B03", "B02")
_RANGE_PATCHES = 64
"""Patches that the range of a thumbnail's colours is taken from."""
_COLOURS = 256
"""Of one thumbnail. Its file is a third of what 24 bits a pixel take, and its colours are off by
1 % on average, which 64 x 64 pixels do not show (measured on EuroSAT)."""
_MIN_VALID = 0.95
"""Part of valid pixels that a look needs to count in the scaling."""

Progress = Callable[[int, int], None]


def embed_cube(
    artifact: Path, cube: Path, out: Path, *, scheduler: str | None, progress: Progress
) -> IndexSpec:
    """Write the index of `cube` by `artifact` to the folder `out`, or go on writing it.

    `scheduler` is the address of a Dask scheduler whose workers see the three folders by the same
    paths; None does the work here. `progress` is told the patches done and all patches.
    """
    job = Job(artifact.absolute(), cube.absolute(), out.absolute())
    model, opened = _opened(job)
    plan = _plan(model, opened)
    with _alone_in(out):
        if (out / SPEC_FILE).exists():
            found = read_spec(out)
            _same_plan(
                out,
                IndexPlan.model_validate(found.model_dump(include=set(IndexPlan.model_fields))),
                plan,
            )
            return found
        _begin(out, plan)
        missing = [part for part in range(plan.parts) if not _stands(out, part)]
        done = plan.patches - sum(len(plan.patches_of(part)) for part in missing)
        progress(done, plan.patches)
        work = _locally(job, missing) if scheduler is None else _on(scheduler, job, missing)
        for patches in work:
            done += patches
            progress(done, plan.patches)
        return _finish(out, plan, opened)


@dataclass(frozen=True)
class Job:
    """What a task needs to know; each worker opens the folders itself."""

    artifact: Path
    cube: Path
    out: Path


def embed_part(job: Job, part: int) -> int:
    """Write one part of the index; returns how many patches it has. One task of a cluster."""
    return sum(_embed_part(job, part))


def _plan(artifact: Artifact, cube: Cube) -> IndexPlan:
    if artifact.spec.patch_size != PATCH_PX:
        raise DataError(
            f"{artifact.id} reads patches of {artifact.spec.patch_size} pixels and a cube has "
            f"patches of {PATCH_PX}; take an artifact for these"
        )
    band_indices(cube, artifact.spec.bands)  # or an error that names what the cube lacks
    colours = _TRUE_COLOUR if set(_TRUE_COLOUR) <= set(cube.bands) else (cube.bands[0],)
    return IndexPlan(
        creator=f"crossmi {version('crossmi')}",
        artifact=artifact.id,
        encoders=encoder_digests(artifact),
        representations=artifact.spec.representations,
        cube_digest=cube.digest,
        level=str(cube.attributes.get("level", "")),
        notice=str(cube.attributes.get("notice", "")),
        patches=len(cube),
        dates=cube.dates,
        part_patches=_PART_SHARDS * cube.shard_patches,
        products=tuple(np.unique(cube.product).tolist()),
        thumbnail_bands=colours,
        thumbnail_range=_colour_range(cube, band_indices(cube, colours)),
    )


def _colour_range(cube: Cube, bands: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """The 1st and 99th percentile of each band over some places, alike for all thumbnails."""
    count = min(_RANGE_PATCHES, len(cube))
    places = np.sort(np.random.default_rng(0).choice(len(cube), count, replace=False))
    with reading_a_cube():
        reflectance = reflectance_from_stored(cube.read(places)[:, :, list(bands)])
    ranges = []
    for values in np.moveaxis(reflectance, 2, 0):
        seen = values[np.isfinite(values)]
        low, high = np.percentile(seen, (1, 99)).tolist() if seen.size else (0.0, 1.0)
        ranges.append((low, max(high, low + 1e-4)))
    return tuple(ranges)


def _begin(out: Path, plan: IndexPlan) -> None:
    """Make the folder, or find that it was begun with this very plan."""
    file = out / _PLAN_FILE
    if file.exists():
        _same_plan(out, IndexPlan.model_validate_json(file.read_bytes()), plan)
        return
    if any(path.name != _LOCK for path in out.iterdir()):
        raise PatchIndexError(f"{out} holds other files; name a folder that is new or empty")
    for name in (*plan.representations, "thumbnails", _RECEIPTS):
        (out / name).mkdir(exist_ok=True)
    _put(file, plan.model_dump_json(indent=1).encode())


def _same_plan(out: Path, begun: IndexPlan, asked: IndexPlan) -> None:
    if begun.encoders != asked.encoders:
        raise PatchIndexError(
            f"{out} was begun with the artifact {begun.artifact}, and this one is "
            f"{asked.artifact}; use the same one or another --out"
        )
    if begun.cube_digest != asked.cube_digest:
        raise PatchIndexError(
            f"{out} was begun from another cube, or the cube has changed; use another --out"
        )
    # The artifact's name and this program's version may change without the vectors changing.
    same = {"artifact": asked.artifact, "creator": asked.creator}
    if begun.model_copy(update=same) != asked:
        raise PatchIndexError(f"{out} was begun by {begun.creator} otherwise; use another --out")


def _locally(job: Job, parts: Sequence[int]) -> Iterator[int]:
    for part in parts:
        yield from _embed_part(job, part)


def _on(scheduler: str, job: Job, parts: Sequence[int]) -> Iterator[int]:
    """One task a part, wherever the scheduler puts it; a worker that dies costs its task again."""
    from distributed import Client, as_completed

    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no Dask scheduler answers at {scheduler}; expected an address such as "
            "tcp://10.0.0.1:8786"
        ) from error
    with client:
        futures = client.map(embed_part, [job] * len(parts), parts, pure=False)
        try:
            for _, patches in as_completed(futures, with_results=True):
                yield patches
        finally:
            client.cancel(futures)


def _embed_part(job: Job, part: int) -> Iterator[int]:
    """Write a part, shard by shard of the cube; yields how many patches each shard has."""
    artifact, cube = _opened(job)
    plan = IndexPlan.model_validate_json((job.out / _PLAN_FILE).read_bytes())
    if (encoder_digests(artifact), cube.digest) != (plan.encoders, plan.cube_digest):
        raise DataError(
            f"{job.artifact} or {job.cube} is another one than the index was begun with"
        )
    bands = band_indices(cube, artifact.spec.bands)
    colours = band_indices(cube, plan.thumbnail_bands)
    vectors: dict[str, list[Vectors]] = {name: [] for name in plan.representations}
    pictures: list[bytes] = []
    patches = plan.patches_of(part)
    for start in range(patches.start, patches.stop, cube.shard_patches):
        some = range(start, min(start + cube.shard_patches, patches.stop))
        with reading_a_cube():
            stored = cube.read(list(some)).reshape(-1, len(cube.bands), 64, 64)
        reflectance = reflectance_from_stored(stored[:, bands])
        for name, list_ in vectors.items():
            list_.append(artifact.embed(reflectance, representation=name))
        pictures += [_picture(look, plan) for look in stored[:, colours]]
        yield len(some)
    _write_part(job.out, plan, part, vectors, pictures)


def _write_part(
    out: Path, plan: IndexPlan, part: int, vectors: dict[str, list[Vectors]], pictures: list[bytes]
) -> None:
    offsets = np.cumsum([0, *map(len, pictures)], dtype=np.uint64)
    shape = len(plan.patches_of(part)), plan.dates
    files = {
        f"{name}/{part:05}.npy": _npy(np.concatenate(list_).reshape(*shape, -1))
        for name, list_ in vectors.items()
    }
    files[f"thumbnails/{part:05}.bin"] = b"".join(pictures)
    files[f"thumbnails/{part:05}.npy"] = _npy(offsets)
    for name, body in files.items():
        _put(out / name, body)
    receipt = {name: _file_spec(body).model_dump() for name, body in files.items()}
    _put(_receipt(out, part), json.dumps(receipt).encode())


def _stands(out: Path, part: int) -> bool:
    """Whether a part's receipt is there and its files are what the receipt says."""
    try:
        receipt = _read_receipt(out, part)
        return all(_file_spec((out / name).read_bytes()) == file for name, file in receipt.items())
    except (OSError, ValueError):
        return False


def _finish(out: Path, plan: IndexPlan, cube: Cube) -> IndexSpec:
    """Write what concerns all parts, then index.json, which makes it an index."""
    patches, looks = _tables(cube, plan)
    files: dict[str, FileSpec] = {}
    for name, array in ((PATCHES, patches), (LOOKS, looks)):
        files[name] = _put(out / name, _npy(array))
    sample = _sample(cube)
    if sample:
        files[SAMPLE] = _put(out / SAMPLE, _npy(sample[1]))
    for part in range(plan.parts):
        files |= _read_receipt(out, part)
    counted = (patches["split"] == "train")[:, None] & (looks["valid_fraction"] >= _MIN_VALID)
    spec = IndexSpec(
        **plan.model_dump(),
        scaling=_scalings(out, plan, counted if counted.any() else looks["valid_fraction"] > 0),
        sample=sample[0] if sample else None,
        files=files,
    )
    _put(out / SPEC_FILE, spec.model_dump_json(indent=1).encode())
    shutil.rmtree(out / _RECEIPTS)
    (out / _PLAN_FILE).unlink()
    return spec


def _tables(cube: Cube, plan: IndexPlan) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    from rasterio.warp import transform

    patches = np.zeros(len(cube), PATCH_FIELDS)
    for name in ("tile", "region", "row", "col", "epsg", "x", "y", "split"):
        patches[name] = getattr(cube, name)
    for epsg in np.unique(cube.epsg):
        zone = cube.epsg == epsg
        lon, lat = transform(f"EPSG:{epsg}", "EPSG:4326", cube.x[zone], cube.y[zone])
        patches["lon"][zone], patches["lat"][zone] = lon, lat
    looks = np.zeros((len(cube), cube.dates), LOOK_FIELDS)
    looks["acquired"] = cube.acquired
    looks["product"] = np.searchsorted(np.array(plan.products), np.array(cube.product.tolist()))
    looks["valid_fraction"] = cube.valid_fraction
    return patches, looks


def _scalings(out: Path, plan: IndexPlan, counted: npt.NDArray[np.bool_]) -> dict[str, Scaling]:
    """Mean and deviation of each dimension over the looks that count, in float64."""
    if not counted.any():
        raise DataError("no look of the cube has any data; there is nothing to search")
    scalings = {}
    for name, dimension in plan.representations.items():
        total, squares = np.zeros(dimension), np.zeros(dimension)
        for part in range(plan.parts):
            vectors = np.load(out / f"{name}/{part:05}.npy").astype(np.float64)
            some = vectors[counted[plan.patches_of(part).start : plan.patches_of(part).stop]]
            total, squares = total + some.sum(0), squares + (some**2).sum(0)
        mean = total / counted.sum()
        deviation = np.sqrt(np.maximum(squares / counted.sum() - mean**2, 0))
        # As in the probes: never so small beside the mean that rounding is what is left.
        floor = np.maximum(deviation, 1e-3 * np.abs(mean) + 1e-6)
        scalings[name] = Scaling(mean=tuple(mean.tolist()), deviation=tuple(floor.tolist()))
    return scalings


def _sample(cube: Cube) -> tuple[Sample, Stored] | None:
    with reading_a_cube():
        found = mosaic(cube)
    if found is None:
        return None
    described = Sample(
        bands=cube.bands,
        scale=SCALE,
        offset=OFFSET,
        nodata=STORED_NO_DATA,
        patch=found.places[0],
        date=found.date,
    )
    return described, found.stored


def _picture(stored: Stored, plan: IndexPlan) -> bytes:
    """A PNG (64 x 64) of one look's colours (band, 64, 64), grey where there is no data."""
    from PIL import Image

    reflectance = reflectance_from_stored(stored)
    low, high = np.array(plan.thumbnail_range, np.float32).T[:, :, None, None]
    shade = np.clip((reflectance - low) / (high - low), 0, 1) * 255
    shade[np.broadcast_to(np.isnan(shade).any(axis=0), shade.shape)] = 127.5
    pixels = np.rint(np.moveaxis(shade, 0, -1)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    file = BytesIO()
    image.quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG")
    return file.getvalue()


@lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Artifact, Cube]:
    return Artifact.load(job.artifact), read_cube(job.cube)


_LOCK = ".lock"


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder while it is written; the lock is the system's and ends with its holder."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PatchIndexError(f"another mimodel embed is writing {out}; wait for it") from None
        yield
    (out / _LOCK).unlink(missing_ok=True)


def _receipt(out: Path, part: int) -> Path:
    return out / _RECEIPTS / f"{part:05}.json"


def _read_receipt(out: Path, part: int) -> dict[str, FileSpec]:
    listed: dict[str, Any] = json.loads(_receipt(out, part).read_bytes())
    return {name: FileSpec.model_validate(file) for name, file in listed.items()}


def _npy(array: npt.NDArray[Any]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _file_spec(body: bytes) -> FileSpec:
    return FileSpec(bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def _put(path: Path, body: bytes) -> FileSpec:
    """Write a file whole or not at all, and onto the disk before returning."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PatchIndexError(
            f"cannot write {path}: {error.strerror}; what stands stays, so make room and run the "
            "same command again"
        ) from error
    return _file_spec(body)
