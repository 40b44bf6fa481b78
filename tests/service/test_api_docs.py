"""docs/api.md says what is so."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.routing import BaseRoute, Route

from mimodel.artifact import Artifact
from s2pairs.cube import Cube
from service.app import create_app
from service.errors import STATUS
from service.settings import Settings
from tests.service.conftest import Running
from tests.service.test_load import app_in_a_thread

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


def parameter_rows(heading: str) -> dict[str, str]:
    """Query parameters of the table under a heading, and the default of each."""
    section = API.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = section.split("| query parameter |")[1].split("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert cells
    return {
        name: row[-1].strip("| ") if len(row) == 3 else ""
        for row in cells
        for name in re.findall(r"`(\w+)`", row[0])
    }


def test_the_tables_of_parameters_are_those_of_the_openapi_document(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = {
        path: {one["name"]: one["schema"] for one in paths[path]["post"]["parameters"]}
        for path in ("/preview", "/embed", "/classify", "/similarity", "/search")
    }
    pixels = described.pop("/preview")
    assert parameter_rows("Pixels in").keys() == pixels.keys()
    alone = {path: found.keys() - pixels.keys() for path, found in described.items()}
    assert parameter_rows("Similarity maps").keys() == alone["/similarity"]
    # Which kind of query it is stands in the text.
    assert parameter_rows("Search").keys() == alone["/search"] - {"patch", "date", "row", "col"}
    answers = API.split("## Answers\n")[1].split("\n## ")[0]
    for name in alone["/embed"] | alone["/classify"]:
        assert f"`{name}" in answers
    for heading, schemas in (
        ("Pixels in", pixels),
        ("Similarity maps", described["/similarity"]),
        ("Search", described["/search"]),
    ):
        for name, stated in parameter_rows(heading).items():
            default = schemas[name].get("default")
            if default is None or default == []:
                assert not re.fullmatch(r"`.*`|[-0-9.]+", stated), f"{name} has no default"
            elif isinstance(default, str):
                assert stated == f"`{default}`"
            else:
                assert float(stated) == default


@pytest.mark.slow
def test_the_commands_run(artifact_folder: Path, cube: Cube, tmp_path: Path) -> None:
    for folder in ("runs/demo", "demo/run"):
        shutil.copytree(artifact_folder, tmp_path / folder / "artifact")
    shutil.copytree(cube.path, tmp_path / "demo/cube.zarr")
    programs = {"crossmi-service": "service.cli", "mimodel": "mimodel"}
    commands = [shlex.split(line) for line in "".join(blocks("console")).splitlines()]
    assert len(commands) == 3
    for name, *options in commands:
        serves = name == "crossmi-service"
        free = ["--port", "0"] if serves else []  # said last, it wins
        with subprocess.Popen(
            [sys.executable, "-m", programs[name], *options, *free],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            if serves:
                assert "http://127.0.0.1:" in process.stdout.readline()
                process.terminate()
            process.stdout.read()
            assert process.wait(timeout=300) == 0, name


def test_the_table_of_errors_has_every_status() -> None:
    stated = {int(number) for cells in rows("Errors") for number in cells[0].split(",")}
    assert stated == {*STATUS.values(), 404, 405}


def routes_of(routes: Sequence[BaseRoute]) -> Iterator[Route]:
    """All of an app, also those of the routers that it includes."""
    for one in routes:
        if isinstance(one, Route):
            yield one
        else:
            yield from routes_of(getattr(one, "original_router").routes)  # noqa: B009


def test_the_paths_that_are_open_where_a_key_is_wanted_are_those_that_are_named(
    artifact: Artifact,
) -> None:
    listed = re.search(r"makes every path\s+but (.*?) want\s+`Authorization", API, re.DOTALL)
    assert listed
    named = set(re.findall(r"`(/[^`]*)`", listed[1]))
    app = create_app(artifact, Settings.model_validate({"api_key": "correct-horse-battery"}))
    paths = {route.path: route for route in routes_of(app.routes)}
    assert {"/embed", "/web/page.js", "/openapi.json"} <= set(paths)
    with app_in_a_thread(app) as client:
        found = set()
        for path, route in paths.items():
            method = "POST" if "POST" in (route.methods or ()) else "GET"
            asked = path.replace("{patch}", "0").replace("{date}", "0")
            if client.request(method, asked).status_code != 401:
                found.add("/web/*" if path.startswith("/web/") else path)
    assert found == named


def test_answers_name_their_model_as_is_said(service: Running) -> None:
    """In JSON or in a header; those that say nothing of a model have neither."""
    with httpx.Client(base_url=service.url) as client:
        documents = client.get("/openapi.json").json()["components"]["schemas"]
        with_artifact = {
            name for name, one in documents.items()
            if name.endswith("Answer") and "artifact" in one["properties"]
        }  # fmt: skip
        assert with_artifact == {
            "EmbedAnswer",
            "ClassifyAnswer",
            "SimilarityAnswer",
            "SearchAnswer",
        }
        digest = client.get("/models").json()["models"][0]["artifact"]["digest"]
        index = client.get("/index")
        assert "artifact" not in index.json()
        assert index.headers["X-Artifact"] == digest


def test_every_path_is_in_the_table(client: Any) -> None:
    paths = set(client.get("/openapi.json").json()["paths"]) | {"/openapi.json"}
    table = API.split("## Pixels in")[0]
    assert set(re.findall(r"^\| `(?:GET|POST) ([^`]+)`", table, re.MULTILINE)) == paths
