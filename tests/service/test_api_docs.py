"""docs/api.md and docker-compose.yml say what is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from service.errors import STATUS
from service.settings import Settings
from tests.service.conftest import Running

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", API, re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its two head rows."""
    section = API.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_examples_run_in_their_order(service: Running, tmp_path: Path) -> None:
    program = "\n".join(blocks("python")).replace("http://127.0.0.1:8000", service.url)
    assert service.url in program
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "B04" in done.stdout
    (curl,) = blocks("bash")
    assert shutil.which("curl"), "the example needs curl"
    shell = ["bash", "-euc", curl.replace("http://127.0.0.1:8000", service.url)]
    subprocess.run(shell, cwd=tmp_path, check=True)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (128, 96)


def test_the_table_of_limits_is_that_of_the_settings() -> None:
    stated = {cells[0].strip("`"): float(cells[1]) for cells in rows("Limits")}
    fields = {name: field.default for name, field in Settings.model_fields.items()}
    del fields["api_key"]
    assert stated == fields


def test_the_table_of_errors_has_every_status() -> None:
    stated = {int(number) for cells in rows("Errors") for number in cells[0].split(",")}
    assert stated == {*STATUS.values(), 404, 405}


def test_every_path_is_in_the_table(client: Any) -> None:
    paths = set(client.get("/openapi.json").json()["paths"]) | {"/openapi.json"}
    table = API.split("## Pixels in")[0]
    assert set(re.findall(r"^\| `(?:GET|POST) ([^`]+)`", table, re.MULTILINE)) == paths


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


@pytest.mark.parametrize("name", ["service", "proxy"])
def test_containers_can_do_no_more_than_they_need(compose: dict[str, Any], name: str) -> None:
    container = compose["services"][name]
    assert container["read_only"] is True
    assert int(container["user"].split(":")[0]) > 0
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in container
    assert container["mem_limit"]


def test_the_compose_file_fits_its_schema(tmp_path: Path) -> None:
    check = [Path(sys.executable).with_name("check-jsonschema")]
    check += ["--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*check, ROOT / "docker-compose.yml"], check=True)
    odd = tmp_path / "odd.yml"
    odd.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert subprocess.run([*check, odd], check=False, capture_output=True).returncode == 1


def test_only_the_proxy_can_be_reached_and_the_service_reaches_nothing(
    compose: dict[str, Any],
) -> None:
    service, proxy = compose["services"]["service"], compose["services"]["proxy"]
    assert "ports" not in service
    assert service["networks"] == ["inside"]
    assert compose["networks"]["inside"] == {"internal": True}
    assert all(port.startswith("127.0.0.1:") for port in proxy["ports"])
    assert service["environment"]["CROSSMI_API_KEY"].startswith("${CROSSMI_API_KEY:?")
    assert service["volumes"][0]["read_only"] is True


def test_the_proxy_fits_the_limits_of_the_service(compose: dict[str, Any]) -> None:
    conf = compose["configs"]["proxy"]["content"]
    for timeout in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert re.search(rf"^\s*{timeout} \d+s;$", conf, re.MULTILINE)
    limit = re.search(r"client_max_body_size (\d+)m;", conf)
    assert limit
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert int(limit[1]) << 20 > defaults["max_body_bytes"]
    grace = int(compose["services"]["service"]["stop_grace_period"].removesuffix("s"))
    assert grace > defaults["drain_seconds"]


def test_the_image_runs_the_command_without_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER (?!0|root)", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert 'ENTRYPOINT ["crossmi-service", "--artifact", "/artifact"' in final
