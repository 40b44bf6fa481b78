"""Ten minutes of mixed good and hostile requests: what was answered, how fast, in how much memory.

    python -m benchmarks.soak --minutes 10 --clients 4

Ends with exit code 1 if there was any 5xx but 503, a good request that was refused, or memory that
grew.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from mimodel.artifact import HeadSpec
from tests.models import CLASSES, small_artifact
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import Running, serving
from tests.service.test_http import HOSTILE, JSON, NPY, TIFF

_GROWTH = 1.1
_SAMPLE_SECONDS = 1.0


@dataclass
class Seen:
    """What came back, by kind of request."""

    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[int] = field(default_factory=list)


def main() -> int:
    """Run, print a table, say whether all is well."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--clients", type=int, default=4)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "artifact"
        small_artifact(folder, {"cover": HeadSpec(classes=CLASSES, hidden=16)})
        limits = ["max_patches=8", "max_pixels=40000", "max_windows=100", "max_body_bytes=4194304"]
        with serving(folder, *[part for limit in limits for part in ("--limit", limit)]) as service:
            seen = _soak(service, asked.minutes * 60, asked.clients)
    return _report(seen)


def _soak(service: Running, seconds: float, clients: int) -> Seen:
    seen, end = Seen(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_ask, args=(service.url, seed, end, seen))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    said = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        seen.memory.append(_resident(service))
        if time.monotonic() - said > 30:
            said = time.monotonic()
            done = sum(sum(counter.values()) for counter in seen.statuses.values())
            print(f"{done} requests, {seen.memory[-1] >> 20} MB", file=sys.stderr, flush=True)
        time.sleep(_SAMPLE_SECONDS)
    return seen


def _ask(url: str, seed: int, end: float, seen: Seen) -> None:
    draw = random.Random(seed)
    good = _good_requests()
    hostile = {name: (headers, make()) for name, (headers, make, _) in HOSTILE.items()}
    with httpx.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < end:
            if draw.random() < 0.7:
                kind, (path, headers, body) = draw.choice(list(good.items()))
            else:
                kind = "hostile"
                headers, body = draw.choice(list(hostile.values()))
                path = draw.choice(["/embed", "/classify", "/similarity?row=0&col=0"])
            begun = time.perf_counter()
            status = client.post(path, content=body, headers=headers).status_code
            seen.seconds[kind].append(time.perf_counter() - begun)
            seen.statuses[kind][status] += 1


def _good_requests() -> dict[str, tuple[str, dict[str, str], bytes]]:
    rng = np.random.default_rng(0)
    patches = rng.uniform(0, 0.4, (4, 4, 64, 64)).astype(np.float32)
    image = rng.uniform(0, 0.4, (4, 96, 128)).astype(np.float32)
    numbers = rng.integers(0, 4000, (4, 64, 64), dtype=np.uint16)
    lists = json.dumps({"reflectance": np.round(patches[:1], 3).tolist()}).encode()
    return {
        "embed, npy": ("/embed", NPY, npy_bytes(patches)),
        "embed, GeoTIFF": ("/embed?scale=0.0001", TIFF, geotiff_bytes(numbers)),
        "embed, JSON": ("/embed", JSON, lists),
        "embed, grid": ("/embed?stride=16", NPY, npy_bytes(image)),
        "classify": ("/classify", NPY, npy_bytes(patches)),
        "similarity": ("/similarity?row=40&col=60&stride=16", NPY, npy_bytes(image)),
    }


def _resident(service: Running) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def _report(seen: Seen) -> int:
    print("| request | answers | p50 ms | p99 ms |\n|---|---|--:|--:|")
    for kind, times in sorted(seen.seconds.items()):
        answers = ", ".join(f"{n} x {code}" for code, n in sorted(seen.statuses[kind].items()))
        low, high = np.percentile(times, (50, 99)) * 1000
        print(f"| {kind} | {answers} | {low:.0f} | {high:.0f} |")
    fifth = max(1, len(seen.memory) // 5)
    # The first fifth fills caches; the second is what the last is held against.
    early = float(np.mean(seen.memory[fifth : 2 * fifth] or seen.memory))
    late = float(np.mean(seen.memory[-fifth:]))
    print(f"\nresident memory: {early / 2**20:.0f} MB early, {late / 2**20:.0f} MB late")
    faults: dict[str, Callable[[], bool]] = {
        "a 5xx that is not 503": lambda: any(
            code >= 500 and code != 503 for counter in seen.statuses.values() for code in counter
        ),
        "a good request that was refused": lambda: any(
            set(counter) - {200, 503}
            for kind, counter in seen.statuses.items()
            if kind != "hostile"
        ),
        "a hostile request that was answered": lambda: 200 in seen.statuses["hostile"],
        "memory that grew": lambda: late > _GROWTH * early,
    }
    found = [name for name, there in faults.items() if there()]
    print("found: " + ", ".join(found) if found else "no fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
