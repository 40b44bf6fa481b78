"""The shards of a cube on the disk, and the ledger of those that stand.

A shard is four files: its pixels, their masks, and the fractions of valid and of clear pixels. Its
row of the ledger is the SHA-256 of each, in this order. The row is written after they are on the
disk, so whatever the ledger says is true after a kill or a power cut.
docs/design/0003-shard-ledger.md says why it is so.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs import shards
from s2pairs.errors import CubeError
from s2pairs.masks import NO_DATA, Flags, is_clear
from s2pairs.plan import DIGEST_BYTES, FILES
from s2pairs.shards import Pixels, ShardLayout


def is_built(path: Path, shard: int) -> bool:
    """Whether a shard stands in the ledger and its bytes are what the ledger says."""
    return damage(path, shard) is None


def read_fraction(
    path: Path, name: str, shard: int, layout: ShardLayout
) -> npt.NDArray[np.float32]:
    """Fractions (patch, date) of a shard, `name` is the array; NaN beyond the last patch."""
    file = shard_file(path, shard, name)
    try:
        body = shards.without_crc(file.read_bytes(), file)
    except FileNotFoundError as error:
        raise CubeError(f"{file} is missing; s2pairs check says how to mend it") from error
    if len(body) != layout.patches * layout.dates * 4:
        raise CubeError(f"{file} is cut short; s2pairs check says how to mend it")
    return np.frombuffer(body, dtype="<f4").reshape(layout.patches, layout.dates)


def write_shard(path: Path, shard: int, layout: ShardLayout, pixels: Pixels, masks: Flags) -> None:
    """Write one shard, then enter it in the ledger.

    `pixels` are stored values (up to S patches, date, band, 64, 64) and `masks` (up to S patches,
    date, 64, 64) the flags of masks.py. One caller a shard at a time. The bytes depend on both
    arrays alone.
    """
    data = {
        "reflectance": shards.encode(pixels, layout),
        "mask": shards.encode(masks, layout.of_masks),
        "valid_fraction": _encoded_fraction((masks & NO_DATA) == 0, layout),
        "clear_fraction": _encoded_fraction(is_clear(masks), layout),
    }
    for name, content in data.items():
        _put(shard_file(path, shard, name), content)
    row = b"".join(hashlib.sha256(data[name]).digest() for name in FILES)
    _put(shard_file(path, shard, "shard_sha256"), shards.with_crc(row))


def _encoded_fraction(counted: npt.NDArray[np.bool_], layout: ShardLayout) -> bytes:
    fraction = np.full((layout.patches, layout.dates), np.nan, dtype="<f4")
    fraction[: len(counted)] = counted.mean(axis=(2, 3), dtype=np.float64)
    return shards.with_crc(fraction.tobytes())


def damage(path: Path, shard: int) -> str | None:
    """What is wrong with a shard; None if its bytes are what the ledger says."""
    recorded = recorded_digest(path, shard)
    if not any(recorded):
        return "it is not built"
    for number, file in enumerate(shard_files(path, shard)):
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return f"the file {file} is missing"
        expected = recorded[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        if hashlib.sha256(data).digest() != expected:
            return f"the bytes of {file} are not those that were built"
    return None


def shard_file(path: Path, shard: int, name: str = "reflectance") -> Path:
    """The file of a shard in the array `name`: the one chunk or shard of it, in Zarr's words."""
    rank = {"reflectance": 5, "mask": 4, "shard_sha256": 3}.get(name, 2)
    return path / name / ".".join(["c", str(shard), *(rank - 1) * ["0"]])


def shard_files(path: Path, shard: int) -> tuple[Path, ...]:
    """All files of a shard, in the order of their digests in the ledger."""
    return tuple(shard_file(path, shard, name) for name in FILES)


def objects_exist(path: Path, shard: int) -> bool:
    """Whether all files of a shard are there, whatever they hold."""
    return all(file.is_file() for file in shard_files(path, shard))


def recorded_digest(path: Path, shard: int) -> bytes:
    """A row of the ledger; zeros where there is none or it is damaged, so that it is rebuilt."""
    file = shard_file(path, shard, "shard_sha256")
    try:
        return shards.without_crc(file.read_bytes(), file)
    except (FileNotFoundError, CubeError):
        return bytes(len(FILES) * DIGEST_BYTES)


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and onto the disk before returning."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CubeError(
            f"cannot write {path}: {error.strerror}; what is built stays, "
            "so make room and run the same s2pairs build command again"
        ) from error


def fsync(path: Path) -> None:
    """Have the operating system put a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
