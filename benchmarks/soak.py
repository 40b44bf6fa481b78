"""Ten minutes of mixed good and hostile requests: what was answered, how fast, in how much memory.

    python -m benchmarks.soak --minutes 10 --clients 4

Two services, of encoders of the sizes that are trained for real, untrained: one of 64 x 64 patches
with an index and under small limits, one of 9 x 9 pixels, whose maps keep features. Every image is
a new one, so that caches fill and must let go; and now and then another artifact takes the place
of each.

Ends with exit code 1 if a request had no answer, a good one any but 200, or a hostile one any but a
4xx; if a kind of request was hardly asked, a reload failed or none was done; or if memory grew.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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

_GROWTH = 0.02
"""Of resident memory in the last half; in the first, caches fill."""
_STEADY_MINUTES = 8.0
"""A shorter run cannot tell growth from caches that fill and models that come and go."""
_LEAST_A_MINUTE = 1.0
"""Answers of each kind: with fewer, that kind was not tried."""
_SAMPLE_SECONDS = 1.0
_RELOAD_SECONDS = 20.0
_NAME = "soaked"
_HOSTILE = "hostile"
_HOSTILE_PATHS = (
    *("/embed", "/classify", "/search", "/similarity?row=0&col=0", "/preview"),
    f"/v2/models/{_NAME}/infer",
)
_PATCHES, _PIXELS = "patches", "pixels"
_LIMITS = {
    _PATCHES: ["max_patches=8", "max_pixels=40000", "max_windows=100", "max_body_bytes=4194304"],
    _PIXELS: [f"map_cache_bytes={96 << 20}"],
}

Image = npt.NDArray[np.float32]


@dataclass
class Seen:
    """What came back, by kind of request; memory and reloads by service."""

    minutes: float

    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    reloads: dict[str, dict[str, int]] = field(default_factory=dict)
    """Attempts by outcome, `done` or `failed`."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer, each with its error."""


@dataclass(frozen=True)
class Asked:
    """A request, of new pixels each time."""

    service: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[np.random.Generator], bytes] = lambda _: b""
    method: str = "POST"


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
        seen = _soak(services, folders, asked.minutes, asked.clients)
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
        name=_NAME,
        encoder=EncoderSpec.for_images(4, (size, size)),
        normalisation=Normalisation(bands=BANDS, mean=(0.2,) * 4, std=(0.1,) * 4),
        representations={"shared": 64},
        alpha=0.5,
        beta=1.0,
        heads=heads,
    )
    return save_artifact(folder, spec, Networks(spec).state_dict(), "# Untrained\n")


def _soak(
    services: dict[str, Running], folders: dict[str, Path], minutes: float, clients: int
) -> Seen:
    seen, end = Seen(minutes), time.monotonic() + minutes * 60
    urls = {kind: service.url for kind, service in services.items()}
    with ThreadPoolExecutor(clients + 1) as pool:
        work = [pool.submit(_ask, urls, seed, end, seen) for seed in range(clients)]
        work.append(pool.submit(_renew, folders, end))
        _watch(services, work, seen)
    for one in work:
        one.result()  # whatever ended it before its time is raised here
    for kind, url in urls.items():
        figures = httpx.get(f"{url}/metrics").text
        found = re.findall(r'crossmi_reloads_total{outcome="(\w+)"} (\S+)', figures)
        seen.reloads[kind] = {outcome: int(float(number)) for outcome, number in found}
    return seen


def _watch(services: dict[str, Running], work: Collection[Future[None]], seen: Seen) -> None:
    """Note how much memory there is in use until all work is done, and say how far it is."""
    said = time.monotonic()
    while wait(work, _SAMPLE_SECONDS).not_done:
        for kind, service in services.items():
            seen.memory[kind].append(_resident(service))
        if time.monotonic() - said > 30:
            said = time.monotonic()
            done = sum(sum(counter.values()) for counter in seen.statuses.values())
            held = ", ".join(f"{kind} {sizes[-1] >> 20} MB" for kind, sizes in seen.memory.items())
            print(f"{done} requests, {held}", file=sys.stderr, flush=True)


def _renew(folders: dict[str, Path], end: float) -> None:
    """Put the same weights there as another artifact, so that indexes still fit, over and over."""
    number = 0
    while time.monotonic() + _RELOAD_SECONDS < end:
        time.sleep(_RELOAD_SECONDS)
        number += 1
        for folder in folders.values():
            old = Artifact.load(folder)
            spec = old.spec.model_copy(update={"provenance": {"number": str(number)}})
            save_artifact(folder, spec, old.networks.state_dict(), "# Untrained\n")


def _ask(urls: dict[str, str], seed: int, end: float, seen: Seen) -> None:
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    good = list(_good_requests().items())
    hostile = [(headers, make()) for headers, make, _ in HOSTILE.values()]
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < end:
            if draw.random() < 0.7:
                kind, one = draw.choice(good)
                body = one.body(rng)
            else:
                headers, body = draw.choice(hostile)
                kind, one = _HOSTILE, Asked(_PATCHES, draw.choice(_HOSTILE_PATHS), headers)
            if not _sent(client, urls[one.service], kind, one, body, seen):
                time.sleep(1)  # a service that is gone makes no endless list


def _sent(client: httpx.Client, url: str, kind: str, one: Asked, body: bytes, seen: Seen) -> bool:
    """Whether there was an answer; what it was is noted."""
    begun = time.perf_counter()
    try:
        answer = client.request(one.method, url + one.path, content=body, headers=one.headers)
    except httpx.TransportError as error:
        seen.lost.append(f"{kind}: {error!r}")
        return False
    seen.seconds[kind].append(time.perf_counter() - begun)
    seen.statuses[kind][answer.status_code] += 1
    return True


def _good_requests() -> dict[str, Asked]:
    """Those that must be answered with 200."""

    def noise(*shape: int) -> Callable[[np.random.Generator], Image]:
        return lambda rng: rng.uniform(0, 0.4, shape).astype(np.float32)

    def npy(*shape: int) -> Callable[[np.random.Generator], bytes]:
        return lambda rng: npy_bytes(noise(*shape)(rng))

    def lists(rng: np.random.Generator) -> bytes:
        return json.dumps({"reflectance": np.round(noise(1, 4, 64, 64)(rng), 3).tolist()}).encode()

    def tensor(rng: np.random.Generator) -> bytes:
        pixels = np.round(noise(1, 4, 64, 64)(rng), 3)
        one = {"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape)}
        return json.dumps({"inputs": [one | {"data": pixels.ravel().tolist()}]}).encode()

    def numbers(rng: np.random.Generator) -> bytes:
        return geotiff_bytes(rng.integers(0, 4000, (4, 64, 64), dtype=np.uint16))

    patches, image, small = npy(4, 4, 64, 64), npy(4, 96, 128), npy(4, 48, 56)
    triangle = "polygon=10,10&polygon=10,30&polygon=30,20"
    return {
        "embed, npy": Asked(_PATCHES, "/embed", NPY, patches),
        "embed, GeoTIFF": Asked(_PATCHES, "/embed?scale=0.0001", TIFF, numbers),
        "embed, JSON": Asked(_PATCHES, "/embed", JSON, lists),
        "embed, grid": Asked(_PATCHES, "/embed?stride=16", NPY, image),
        "classify": Asked(_PATCHES, "/classify", NPY, patches),
        "infer": Asked(_PATCHES, f"/v2/models/{_NAME}/infer", JSON, tensor),
        "metadata": Asked(_PATCHES, f"/v2/models/{_NAME}", method="GET"),
        "preview": Asked(_PATCHES, "/preview", NPY, image),
        "index": Asked(_PATCHES, "/index", method="GET"),
        "index, sample": Asked(_PATCHES, "/index/sample.npy", method="GET"),
        "thumbnail": Asked(_PATCHES, "/thumbnails/4/1.png", method="GET"),
        "page": Asked(_PATCHES, "/", method="GET"),
        "search, patches": Asked(_PATCHES, "/search", NPY, patches),
        "search, pixel": Asked(_PATCHES, "/search?row=40&col=60", NPY, image),
        "search, look": Asked(_PATCHES, "/search?patch=4&date=1&per_place=1"),
        "map of patches": Asked(_PATCHES, "/similarity?row=40&col=60&stride=16", NPY, image),
        "map of pixels": Asked(_PIXELS, "/similarity?row=20&col=30", NPY, small),
        "map of a polygon": Asked(_PIXELS, f"/similarity?{triangle}&mode=fast", NPY, small),
        "map, PNG": Asked(_PIXELS, "/similarity?row=9&col=9", NPY | {"Accept": "image/png"}, small),
        "map, GeoTIFF": Asked(
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
    for kind, sizes in seen.memory.items():
        held = f"{min(sizes) >> 20} to {max(sizes) >> 20} MB, at the end {sizes[-1] >> 20} MB"
        print(f"\nresident memory, {kind}: {held}; {_growth(sizes):+.1%} in the last half")
    if seen.minutes < _STEADY_MINUTES:
        print(f"\n{seen.minutes:g} minutes are too few to say whether memory grows")
    for kind, outcomes in seen.reloads.items():
        print(f"\nreloads, {kind}: {outcomes['done']} done, {outcomes['failed']} failed")
    found = faults(seen)
    print("\nfound:\n" + "\n".join(found) if found else "\nno fault")
    return 1 if found else 0


def faults(seen: Seen) -> list[str]:
    """What is not as it should be, one sentence each."""
    found = [f"no answer to {one}" for one in seen.lost]
    least = max(1.0, _LEAST_A_MINUTE * seen.minutes)
    for kind in (_HOSTILE, *_good_requests()):
        counter = seen.statuses[kind]
        wrong = [code for code in counter if not _is_right(kind, code)]
        found += [f"{kind}: {counter[code]} answers with status {code}" for code in sorted(wrong)]
        if counter.total() < least:
            found.append(f"{kind}: {counter.total()} answers, expected {least:g} or more")
    for kind, outcomes in seen.reloads.items():
        if not outcomes["done"] or outcomes["failed"]:
            found.append(f"{kind}: {outcomes['done']} reloads, and {outcomes['failed']} failed")
    for kind, sizes in seen.memory.items():
        if seen.minutes >= _STEADY_MINUTES and _growth(sizes) > _GROWTH:
            found.append(f"{kind}: memory grew by {_growth(sizes):.1%} in the last half")
    return found


def _is_right(kind: str, status: int) -> bool:
    return 400 <= status < 500 if kind == _HOSTILE else status == 200


def _growth(sizes: Sequence[int]) -> float:
    """How much the line through the last half of the samples rises, as a part of their mean.

    A line, since each reload has two models in memory for a moment.
    """
    half = np.array(sizes[len(sizes) // 2 :], float)
    if len(half) < 2:
        return 0.0
    slope = np.polyfit(np.arange(len(half)), half, 1)[0]
    return float(slope * len(half) / half.mean())


if __name__ == "__main__":
    sys.exit(main())
