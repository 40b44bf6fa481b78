"""docs/api.md says what is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    del fields["api_key"], fields["backend"]
    assert stated == fields


def test_the_table_of_errors_has_every_status() -> None:
    stated = {int(number) for cells in rows("Errors") for number in cells[0].split(",")}
    assert stated == {*STATUS.values(), 404, 405}


def test_every_path_is_in_the_table(client: Any) -> None:
    paths = set(client.get("/openapi.json").json()["paths"]) | {"/openapi.json"}
    table = API.split("## Pixels in")[0]
    assert set(re.findall(r"^\| `(?:GET|POST) ([^`]+)`", table, re.MULTILINE)) == paths
