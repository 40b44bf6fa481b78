"""The shards of a cube on the disk, and the ledger of those that stand.

A shard is two files, its pixels and its valid fractions; its row of the ledger is the SHA-256 of
both. The row is written after they are on the disk, so whatever the ledger says is true after a
kill or a power cut. docs/design/0003-shard-ledger.md says why it is so.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs import shards
from s2pairs.bands import STORED_NO_DATA
from s2pairs.errors import CubeError
from s2pairs.plan import DIGEST_BYTES
from s2pairs.shards import Pixels, ShardLayout


def is_built(path: Path, shard: int) -> bool:
    """Whether a shard stands in the ledger and its bytes are what the ledger says."""
    return damage(path, shard) is None


def read_fraction(path: Path, shard: int, layout: ShardLayout) -> npt.NDArray[np.float32]:
    """Valid fractions (patch, date) of a shard; NaN beyond the last patch."""
    file = fraction_file(path, shard)
    try:
        body = shards.without_crc(file.read_bytes(), file)
    except FileNotFoundError as error:
        raise CubeError(f"{file} is missing; s2pairs check says how to mend it") from error
    if len(body) != layout.patches * layout.dates * 4:
        raise CubeError(f"{file} is cut short; s2pairs check says how to mend it")
    return np.frombuffer(body, dtype="<f4").reshape(layout.patches, layout.dates)


def write_shard(path: Path, shard: int, layout: ShardLayout, pixels: Pixels) -> None:
    """Write one shard (up to S patches, date, band, 64, 64), then enter it in the ledger.

    One caller a shard at a time. The bytes depend on the pixels alone.
    """
    valid = (pixels != STORED_NO_DATA).all(axis=2).mean(axis=(2, 3), dtype=np.float64)
    fraction = np.full((layout.patches, layout.dates), np.nan, dtype="<f4")
    fraction[: len(valid)] = valid
    data, fraction_data = shards.encode(pixels, layout), shards.with_crc(fraction.tobytes())
    _put(shard_file(path, shard), data)
    _put(fraction_file(path, shard), fraction_data)
    digest = hashlib.sha256(data + fraction_data).digest()
    _put(_ledger_file(path, shard), shards.with_crc(digest))


def damage(path: Path, shard: int) -> str | None:
    """What is wrong with a shard; None if its bytes are what the ledger says."""
    recorded = recorded_digest(path, shard)
    if not any(recorded):
        return "it is not built"
    digest = hashlib.sha256()
    data = b""
    for file in (shard_file(path, shard), fraction_file(path, shard)):
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return f"the file {file} is missing"
        digest.update(data)
    if digest.digest() == recorded:
        return None
    # one digest covers two files; the small one has a CRC over all of it, which tells them apart
    changed = shard_file(path, shard) if _crc_holds(data, file) else file
    return f"the bytes of {changed} are not those that were built"


def _crc_holds(data: bytes, file: Path) -> bool:
    try:
        shards.without_crc(data, file)
    except CubeError:
        return False
    return True


def shard_file(path: Path, shard: int) -> Path:
    return path / "reflectance" / f"c.{shard}.0.0.0.0"


def fraction_file(path: Path, shard: int) -> Path:
    return path / "valid_fraction" / f"c.{shard}.0"


def _ledger_file(path: Path, shard: int) -> Path:
    return path / "shard_sha256" / f"c.{shard}.0"


def objects_exist(path: Path, shard: int) -> bool:
    """Whether both files of a shard are there, whatever they hold."""
    return shard_file(path, shard).is_file() and fraction_file(path, shard).is_file()


def recorded_digest(path: Path, shard: int) -> bytes:
    """A row of the ledger; zeros where there is none or it is damaged, so that it is rebuilt."""
    file = _ledger_file(path, shard)
    try:
        return shards.without_crc(file.read_bytes(), file)
    except (FileNotFoundError, CubeError):
        return bytes(DIGEST_BYTES)


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
