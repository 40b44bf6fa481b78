"""Ten minutes of mixed good and hostile requests: what was answered, how fast, in how much memory.

    python -m benchmarks.soak --minutes 10 --clients 4

Two services, of the encoders that are trained for real: one of 64 x 64 patches with an index, one
of 9 x 9 pixels, whose maps keep features. Every image is a new one, so that caches fill and must
let go; and now and then another artifact takes the place of each.

Ends with exit code 1 if there was any 5xx but 503, a good request that was refused, a reload that
failed, or memory that grew.
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
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, Networks, save_artifact
from mimodel.embed import embed_cube
from mimodel.networks import EncoderSpec
from mimodel.normalisation import Normalisation
from tests.cubes import made_cube
from tests.models import BANDS, CLASSES
from tests.service.bodies import geotiff_bytes, npy_bytes
from tests.service.conftest import Running, serving
from tests.service.test_http import HOSTILE, JSON, NPY, TIFF

_GROWTH = 1.1
_SAMPLE_SECONDS = 1.0
_RELOAD_SECONDS = 20.0
_PATCHES, _PIXELS = "patches", "pixels"
_LIMITS = {
    _PATCHES: ["max_patches=8", "max_pixels=40000", "max_windows=100", "max_body_bytes=4194304"],
    _PIXELS: [f"map_cache_bytes={96 << 20}"],
}

Image = npt.NDArray[np.float32]


@dataclass
class Seen:
    """What came back, by kind of request."""

    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    reloads: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Good:
    """A request that must be answered, of new pixels each time."""

    service: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[np.random.Generator], bytes] = lambda _: b""


def main() -> int:
    """Run, print a table, say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folders = {kind: Path(name) / kind for kind in (_PATCHES, _PIXELS)}
        index = _made(folders)
        services = {}
        for kind, folder in folders.items():
            limits = [part for one in _LIMITS[kind] for part in ("--limit", one)]
            searched = ["--index", str(index)] if kind == _PATCHES else []
            options = [*limits, *searched, "--limit", "watch_seconds=1"]
            services[kind] = stack.enter_context(serving(folder, *options))
        seen = _soak(services, folders, asked.minutes * 60, asked.clients)
    return _report(seen)


def _made(folders: dict[str, Path]) -> Path:
    """Both artifacts, untrained, and the index of one of them."""
    _artifact(folders[_PATCHES], 64, {"cover": HeadSpec(classes=CLASSES, hidden=16)})
    _artifact(folders[_PIXELS], 9, {})
    cube = made_cube(folders[_PATCHES].with_name("cube.zarr"), 24, columns=4)
    index = folders[_PATCHES].with_name("index")
    embed_cube(folders[_PATCHES], cube.path, index, scheduler=None, progress=lambda *_: None)
    return index


def _artifact(folder: Path, size: int, heads: dict[str, HeadSpec]) -> Artifact:
    spec = ArtifactSpec(
        name="soaked",
        encoder=EncoderSpec.for_images(4, (size, size)),
        normalisation=Normalisation(bands=BANDS, mean=(0.2,) * 4, std=(0.1,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
        heads=heads,
    )
    return save_artifact(folder, spec, Networks(spec).state_dict(), "# Untrained\n")


def _soak(
    services: dict[str, Running], folders: dict[str, Path], seconds: float, clients: int
) -> Seen:
    seen, end = Seen(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_ask, args=(services, seed, end, seen)) for seed in range(clients)
    ]
    threads.append(threading.Thread(target=_renew, args=(folders, end)))
    for thread in threads:
        thread.start()
    said = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        for kind, service in services.items():
            seen.memory[kind].append(_resident(service))
        if time.monotonic() - said > 30:
            said = time.monotonic()
            done = sum(sum(counter.values()) for counter in seen.statuses.values())
            held = ", ".join(f"{kind} {sizes[-1] >> 20} MB" for kind, sizes in seen.memory.items())
            print(f"{done} requests, {held}", file=sys.stderr, flush=True)
        time.sleep(_SAMPLE_SECONDS)
    for service in services.values():
        figures = httpx.get(f"{service.url}/metrics").text
        for outcome in ("done", "failed"):
            found = re.search(rf'crossmi_reloads_total{{outcome="{outcome}"}} (\S+)', figures)
            seen.reloads[outcome] += int(float(found[1])) if found else 0
    return seen


def _renew(folders: dict[str, Path], end: float) -> None:
    """Put the same weights under another name, so that indexes still fit, again and again."""
    number = 0
    while time.monotonic() + _RELOAD_SECONDS < end:
        time.sleep(_RELOAD_SECONDS)
        number += 1
        for folder in folders.values():
            old = Artifact.load(folder)
            spec = old.spec.model_copy(update={"name": f"soaked-{number}"})
            save_artifact(folder, spec, old.networks.state_dict(), "# Untrained\n")


def _ask(services: dict[str, Running], seed: int, end: float, seen: Seen) -> None:
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    good = _good_requests()
    hostile = {name: (headers, make()) for name, (headers, make, _) in HOSTILE.items()}
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < end:
            if draw.random() < 0.7:
                kind, one = draw.choice(list(good.items()))
                service, path, headers, body = one.service, one.path, one.headers, one.body(rng)
            else:
                kind, service = "hostile", _PATCHES
                headers, body = draw.choice(list(hostile.values()))
                path = draw.choice(["/embed", "/classify", "/search", "/similarity?row=0&col=0"])
            begun = time.perf_counter()
            url = services[service].url + path
            status = client.post(url, content=body, headers=headers).status_code
            seen.seconds[kind].append(time.perf_counter() - begun)
            seen.statuses[kind][status] += 1


def _good_requests() -> dict[str, Good]:
    def noise(*shape: int) -> Callable[[np.random.Generator], Image]:
        return lambda rng: rng.uniform(0, 0.4, shape).astype(np.float32)

    def npy(*shape: int) -> Callable[[np.random.Generator], bytes]:
        return lambda rng: npy_bytes(noise(*shape)(rng))

    def lists(rng: np.random.Generator) -> bytes:
        return json.dumps({"reflectance": np.round(noise(1, 4, 64, 64)(rng), 3).tolist()}).encode()

    def numbers(rng: np.random.Generator) -> bytes:
        return geotiff_bytes(rng.integers(0, 4000, (4, 64, 64), dtype=np.uint16))

    patches, image, small = npy(4, 4, 64, 64), npy(4, 96, 128), npy(4, 48, 56)
    triangle = "polygon=10,10&polygon=10,30&polygon=30,20"
    return {
        "embed, npy": Good(_PATCHES, "/embed", NPY, patches),
        "embed, GeoTIFF": Good(_PATCHES, "/embed?scale=0.0001", TIFF, numbers),
        "embed, JSON": Good(_PATCHES, "/embed", JSON, lists),
        "embed, grid": Good(_PATCHES, "/embed?stride=16", NPY, image),
        "classify": Good(_PATCHES, "/classify", NPY, patches),
        "preview": Good(_PATCHES, "/preview", NPY, image),
        "search, patches": Good(_PATCHES, "/search", NPY, patches),
        "search, pixel": Good(_PATCHES, "/search?row=40&col=60", NPY, image),
        "search, look": Good(_PATCHES, "/search?patch=4&date=1&per_place=1"),
        "map of patches": Good(_PATCHES, "/similarity?row=40&col=60&stride=16", NPY, image),
        "map of pixels": Good(_PIXELS, "/similarity?row=20&col=30", NPY, small),
        "map of a polygon": Good(_PIXELS, f"/similarity?{triangle}&mode=fast", NPY, small),
        "map, PNG": Good(_PIXELS, "/similarity?row=9&col=9", NPY | {"Accept": "image/png"}, small),
        "map, GeoTIFF": Good(
            _PIXELS, "/similarity?row=9&col=9", NPY | {"Accept": "image/tiff"}, small
        ),
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
    grown = []
    for kind, sizes in seen.memory.items():
        fifth = max(1, len(sizes) // 5)
        # The first fifth fills caches; the second is what the last is held against.
        early = float(np.mean(sizes[fifth : 2 * fifth] or sizes))
        late = float(np.mean(sizes[-fifth:]))
        grown.append(late > _GROWTH * early)
        print(
            f"\nresident memory, {kind}: {early / 2**20:.0f} MB early, {late / 2**20:.0f} MB late"
        )
    print(f"\nreloads: {seen.reloads['done']} done, {seen.reloads['failed']} failed")
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
        "a reload that failed": lambda: seen.reloads["failed"] > 0,
        "memory that grew": lambda: any(grown),
    }
    found = [name for name, there in faults.items() if there()]
    print("found: " + ", ".join(found) if found else "no fault")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
