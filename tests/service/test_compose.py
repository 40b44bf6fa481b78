"""docker-compose.yml: what it confines, and each program in it, run as it says, without Docker."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, UDPServer
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from service import cli
from service.settings import Settings
from tests.service.bodies import npy_bytes
from tests.service.conftest import Running
from tests.service.test_http import NPY, refused
from tests.service.test_operation import eventually

ROOT = Path(__file__).parents[2]
SERVICES = {"service", "proxy", "prometheus", "scheduler", "worker", "store", "notebook"}
_WAITED = ("header", "body")
PATCH = npy_bytes(np.zeros((1, 4, 64, 64), np.float32))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def test_containers_can_do_no_more_than_they_need(compose: dict[str, Any]) -> None:
    assert compose["services"].keys() == SERVICES
    for container in compose["services"].values():
        assert container["read_only"] is True
        assert int(container["user"].split(":")[0]) > 0
        assert container["cap_drop"] == ["ALL"]
        assert container["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in container
        assert container["mem_limit"]
        assert container["pids_limit"]
        assert container["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in container.get("ports", []))


def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    check = [Path(sys.executable).with_name("check-jsonschema")]
    check += ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, ROOT / "docker-compose.yml"], check=True)
    odd = tmp_path / "odd.yml"
    odd.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert subprocess.run([*check, odd], check=False, capture_output=True).returncode == 1


def test_the_service_is_reached_by_few_and_reaches_nothing(compose: dict[str, Any]) -> None:
    service = compose["services"]["service"]
    assert "ports" not in service
    assert service["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    inside = {name for name, one in compose["services"].items() if "inside" in one["networks"]}
    assert inside == {"service", "proxy", "prometheus"}
    assert service["environment"]["CROSSMI_API_KEY"].startswith("${CROSSMI_API_KEY:?")
    assert service["volumes"][0]["read_only"] is True


def filled_in(text: str, given: dict[str, str]) -> str:
    """Text of the compose file with its variables, as the Compose specification fills them in."""
    innermost = re.compile(r"\$\{(\w+)(?:(:[-+?])([^${}]*))?\}")

    def value(found: re.Match[str]) -> str:
        name, how, words = found.groups()
        is_set = given.get(name, "")
        if how == ":?":
            assert is_set, words
        if how == ":+":
            return words if is_set else ""
        return is_set or (words if how == ":-" else "")

    while innermost.search(text):
        text = innermost.sub(value, text)
    return text


def test_a_new_artifact_is_seen_through_the_mount(compose: dict[str, Any]) -> None:
    """The folder of the artifact is swapped for another, so what is mounted must be above it."""
    service = compose["services"]["service"]
    (mount,) = service["volumes"]
    key, models = {"CROSSMI_API_KEY": "k" * 16}, {"CROSSMI_MODELS": "./demo"}
    assert filled_in(mount["source"], models) == "./demo"
    with pytest.raises(AssertionError, match="set the folder that holds"):
        filled_in(mount["source"], {})
    target = Path(mount["target"])
    for given, artifact, index in (
        ({}, target / "artifact", ""),
        ({"CROSSMI_ARTIFACT": "run/artifact", "CROSSMI_INDEX": "index"},
         target / "run/artifact", str(target / "index")),
    ):  # fmt: skip
        filled = {
            name: filled_in(text, key | models | given)
            for name, text in service["environment"].items()
        }
        assert Path(filled["CROSSMI_ARTIFACT"]) == artifact
        assert target in artifact.parents
        assert filled["CROSSMI_INDEX"] == index


@pytest.mark.parametrize("index", ["", "/models/index"])
def test_the_service_takes_its_folders_from_the_environment(
    index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the container: no option names a folder, and an empty variable is none."""
    taken: list[tuple[Path, Path | None]] = []
    monkeypatch.setattr(cli, "_run", lambda artifact, index, *_: taken.append((artifact, index)))
    environment = {"CROSSMI_ARTIFACT": "/models/artifact", "CROSSMI_INDEX": index}
    result = CliRunner().invoke(cli.app, ["--port", "0"], env=environment)
    assert result.exit_code == 0, result.output
    assert taken == [(Path("/models/artifact"), Path(index) if index else None)]


def test_the_notebook_reaches_the_service_with_a_key(compose: dict[str, Any]) -> None:
    services = compose["services"]
    notebook = services["notebook"]
    asked = httpx.URL(notebook["environment"]["CROSSMI_URL"])
    assert asked.host == "proxy"
    assert set(notebook["networks"]) & set(services["proxy"]["networks"])
    conf = (ROOT / "deploy/proxy.conf").read_text()
    assert re.search(rf"listen {asked.port};", conf)
    keyed = notebook["environment"]["CROSSMI_KEY"]
    assert filled_in(keyed, {"CROSSMI_API_KEY": "a"}) == "a"
    assert filled_in(keyed, {"CROSSMI_API_KEY": "a,b", "CROSSMI_KEY": "b"}) == "b"
    for name in ("ask_the_service", "search"):
        text = (ROOT / f"notebooks/{name}.ipynb").read_text()
        assert "CROSSMI_URL" in text
        assert "CROSSMI_KEY" in text


def test_what_is_mounted_into_a_read_only_container_is_a_file(compose: dict[str, Any]) -> None:
    # Compose copies `content:` into the container, which fails where its root is read-only.
    for name, config in compose["configs"].items():
        assert (ROOT / config["file"]).is_file(), name
    assert "secrets" not in compose


def test_the_proxy_fits_the_limits_of_the_service(compose: dict[str, Any]) -> None:
    conf = (ROOT / "deploy/proxy.conf").read_text()
    for timeout in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert re.search(rf"^\s*{timeout} \d+s;$", conf, re.MULTILINE)
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    limit, patience = (
        int(found[1])
        for name in ("client_max_body_size (\\d+)m", "proxy_read_timeout (\\d+)s")
        if (found := re.search(name, conf))
    )
    assert limit << 20 > defaults["max_body_bytes"]
    assert patience > defaults["answer_seconds"]
    grace = int(compose["services"]["service"]["stop_grace_period"].removesuffix("s"))
    settings = Settings.model_construct()
    # The last connections have a few seconds to say what they want.
    assert grace > settings.notice_seconds + settings.drain_seconds + 5
    # One client cannot fill the disk of the proxy, neither by bodies nor by answers.
    (disk,) = compose["services"]["proxy"]["tmpfs"]
    size, connections = (
        int(found[1])
        for found in (
            re.search(r"size=(\d+)m", disk),
            re.search(r"limit_conn clients (\d+);", conf),
        )
        if found
    )
    assert connections * limit < size
    assert "proxy_max_temp_file_size 0;" in conf


def test_the_images_run_their_commands_without_root(compose: dict[str, Any]) -> None:
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    by_name = {stage.splitlines()[0].rsplit(" AS ", 1)[-1]: stage for stage in stages[1:]}
    for container in compose["services"].values():
        if "build" in container:
            assert re.search(r"^USER 10001$", by_name[container["build"]["target"]], re.MULTILINE)
    last = stages[-1]
    assert "HEALTHCHECK" in last
    assert 'ENTRYPOINT ["crossmi-service", "--port", "8000"]' in last
    assert "ENV CROSSMI_ARTIFACT=/models/artifact" in last
    # A read-only container can write no bytecode, so it comes with the image.
    assert re.search(r"^ENV UV_COMPILE_BYTECODE=1$.*^RUN uv", by_name["build"], re.M | re.S)
    copied = set(re.findall(r"^COPY (\w+) \./\w+$", by_name["build"], re.MULTILINE))
    packages = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert packages
    assert copied == set(re.findall(r'"(\w+)"', packages[1]))


# --- each program, run natively ----------------------------------------------------------------


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


@contextmanager
def proxying(folder: Path, *changes: tuple[str, str]) -> Iterator[str]:
    """nginx with the configuration of the compose file but for these changes, on a free port."""
    port = free_port()
    conf = (ROOT / "deploy/proxy.conf").read_text()
    for written, here in (("listen 8080", f"listen 127.0.0.1:{port}"), *changes):
        assert written in conf
        conf = conf.replace(written, here)
    temp = "\n".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temp}\n{conf}\n}}\n"
    )
    url = f"http://127.0.0.1:{port}"
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with program(command, healthy(f"{url}/healthz"), folder):
        yield url


@pytest.fixture(scope="module")
def proxied(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with the very configuration of the compose file, in front of a service."""
    changes = [("http://service:8000", service.url)]
    # Shorter, since a test waits for them.
    changes += [(f"client_{what}_timeout 10s", f"client_{what}_timeout 1s") for what in _WAITED]
    with proxying(tmp_path_factory.mktemp("proxy"), *changes) as url:
        yield url


def test_the_proxy_passes_on_what_is_good(proxied: str) -> None:
    answer = httpx.post(f"{proxied}/embed", content=PATCH, headers=NPY, timeout=60)
    assert answer.status_code == 200
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_the_proxy_is_well_by_its_own_check(compose: dict[str, Any], proxied: str) -> None:
    container = compose["services"]["proxy"]
    assert own_check(container, {"8080": int(proxied.rsplit(":", 1)[1])})()
    assert not own_check(container, {"8080": free_port()})()


def test_the_proxy_words_its_refusals_as_the_service_does(proxied: str) -> None:
    assert httpx.get(f"{proxied}/metrics").status_code == 404
    too_large = {**NPY, "Content-Length": str(34 << 20)}
    with socket.create_connection(("127.0.0.1", int(proxied.rsplit(":", 1)[1]))) as sending:
        lines = [f"{name}: {value}" for name, value in too_large.items()]
        sending.sendall("\r\n".join(["POST /embed HTTP/1.1", "Host: x", *lines, "", ""]).encode())
        answer = sending.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer
    statuses = []
    with httpx.Client(base_url=proxied) as client:
        for _ in range(400):
            answered = client.get("/healthz")
            statuses.append(answered.status_code)
            if answered.status_code == 429:
                refused(answered, 429, "50 times a second")
                assert answered.headers["Retry-After"]
                break
    assert set(statuses) <= {200, 429}


def test_a_client_that_drips_is_cut_off(proxied: str) -> None:
    """Headers that never end, against which uvicorn has no defence, and a body that never ends."""
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n"
    for begun in (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", head + b"Content-Length: 9999\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", int(proxied.rsplit(":", 1)[1]))) as sending:
            sending.settimeout(20)
            sending.sendall(begun)
            answer = sending.recv(4096)  # nothing, or a 408, and then the end
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408")


def test_clients_of_an_outer_proxy_have_limits_of_their_own(tmp_path: Path) -> None:
    """And do not escape theirs by an address that they make up."""
    one, other, made_up = "203.0.113.7", "203.0.113.8", "198.51.100.9"
    with answering("127.0.0.1", b"here") as port:
        changes = [("http://service:8000", f"http://127.0.0.1:{port}")]
        changes += [("rate=50r/s", "rate=1r/m"), ("burst=100", "burst=2")]
        with proxying(tmp_path, *changes) as url:

            def status(forwarded_for: str) -> int:
                return httpx.get(url, headers={"X-Forwarded-For": forwarded_for}).status_code

            assert [status(one) for _ in range(4)] == [200, 200, 200, 429]
            assert status(f"{made_up}, {one}") == 429
            assert status(other) == 200


def test_the_proxy_finds_a_service_that_was_made_anew(tmp_path: Path) -> None:
    """Under the same name at another address, as Docker's own names say from then on."""
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        port = first.enter_context(answering("127.0.0.1", b"first"))
        stack.enter_context(answering("127.0.0.2", b"second", port))
        names = {"service": "127.0.0.1"}
        resolver = stack.enter_context(naming(names))
        changes = [("127.0.0.11 valid=10s", f"127.0.0.1:{resolver} valid=1s")]
        changes += [("service:8000", f"service:{port}")]
        url = stack.enter_context(proxying(tmp_path, *changes))
        assert httpx.get(url).content == b"first"
        first.close()
        names["service"] = "127.0.0.2"
        eventually(lambda: httpx.get(url).content == b"second")


@contextmanager
def answering(address: str, content: bytes, port: int = 0) -> Iterator[int]:
    """The port of a server at an address of loopback whose every answer is `content`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((address, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def naming(addresses: dict[str, str]) -> Iterator[int]:
    """The UDP port of a server of names (RFC 1035) that knows these alone, for a second each."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            asked, sending = self.request
            name = asked[13 : 13 + asked[12]].decode()
            # What came, with one answer: the same name, type A, class IN, a second, four bytes.
            head = asked[:2] + bytes.fromhex("8180 0001 0001 0000 0000")
            record = bytes.fromhex("c00c 0001 0001 00000001 0004")
            address = socket.inet_aton(addresses[name])
            sending.sendto(head + asked[12:] + record + address, self.client_address)

    with UDPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


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
    here = {"=/work": "=.", "=/prometheus": "=data"}
    command = [
        re.sub("=/(work|prometheus)$", lambda found: here[found[0]], part) for part in command
    ]
    command = [part.replace("/etc/prometheus", str(ROOT / "deploy")) for part in command]
    healthy_now = own_check(container, {port: taken})
    assert not healthy_now()
    with program(command, healthy_now, tmp_path):
        pass
