"""The service under load beside the same model in process; how fast it starts, what it holds."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact
from mimodel.backends import Backend, embedder
from tests.service.bodies import npy_bytes
from tests.service.conftest import Running, serving

_CLIENTS = 64
_REQUESTS = int(os.environ.get("CROSSMI_REQUESTS", "1024"))
_THREADS = str(torch.get_num_threads())


@pytest.fixture(scope="module")
def fastest() -> dict[str, float]:
    """Seconds of the baselines of this run, for ratios to them."""
    return {}


@pytest.fixture(scope="module")
def running(artifact_path: Path) -> Iterator[Running]:
    with serving(artifact_path, OMP_NUM_THREADS=_THREADS) as service:
        yield service


@pytest.fixture(scope="module")
def patch() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 0.4, (1, 4, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("form", ["in process, batch 64", "64 clients"])
def test_throughput(
    benchmark: Any,
    artifact: Artifact,
    running: Running,
    patch: np.ndarray,
    fastest: dict[str, float],
    form: str,
) -> None:
    """1,024 patches: by one process that has them all, or by 64 clients with one each at a time.

    The clients share the processors with the service, so they are as plain as can be.
    """
    benchmark.group = f"{_REQUESTS} patches"
    if form == "in process, batch 64":
        embed = embedder(artifact, "shared", Backend.FOLDED)
        batch = np.repeat(patch, 64, axis=0)

        def compute() -> None:
            for _ in range(_REQUESTS // 64):
                embed(batch)

        benchmark.pedantic(compute, rounds=3, warmup_rounds=1)
        if benchmark.stats:
            fastest["in process"] = benchmark.stats.stats.median
        return
    seconds: list[float] = []
    health = _Health(running.url)
    benchmark.pedantic(
        lambda: seconds.extend(asyncio.run(_ask_all(running.url, npy_bytes(patch)))),
        rounds=3,
        warmup_rounds=1,
    )
    waits = health.stop()
    if benchmark.stats and "in process" in fastest:
        ratio = fastest["in process"] / benchmark.stats.stats.median
        benchmark.extra_info["throughput of in process"] = round(ratio, 3)
    benchmark.extra_info["p50 ms"], benchmark.extra_info["p99 ms"] = _percentiles(seconds)
    benchmark.extra_info["healthz p50 ms"], benchmark.extra_info["healthz p99 ms"] = _percentiles(
        waits
    )
    batches = httpx.get(f"{running.url}/metrics").text
    total, count = (
        float(re.search(rf"^crossmi_batch_patches_{name} (\S+)$", batches, re.M)[1])  # type: ignore[index]
        for name in ("sum", "count")
    )
    benchmark.extra_info["patches a batch"] = total / count


@pytest.mark.benchmark(group="cold start")
def test_import_torch(benchmark: Any, fastest: dict[str, float]) -> None:
    """The baseline of a start: what a process needs for `import torch` alone."""
    command = [sys.executable, "-c", "import torch"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=3)
    if benchmark.stats:
        fastest["import torch"] = benchmark.stats.stats.min


@pytest.mark.benchmark(group="cold start")
def test_cold_start(benchmark: Any, artifact_path: Path, fastest: dict[str, float]) -> None:
    """From the command to /readyz; resident memory then and after a full request."""

    def start() -> None:
        with serving(artifact_path) as service:
            benchmark.extra_info["resident MB when ready"] = service.peak_memory() >> 20

    benchmark.pedantic(start, rounds=3)
    if benchmark.stats and "import torch" in fastest:
        ratio = benchmark.stats.stats.min / fastest["import torch"]
        benchmark.extra_info["times import torch"] = round(ratio, 2)
    with serving(artifact_path) as service:
        body = npy_bytes(np.zeros((64, 4, 64, 64), np.float32))
        headers = {"Content-Type": "application/x-npy"}
        answer = httpx.post(f"{service.url}/embed", content=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        benchmark.extra_info["peak MB after 64 patches"] = service.peak_memory() >> 20
        loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "site-packages/torch/" in loaded
        assert not re.search("torchgeo|sentinelhub|rasterio", loaded)


async def _ask_all(url: str, body: bytes) -> list[float]:
    """Seconds of each request, of clients that each keep a connection and ask again at once."""
    host, port = url.removeprefix("http://").split(":")
    head = (
        "POST /embed HTTP/1.1\r\nHost: x\r\nAccept: application/x-npy\r\n"
        f"Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    seconds: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(_REQUESTS // _CLIENTS):
            begun = time.perf_counter()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            length = re.search(rb"content-length: (\d+)", answer)
            assert length
            await reader.readexactly(int(length[1]))
            seconds.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return seconds


class _Health:
    """A process that asks for /healthz fifty times a second, as a supervisor does.

    Not a thread of the clients' process: it would wait for their interpreter, too.
    """

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-c", _ASK, url.removeprefix("http://")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop(self) -> list[float]:
        out, _ = self._process.communicate(b"stop", timeout=60)
        assert self._process.returncode == 0
        return [float(line) for line in out.split()]


_ASK = """
import http.client, select, sys, time
connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    begun = time.perf_counter()
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    print(time.perf_counter() - begun)
"""


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    low, high = np.percentile(seconds, (50, 99)) * 1000
    return float(low), float(high)
