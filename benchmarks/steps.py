"""What a step of training takes: time, memory, the part of the processor that it uses, its data.

    python -m benchmarks.steps --pairs 64

Each stage at the sizes of colored-MNIST and of Sentinel-2 patches, as it is trained and written
plainly (`test_training.py`), in a process of its own. With CROSSMI_DATA, also the digits of a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import repeated_cube
from benchmarks.reading import of_status
from benchmarks.test_training import (
    MNIST,
    PATCH,
    as_trained,
    exclusive_stage,
    pairs,
    plain_exclusive,
    plain_shared,
    shared_stage,
)
from mimodel.data.mnist import ColoredMnistPairs
from mimodel.data.sentinel2 import CubePairs

_SPECS = {"28x28": MNIST, "64x64": PATCH}
_HOW = ("plain", "as trained")
_STEPS = 5
_SIDE = 2048


def main() -> None:
    """Print a table, or measure one of its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--only", nargs=3, help="stage, size and how: one row, as JSON")
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(_measured(*asked.only, asked.pairs)))
        return
    peak = _peak()
    print(f"bfloat16 products of {_SIDE}: {peak / 1e9:.0f} GFLOP/s; {asked.pairs} pairs a step\n")
    print("| step | s | GFLOP | of that peak | peak memory, MB | its data |")
    print("|---|--:|--:|--:|--:|--:|")
    data = _data(asked.pairs)
    for stage in ("shared", "exclusive"):
        for size in _SPECS:
            for how in _HOW:
                words = [sys.executable, "-m", "benchmarks.steps", "--pairs", str(asked.pairs)]
                done = subprocess.run(
                    [*words, "--only", stage, size, how], check=True, capture_output=True
                )
                row = json.loads(done.stdout)
                part = row["flop"] / row["seconds"] / peak
                made = f"{data[size] / row['seconds']:.1%}" if size in data else ""
                print(
                    f"| {stage}, {size}, {how} | {row['seconds']:.2f} | {row['flop'] / 1e9:.1f} | "
                    f"{part:.0%} | {row['bytes'] / 1e6:.0f} | {made} |",
                    flush=True,
                )


def _measured(stage: str, size: str, how: str, count: int) -> dict[str, float]:
    """Of one kind of step: the median of five, its arithmetic, and memory beyond the libraries'."""
    before = of_status("VmRSS")
    spec, batch = _SPECS[size], pairs(_SPECS[size], count)
    with tempfile.TemporaryDirectory() as folder:
        step: Callable[[], Any]
        if stage == "shared":
            shared = shared_stage(spec)
            step = plain_shared(shared, batch) if how == "plain" else as_trained(shared, batch)
        else:
            own = exclusive_stage(spec, Path(folder))
            step = plain_exclusive(own, batch) if how == "plain" else as_trained(own, batch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter does not see two halves that run side by side
    with FlopCounterMode(display=False) as counter:
        step()
    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5")  # the highest from now on
    seconds = sorted(_seconds(step) for _ in range(_STEPS))[_STEPS // 2]
    return {
        "seconds": seconds,
        "flop": counter.get_total_flops(),
        "bytes": of_status("VmHWM") - before,
    }


def _data(count: int) -> dict[str, float]:
    """Seconds that the pairs of a step take to make, by size."""
    made = {}
    if folder := os.environ.get("CROSSMI_DATA"):
        digits = ColoredMnistPairs(Path(folder) / "mnist", same_image=False, seed=0)
        made["28x28"] = _median_batch(digits, count)
    with tempfile.TemporaryDirectory() as name:
        repeated_cube(Path(name) / "cube.zarr", 16)
        cube = CubePairs(Path(name) / "cube.zarr", bands=None, min_valid=0.9, memory_gb=0, seed=0)
        made["64x64"] = _median_batch(cube, count)
    return made


def _median_batch(source: Any, count: int) -> float:
    source.batch(0, count)
    return sorted(_seconds(lambda at=at: source.batch(at, count)) for at in range(1, 22))[10]


def _peak() -> float:
    """FLOP/s of a product of two matrices in bfloat16, the best of five."""
    a, b = (torch.randn(_SIDE, _SIDE).bfloat16() for _ in range(2))
    a @ b
    return 2 * _SIDE**3 / min(_seconds(lambda: a @ b) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
