"""Ten minutes of pairs for training from a cube larger than the memory it may use.

    python -m benchmarks.reading --minutes 10 --megabytes 256

A cube with four times as many bytes of pixels is made, and pairs are read as training reads them,
batch by batch with prefetching. From then on the process may take so many megabytes besides what
it had (RLIMIT_DATA of the kernel: more is refused). What the operating system remembers of files
is its own and is not counted. Ends with exit code 1 where resident memory grew.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.products import repeated_cube
from mimodel.data.pairs import prefetched
from mimodel.data.sentinel2 import CubePairs

_BATCH = 64
_SHARD_BYTES = 64 * 3 * 4 * 64 * 64 * 2
_TIMES = 4
_GROWTH = 1.05
_SAMPLE_SECONDS = 1.0


def main() -> int:
    """Read, print what was seen, say whether memory stayed flat."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--megabytes", type=int, default=256)
    asked = options.parse_args()
    allowed = asked.megabytes << 20
    with tempfile.TemporaryDirectory() as name:
        shards = -(-_TIMES * allowed // _SHARD_BYTES)
        path = Path(name) / "cube.zarr"
        repeated_cube(path, shards)
        print(f"a cube of {shards * _SHARD_BYTES >> 20} MB of pixels, {shards} shards", flush=True)
        pairs = CubePairs(path, bands=None, min_valid=0.9, memory_gb=0, seed=0)
        limit = _limited(allowed)
        print(f"may hold {limit >> 20} MB of data, {asked.megabytes} MB more than now", flush=True)
        rates, memory = _read(pairs, asked.minutes * 60)
    return _report(rates, memory)


def _limited(more: int) -> int:
    """Let the kernel refuse this process more than `more` bytes besides those it has."""
    limit = of_status("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def of_status(name: str) -> int:
    """Bytes by /proc/self/status: VmRSS is resident, VmData what RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"the kernel does not tell {name}")


def _read(pairs: CubePairs, seconds: float) -> tuple[list[float], list[int]]:
    """Pairs a second and resident bytes, about once a second."""
    begun = said = time.monotonic()
    rates, memory, count = [], [], 0
    for batch in prefetched(pairs, range(10**9), _BATCH):
        count += len(batch.x)
        now = time.monotonic()
        if now - said >= _SAMPLE_SECONDS:
            rates.append(count / (now - said))
            memory.append(of_status("VmRSS"))
            said, count = now, 0
        if now - begun >= seconds:
            break
    return rates, memory


def _report(rates: list[float], memory: list[int]) -> int:
    tenth = max(1, len(memory) // 10)
    half = len(memory) // 2
    # the first second fills what is remembered of shards
    places = {"start": slice(0, tenth), "middle": slice(half, half + tenth)}
    means = {name: float(np.mean(memory[part])) for name, part in places.items()}
    means["end"] = float(np.mean(memory[-tenth:]))
    print(f"{np.median(rates):.0f} pairs/s (median of {len(rates)} seconds)")
    told = ", ".join(f"{mean / 2**20:.0f} MB at the {name}" for name, mean in means.items())
    print(f"resident memory: {told}; most {max(memory) / 2**20:.0f} MB")
    grew = means["end"] > _GROWTH * means["middle"]
    print("found: memory that grew" if grew else "no growth")
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
