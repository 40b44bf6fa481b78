"""The bytes of a shard: many small compressed chunks in one object, as Zarr 3 lays them out.

Written here and not by zarr-python, because that hands each 32 KiB chunk through threads several
times (docs/design/0003-shard-ledger.md has the measurement) and because the bytes of a shard
must depend on its pixels alone. What is written is plain `sharding_indexed` with the codecs
`bytes`, `blosc`, `crc32c`; zarr and xarray read it, and the tests compare with them.

A shard of S patches holds S x dates chunks, each all bands of one patch at one date. The chunks
stand in order; behind them the index, for each chunk its offset and size (uint64, little endian)
and a CRC-32C of the index. Places beyond the last patch are marked empty.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from s2pairs.errors import CubeError
from s2pairs.storage import Store

COMPRESSOR: Literal["lz4"] = "lz4"
COMPRESSION_LEVEL = 5
_EMPTY = np.iinfo(np.uint64).max
_CRC = 4

Index = npt.NDArray[np.uint64]
Pixels = npt.NDArray[np.uint16]
Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Sizes of a shard: its patches and dates, the shape of a chunk and the type of its values."""

    patches: int
    dates: int
    chunk: tuple[int, ...]
    """(band, y, x) of pixels, (y, x) of masks."""
    dtype: Literal["<u2", "|u1"] = "<u2"

    @property
    def chunk_bytes(self) -> int:
        return int(np.prod(self.chunk)) * np.dtype(self.dtype).itemsize

    @property
    def of_masks(self) -> "ShardLayout":
        """The layout of the shard of masks beside a shard of pixels."""
        return replace(self, chunk=self.chunk[1:], dtype="|u1")

    @property
    def index_bytes(self) -> int:
        return self.patches * self.dates * 16 + _CRC


def encode(values: Values, layout: ShardLayout) -> bytes:
    """The object of a shard from values (up to S patches, date, *chunk)."""
    # One block a chunk: with several, blosc's threads would order them by chance.
    compressor = numcodecs.Blosc(
        cname=COMPRESSOR,
        clevel=COMPRESSION_LEVEL,
        shuffle=numcodecs.Blosc.BITSHUFFLE,
        blocksize=layout.chunk_bytes,
    )
    index = np.full((layout.patches, layout.dates, 2), _EMPTY, dtype="<u8")
    parts: list[bytes] = []
    offset = 0
    for patch, dates in enumerate(values):
        for date, chunk in enumerate(dates):
            part = with_crc(compressor.encode(np.ascontiguousarray(chunk, layout.dtype)))
            index[patch, date] = offset, len(part)
            offset += len(part)
            parts.append(part)
    return b"".join([*parts, with_crc(index.tobytes())])


def read_index(store: Store, key: str, layout: ShardLayout) -> Index:
    """Offset and size (patch, date, 2) of each chunk of a shard; `CubeError` if it is damaged."""
    data = store.read_end(key, layout.index_bytes)
    if len(data) < layout.index_bytes:
        raise CubeError(f"{store.path(key)} is cut short; s2pairs check says how to mend it")
    raw = without_crc(data, store.path(key))
    return np.frombuffer(raw, dtype="<u8").reshape(layout.patches, layout.dates, 2)


def read_chunks(
    store: Store, key: str, index: Index, layout: ShardLayout, places: Iterable[tuple[int, int]]
) -> Iterator[Values]:
    """Decode the chunks of a shard at these (patch, date)."""
    codec = numcodecs.Blosc()
    parts = []
    for patch, date in places:
        offset, size = (int(each) for each in index[patch, date])
        if offset == _EMPTY:
            raise CubeError(
                f"{store.path(key)} has no patch {patch}; s2pairs check says how to mend it"
            )
        parts.append((offset, size))
    for encoded in store.read_parts(key, parts):
        body = without_crc(encoded, store.path(key))
        yield np.frombuffer(codec.decode(body), layout.dtype).reshape(layout.chunk)


def with_crc(data: bytes) -> bytes:
    """`data` with its CRC-32C behind it, as the codec `crc32c` writes it."""
    return data + int(google_crc32c.value(data)).to_bytes(_CRC, "little")


def without_crc(data: bytes, path: str) -> bytes:
    """The inverse of `with_crc`; `CubeError` that names `path` where they do not agree."""
    body, crc = data[:-_CRC], data[-_CRC:]
    # an empty file would pass: the CRC of nothing is 0
    if len(crc) < _CRC or google_crc32c.value(body) != int.from_bytes(crc, "little"):
        raise CubeError(f"{path} is damaged; s2pairs check says how to mend it")
    return body
