"""An untrained artifact, a running service on loopback, the compose file: for all tests here."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import IO, Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from mimodel.artifact import Artifact, HeadSpec, Networks, frozen
from mimodel.embed import embed_cube
from mimodel.novelty import fit_novelty
from s2pairs.cube import Cube
from tests.cubes import made_cube
from tests.models import CLASSES, small_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service") / "artifact"
    small_artifact(folder, {"cover": HeadSpec(classes=CLASSES, hidden=16)}, exclusive=8)
    return folder


@pytest.fixture(scope="session")
def artifact(artifact_folder: Path) -> Artifact:
    return Artifact.load(artifact_folder)


@pytest.fixture(scope="session")
def full(artifact: Artifact) -> Artifact:
    """The small model with an exclusive encoder, a head on each representation, and novelty."""
    rng = np.random.default_rng(2)
    training = rng.uniform(0, 0.4, (60, 4, 64, 64)).astype(np.float32)
    novelty_spec, novelty = fit_novelty(
        *(artifact.described(artifact.embed(part), part) for part in (training[:40], training[40:]))
    )
    spec = artifact.spec.model_copy(
        update={
            "name": "Möwe 1",  # a name may have any letters
            "exclusive_encoder": artifact.spec.encoder.model_copy(update={"representation": 8}),
            "representations": {"shared": 64, "exclusive": 8},
            "heads": {
                "cover": HeadSpec(classes=CLASSES, hidden=16, temperature=2.5),
                "season": HeadSpec(classes=("a", "b"), hidden=4, representation="exclusive"),
            },
            "novelty": novelty_spec,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        networks = Networks(spec)
    networks.load_state_dict(
        {**networks.state_dict(), **artifact.networks.state_dict()}
        | {f"novelty.{name}": value for name, value in novelty.state_dict().items()}
    )
    return Artifact(spec, artifact.digest, frozen(networks))


@pytest.fixture(scope="session")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_cube(tmp_path_factory.mktemp("service") / "cube.zarr", 24, columns=4)


@pytest.fixture(scope="session")
def index_folder(
    artifact_folder: Path, cube: Cube, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The index of `cube` by the artifact."""
    out = tmp_path_factory.mktemp("service") / "index"
    embed_cube(artifact_folder, cube.path, out, scheduler=None, progress=lambda *_: None)
    return out


@pytest.fixture
def patches() -> npt.NDArray[np.float32]:
    """Three patches (3, 4, 64, 64) of plausible reflectance, the second with a hole."""
    pixels = np.random.default_rng(3).uniform(0.0, 0.5, (3, 4, 64, 64)).astype(np.float32)
    pixels[1, :, :16] = np.nan
    return pixels


@dataclass(frozen=True)
class Running:
    """A service that runs as a process of its own."""

    process: subprocess.Popen[str]
    url: str

    def peak_memory(self) -> int:
        """The most bytes that it had in memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        """Have `peak_memory` begin anew, at what is in memory now (Linux, proc(5))."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def serving(
    artifact_folder: Path, *options: str, log: int | IO[str] = DEVNULL, **environment: str
) -> Iterator[Running]:
    """`crossmi-service` on a free port of loopback, ready, and stopped afterwards."""
    command = [sys.executable, "-m", "service.cli", "--artifact", str(artifact_folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        assert process.stdout
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address, "the service did not say where it listens"
        retries = httpx.HTTPTransport(retries=3)
        with httpx.Client(base_url=address[0], timeout=60, transport=retries) as client:
            while client.get("/readyz").status_code == 503:
                assert process.poll() is None
        yield Running(process, address[0])
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="session")
def service(artifact_folder: Path, index_folder: Path) -> Iterator[Running]:
    """One service with small limits, for all tests that change nothing in it."""
    limits = {
        "max_patches": 8,
        "max_pixels": 40_000,
        "max_windows": 100,
        "max_queries": 16,
        "max_body_bytes": 4 * 2**20,
    }
    options = [part for name, most in limits.items() for part in ("--limit", f"{name}={most}")]
    with serving(artifact_folder, "--index", str(index_folder), *options) as running:
        yield running


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed
