"""The shards of a cube where it lies, and the ledger of those that stand.

A shard is one file in each of the arrays `FILES`. Its row of the ledger is the digest of the plan
that it belongs to and then the SHA-256 of each file, in this order. The row is written after they
are, so whatever the ledger says is true after a kill or a power cut.
docs/design/0003-shard-ledger.md says why it is so.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from s2pairs import quality, shards
from s2pairs.errors import CubeError
from s2pairs.masks import NO_DATA, Flags, is_clear
from s2pairs.plan import DIGEST_BYTES, FILES, MEASURES, ROW
from s2pairs.shards import Pixels, ShardLayout
from s2pairs.storage import Store

LEDGER = "shard_sha256"
_RANKS = {"reflectance": 5, "mask": 4, LEDGER: 3}
_NONE = bytes(len(FILES) * DIGEST_BYTES)


@final
@dataclass(frozen=True)
class Ledger:
    """The shards of one plan in a store.

    Rows of another plan do not count. They come about where no lock holds: two builds that began
    at once in object storage.
    """

    store: Store
    plan: str
    """Its digest, in hexadecimal."""

    def digests(self, shards_: Sequence[int]) -> list[bytes]:
        """What is recorded of the files of each shard, as `digest` has it.

        Zeros where no row is, or one that is damaged or of another plan: it is to be built.
        """
        keys = [shard_key(shard, LEDGER) for shard in shards_]
        found = self.store.read_many(keys)
        return [self._of_row(data, key) for key, data in zip(keys, found, strict=True)]

    def stands(self, shard: int) -> bool:
        """Whether a shard is recorded and its bytes are those that were."""
        return self.damage(shard) is None

    def damage(self, shard: int) -> str | None:
        """What is wrong with a shard; None if its bytes are those that were recorded."""
        (recorded,) = self.digests([shard])
        if not any(recorded):
            return "it is not built"
        for number, name in enumerate(FILES):
            key = shard_key(shard, name)
            try:
                data = self.store.read(key)
            except FileNotFoundError:
                return f"the file {self.store.path(key)} is missing"
            expected = recorded[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            if hashlib.sha256(data).digest() != expected:
                return f"the bytes of {self.store.path(key)} are not those that were built"
        return None

    def write(self, shard: int, files: Mapping[str, bytes]) -> None:
        """Write what `encoded` made, then record it.

        The bytes depend on pixels and masks alone, so two writers of one shard do no harm.
        """
        for name in FILES:
            self.store.write(shard_key(shard, name), files[name])
        self._record(shard, digest(files))

    def adopt(self, shard: int, other: "Ledger", other_shard: int) -> None:
        """Take over a shard of another cube as it is, then record it."""
        (recorded,) = other.digests([other_shard])
        for name in FILES:
            self.store.adopt(shard_key(shard, name), other.store, shard_key(other_shard, name))
        self._record(shard, recorded)

    def _record(self, shard: int, digests: bytes) -> None:
        row = bytes.fromhex(self.plan) + digests
        self.store.write(shard_key(shard, LEDGER), shards.with_crc(row))

    def _of_row(self, data: bytes | None, key: str) -> bytes:
        try:
            row = shards.without_crc(data or b"", key)
        except CubeError:
            return _NONE
        plan, digests = row[:DIGEST_BYTES], row[DIGEST_BYTES:]
        ours = len(row) == len(ROW) * DIGEST_BYTES and plan == bytes.fromhex(self.plan)
        return digests if ours else _NONE


def encoded(layout: ShardLayout, pixels: Pixels, masks: Flags) -> dict[str, bytes]:
    """The files of a shard, by array.

    `pixels` are stored values (up to S patches, date, band, 64, 64) and `masks` (up to S patches,
    date, 64, 64) the flags of masks.py.
    """
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


def digest(files: Mapping[str, bytes]) -> bytes:
    """What is recorded of the files of a shard."""
    return b"".join(hashlib.sha256(files[name]).digest() for name in FILES)


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
