"""Each program in docker-compose.yml but its proxy, run as it says, without Docker."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.bodies import npy_bytes
from tests.service.conftest import ROOT
from tests.service.test_compose import filled_in
from tests.service.test_http import NPY

PATCH = npy_bytes(np.zeros((1, 4, 64, 64), np.float32))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def program(
    command: list[str],
    answers: Callable[[], bool],
    folder: Path,
    environment: dict[str, str] | None = None,
) -> Iterator[None]:
    """A program that runs until it answers, and for the length of the block."""
    if command[0] == "jupyter":  # which itself does no more than start that program
        command = [f"jupyter-{command[1]}", *command[2:]]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    found = shutil.which(command[0], path=path)
    if not found:  # those that are no package of this project come with their images
        pytest.skip(f"{command[0]} is not installed")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [found, *command[1:]],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            deadline = time.monotonic() + 300  # each asks by a process of its own
            while not answers():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def own_check(container: dict[str, Any], ports: dict[str, int]) -> Callable[[], bool]:
    """Whether a container's health check, run as it stands but for ports, says that all is well."""
    kind, *command = container["healthcheck"]["test"]
    assert kind == "CMD"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = shutil.which(command[0], path=path)
    if not found:  # it comes with the image
        pytest.skip(f"{command[0]} is not installed")
    checking = [found, *with_ports(command[1:], ports)]
    return lambda: subprocess.run(checking, check=False, capture_output=True).returncode == 0


def healthy(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return httpx.get(url, timeout=2).is_success
        except httpx.TransportError:
            return False

    return ask


def with_ports(command: list[str], ports: dict[str, int]) -> list[str]:
    """A command of the compose file, on this machine and on free ports."""
    text = "\0".join(command).replace("0.0.0.0", "127.0.0.1").replace("scheduler:", "127.0.0.1:")
    for written, port in ports.items():
        assert written in text
        text = text.replace(written, str(port))
    return text.split("\0")


def test_the_service_runs_as_its_image_and_the_compose_file_start_it(
    compose: dict[str, Any], artifact_folder: Path, index_folder: Path, tmp_path: Path
) -> None:
    container = compose["services"]["service"]
    assert not {"command", "entrypoint"} & container.keys()
    image = (ROOT / "Dockerfile").read_text().split("\nFROM ")[-1]
    entrypoint, arguments, check = (
        json.loads(found[1])
        for start in ("^ENTRYPOINT", "^CMD", "^HEALTHCHECK.*\\\\\n +CMD")
        if (found := re.search(rf"{start} (\[.*\])$", image, re.MULTILINE))
    )
    assert ["CMD", *check] == container["healthcheck"]["test"]
    given = {"CROSSMI_API_KEY": "k" * 16, "CROSSMI_INDEX": "index"}
    environment = {
        name: filled_in(text, given).replace("/models", str(tmp_path))
        for name, text in container["environment"].items()
    }
    shutil.copytree(artifact_folder, tmp_path / "artifact")
    shutil.copytree(index_folder, tmp_path / "index")
    port = free_port()
    healthy_now = own_check(container, {"8000": port})
    assert not healthy_now()
    command = with_ports([*entrypoint, *arguments], {"8000": port})
    # The script in the environment finds the package of this folder.
    with program(command, healthy_now, tmp_path, {**environment, "PYTHONPATH": str(ROOT)}):
        url, key = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {'k' * 16}"}
        assert (
            httpx.post(f"{url}/search", content=PATCH, headers=NPY, timeout=60).status_code == 401
        )
        for path in ("/embed", "/search"):
            answer = httpx.post(f"{url}{path}", content=PATCH, headers=NPY | key, timeout=60)
            assert answer.status_code == 200


@pytest.mark.slow
def test_dask_runs_a_task_as_the_compose_file_starts_it(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    scheduler, dashboard, worker = free_port(), free_port(), free_port()
    ports = {"8786": scheduler, "8787": dashboard}
    command = with_ports(compose["services"]["scheduler"]["command"], ports)
    working = with_ports(
        compose["services"]["worker"]["command"],
        {"8786": scheduler, "8790": worker, "/tmp": tmp_path},  # type: ignore[dict-item]
    )
    (tmp_path / "scheduler").mkdir()
    scheduling = own_check(compose["services"]["scheduler"], {"8787": dashboard})
    healthy_worker = own_check(compose["services"]["worker"], {"8790": worker})
    assert not scheduling()
    assert not healthy_worker()
    with program(command, scheduling, tmp_path / "scheduler"):
        with program(working, healthy_worker, tmp_path):
            from distributed import Client

            with Client(f"tcp://127.0.0.1:{scheduler}") as client:
                assert client.submit(sum, [1, 2, 3]).result(60) == 6


@pytest.mark.slow
def test_the_store_speaks_s3(compose: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    command = with_ports(compose["services"]["store"]["command"], {"9000": port})
    storing = own_check(compose["services"]["store"], {"9000": port})
    assert not storing()
    with program(command, storing, tmp_path):
        import s3fs

        store = s3fs.S3FileSystem(
            key="a", secret="b", endpoint_url=f"http://127.0.0.1:{port}", skip_instance_cache=True
        )
        store.mkdir("cubes")
        store.pipe("cubes/one", b"bytes")
        assert store.cat("cubes/one") == b"bytes"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "port"), [("prometheus", "9090"), ("notebook", "8888")])
def test_what_else_is_started_answers(
    compose: dict[str, Any], tmp_path: Path, name: str, port: str
) -> None:
    container = compose["services"][name]
    entry = ["prometheus"] if name == "prometheus" else []
    taken = free_port()
    command = [*entry, *container["command"]]
    if name == "prometheus":
        command.append("--web.listen-address=127.0.0.1:9090")
    elif os.geteuid() == 0:  # as which nothing runs in a container
        command.append("--allow-root")
    command = with_ports(command, {port: taken})
    here = {"=/crossmi": "=.", "=/prometheus": "=data"}
    command = [
        re.sub("=/(work|prometheus)$", lambda found: here[found[0]], part) for part in command
    ]
    command = [part.replace("/etc/prometheus", str(ROOT / "deploy")) for part in command]
    healthy_now = own_check(container, {port: taken})
    assert not healthy_now()
    with program(command, healthy_now, tmp_path):
        pass
