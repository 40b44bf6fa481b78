"""The shards of a cube where it lies, and the ledger of those that stand.

A shard is one file in each of the arrays `FILES`. Its row of the ledger is the SHA-256 of each, in
this order. The row is written after they are, so whatever the ledger says is true after a kill or
a power cut. docs/design/0003-shard-ledger.md says why it is so.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from s2pairs import quality, shards
from s2pairs.errors import CubeError
from s2pairs.masks import NO_DATA, Flags, is_clear
from s2pairs.plan import DIGEST_BYTES, FILES, MEASURES
from s2pairs.shards import Pixels, ShardLayout
from s2pairs.storage import Place, Store, store_at

LEDGER = "shard_sha256"
_RANKS = {"reflectance": 5, "mask": 4, LEDGER: 3}
_ROW_BYTES = len(FILES) * DIGEST_BYTES


def write_shard(
    place: Place | Store, shard: int, layout: ShardLayout, pixels: Pixels, masks: Flags
) -> None:
    """Write one shard, then enter it in the ledger.

    `pixels` are stored values (up to S patches, date, band, 64, 64) and `masks` (up to S patches,
    date, 64, 64) the flags of masks.py. The bytes depend on both arrays alone, so two writers of
    one shard do no harm.
    """
    write_encoded(store_at(place), shard, encoded(layout, pixels, masks))


def encoded(layout: ShardLayout, pixels: Pixels, masks: Flags) -> dict[str, bytes]:
    """The files of a shard, by array."""
    clear = is_clear(masks)
    measured = quality.measure(pixels, clear)
    values = {
        "valid_fraction": ((masks & NO_DATA) == 0).mean(axis=(2, 3), dtype=np.float64),
        "clear_fraction": clear.mean(axis=(2, 3), dtype=np.float64),
        **vars(measured),
    }
    return {
        "reflectance": shards.encode(pixels, layout),
        "mask": shards.encode(masks, layout.of_masks),
        **{name: _encoded_measure(values[name], layout) for name in MEASURES},
    }


def _encoded_measure(values: npt.NDArray[np.floating], layout: ShardLayout) -> bytes:
    padded = np.full((layout.patches, layout.dates), np.nan, dtype="<f4")
    padded[: len(values)] = values
    return shards.with_crc(padded.tobytes())


def write_encoded(store: Store, shard: int, files: Mapping[str, bytes]) -> None:
    """Write what `encoded` made, then enter it in the ledger."""
    for name in FILES:
        store.write(shard_key(shard, name), files[name])
    store.write(shard_key(shard, LEDGER), shards.with_crc(digest(files)))


def digest(files: Mapping[str, bytes]) -> bytes:
    """What the ledger holds of a shard."""
    return b"".join(hashlib.sha256(files[name]).digest() for name in FILES)


def adopt_shard(store: Store, shard: int, other: Store, other_shard: int) -> None:
    """Take over a shard of another cube as it is, then enter it in the ledger."""
    for name in (*FILES, LEDGER):
        store.adopt(shard_key(shard, name), other, shard_key(other_shard, name))


def is_built(place: Place | Store, shard: int) -> bool:
    """Whether a shard stands in the ledger and its bytes are what the ledger says."""
    return damage(place, shard) is None


def damage(place: Place | Store, shard: int) -> str | None:
    """What is wrong with a shard; None if its bytes are what the ledger says."""
    store = store_at(place)
    (recorded,) = recorded_digests(store, [shard])
    if not any(recorded):
        return "it is not built"
    for number, name in enumerate(FILES):
        key = shard_key(shard, name)
        try:
            data = store.read(key)
        except FileNotFoundError:
            return f"the file {store.path(key)} is missing"
        expected = recorded[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
        if hashlib.sha256(data).digest() != expected:
            return f"the bytes of {store.path(key)} are not those that were built"
    return None


def shard_key(shard: int, name: str = "reflectance") -> str:
    """The file of a shard in the array `name`: the one chunk or shard of it, in Zarr's words."""
    zeros = [*(_RANKS.get(name, 2) - 1) * ["0"]]
    return f"{name}/{'.'.join(['c', str(shard), *zeros])}"


def read_measure(
    store: Store, name: str, shards_: Sequence[int], layout: ShardLayout
) -> npt.NDArray[np.float32]:
    """Values (shard, patch, date) of one of `MEASURES`; NaN beyond the last patch."""
    keys = [shard_key(shard, name) for shard in shards_]
    parts = []
    for key, data in zip(keys, store.read_many(keys), strict=True):
        file = store.path(key)
        if data is None:
            raise CubeError(f"{file} is missing; s2pairs check says how to mend it")
        body = shards.without_crc(data, file)
        if len(body) != layout.patches * layout.dates * 4:
            raise CubeError(f"{file} is cut short; s2pairs check says how to mend it")
        parts.append(np.frombuffer(body, dtype="<f4"))
    return np.concatenate(parts).reshape(len(keys), layout.patches, layout.dates)


def recorded_digests(store: Store, shards_: Sequence[int]) -> list[bytes]:
    """Rows of the ledger; zeros where there is none or it is damaged, so that it is rebuilt."""
    keys = [shard_key(shard, LEDGER) for shard in shards_]
    return [_row(data, key) for key, data in zip(keys, store.read_many(keys), strict=True)]


def _row(data: bytes | None, key: str) -> bytes:
    try:
        body = shards.without_crc(data or b"", key)
    except CubeError:
        body = b""
    return body if len(body) == _ROW_BYTES else bytes(_ROW_BYTES)
