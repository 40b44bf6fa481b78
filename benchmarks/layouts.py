"""Codecs, chunks and shards for the pixels of a cube, measured: what docs/design/0008 chooses from.

    python -m benchmarks.layouts cube.zarr [other.zarr ...]

Processor time of one thread, the least of five rounds, over at most 256 looks of each cube.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numcodecs
import numpy as np
import numpy.typing as npt

from s2pairs.cube import Cube, open_cube
from s2pairs.shards import Pixels

_LOOKS = 256
_ROUNDS = 5
_SHUFFLES = {
    "bit shuffle": numcodecs.Blosc.BITSHUFFLE,
    "byte shuffle": numcodecs.Blosc.SHUFFLE,
    "no shuffle": numcodecs.Blosc.NOSHUFFLE,
}
_CODECS = [
    ("lz4", 5, "bit shuffle"),
    ("lz4", 5, "byte shuffle"),
    ("lz4", 5, "no shuffle"),
    ("lz4hc", 9, "bit shuffle"),
    ("zstd", 1, "bit shuffle"),
    ("zstd", 5, "bit shuffle"),
    ("zstd", 9, "bit shuffle"),
    ("zstd", 5, "byte shuffle"),
]
_CHOSEN = _CODECS[0]


@dataclass(frozen=True)
class _Measured:
    """How a way to store pixels did."""

    ratio: float
    writing: float
    """MB of pixels a second of processor time."""
    reading: float


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cubes", nargs="+")
    for path in parser.parse_args().cubes:
        pixels = _pixels(open_cube(path))
        print(f"\n{path}: {pixels.shape[0]} places, {pixels.shape[1]} dates\n")
        print("\n".join(_codecs(pixels)))
        print()
        print("\n".join(_chunks(pixels)))


def _pixels(cube: Cube) -> Pixels:
    """Stored values (place, date, band, y, x) of places drawn at random, all with data."""
    full = np.flatnonzero((cube.valid_fraction > 0.99).all(1))
    places = np.random.default_rng(0).permutation(full)[: max(1, _LOOKS // cube.dates)]
    return np.asarray(cube.read(np.sort(places)))


def _codecs(pixels: Pixels) -> Iterator[str]:
    """One look a chunk, by codec."""
    yield "| codec | times smaller | writes, MB/s | reads, MB/s |"
    yield "|---|--:|--:|--:|"
    looks = pixels.reshape(-1, *pixels.shape[2:])
    for name, level, shuffle in _CODECS:
        found = _measured(list(looks), name, level, shuffle)
        yield (
            f"| {name} {level}, {shuffle} | {found.ratio:.2f} | {found.writing:.0f} | "
            f"{found.reading:.0f} |"
        )


def _chunks(pixels: Pixels) -> Iterator[str]:
    """The chosen codec, by chunk: what a pair of dates at one place takes."""
    bands = pixels.shape[2]
    yield "| chunk | KiB | times smaller | chunks a pair | KiB read a pair | µs a pair |"
    yield "|---|--:|--:|--:|--:|--:|"
    shapes: dict[str, tuple[list[Pixels], int]] = {
        "one band of a look": (list(pixels.reshape(-1, *pixels.shape[3:])), 2 * bands),
        "a look": (list(pixels.reshape(-1, *pixels.shape[2:])), 2),
        "all dates of a place": (list(pixels), 1),
    }
    for name, (chunks, a_pair) in shapes.items():
        found = _measured(chunks, *_CHOSEN)
        size = chunks[0].nbytes
        yield (
            f"| {name} | {size / 1024:.0f} | {found.ratio:.2f} | {a_pair} | "
            f"{a_pair * size / found.ratio / 1024:.0f} | {a_pair * size / found.reading:.0f} |"
        )


def _measured(chunks: list[Pixels], name: str, level: int, shuffle: str) -> _Measured:
    nbytes = sum(chunk.nbytes for chunk in chunks)
    codec = numcodecs.Blosc(name, level, _SHUFFLES[shuffle], blocksize=chunks[0].nbytes)
    encoded = [codec.encode(np.ascontiguousarray(chunk)) for chunk in chunks]
    out: npt.NDArray[np.uint8] = np.empty(chunks[0].nbytes, np.uint8)
    return _Measured(
        ratio=nbytes / sum(map(len, encoded)),
        writing=nbytes / 1e6 / _least(lambda: [codec.encode(chunk) for chunk in chunks]),
        reading=nbytes / 1e6 / _least(lambda: [codec.decode(each, out) for each in encoded]),
    )


def _least(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    seconds = []
    for _ in range(_ROUNDS):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


if __name__ == "__main__":
    numcodecs.blosc.set_nthreads(1)
    main()
