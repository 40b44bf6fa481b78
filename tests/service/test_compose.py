"""docker-compose.yml: what it confines, and that its parts fit one another."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service import cli
from service.settings import Settings
from tests.service.conftest import ROOT

SERVICES = {"service", "proxy", "prometheus", "scheduler", "worker", "store", "notebook"}


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
    grace, of_proxy = (
        int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        for name in ("service", "proxy")
    )
    settings = Settings.model_construct()
    # The last connections have a few seconds to say what they want.
    assert grace > settings.notice_seconds + settings.drain_seconds + 5
    # The proxy ends first, and only on this signal with what it has begun.
    assert compose["services"]["proxy"]["depends_on"].keys() == {"service"}
    assert of_proxy >= grace
    assert compose["services"]["proxy"]["stop_signal"] == "SIGQUIT"
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
    # A wheel is made of what the build stage has, and where a part is missing, without a word.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    parts = wheel["targets"]["wheel"]
    assert folders_copied(by_name["build"]) == {*parts["packages"], *parts["shared-data"]}


def folders_copied(stage: str) -> set[str]:
    """Folders of this repository that a stage of the Dockerfile has under their own names."""
    return set(re.findall(r"^COPY (\w+) \./\1$", stage, re.MULTILINE))


def test_jupyter_opens_on_the_notebooks(compose: dict[str, Any]) -> None:
    """And a command there finds the configurations, in the image as beside the volume."""
    container = compose["services"]["notebook"]
    opened = next(
        part.partition("=")[2] for part in container["command"] if "--notebook-dir" in part
    )
    mounts = [mount.split(":") for mount in container["volumes"]]
    assert ["work", opened] in mounts
    for name, pattern in (("notebooks", "*.ipynb"), ("configs", "method/*.yaml")):
        assert [f"./{name}", f"{opened}/{name}", "ro"] in mounts
        assert list((ROOT / name).glob(pattern))
    dockerfile = (ROOT / "Dockerfile").read_text()
    (workbench,) = (
        stage for stage in dockerfile.split("\nFROM ") if stage.startswith("base AS workbench\n")
    )
    assert f"WORKDIR {opened}\n" in workbench
    assert folders_copied(workbench) == {"configs"}
