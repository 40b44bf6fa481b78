"""The whole line, by the commands that a user types: tiles to served embeddings."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimodel.cli import app as mimodel
from s2pairs.cli import app as s2pairs
from tests.service.conftest import serving

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(folder: Path, command: str, **environment: str) -> str:
    """What a command prints; it must succeed."""
    program, *arguments = command.split()
    done = subprocess.run(
        [str(BIN / program), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def typed(folder: Path, command: str) -> None:
    """What `run` does, in this process: a command that imports torch costs seconds to start."""
    program, *arguments = command.split()
    with contextlib.chdir(folder):
        done = CliRunner().invoke({"s2pairs": s2pairs, "mimodel": mimodel}[program], arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything up to a probed artifact was made."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "tiles.txt").write_text("31TCJ  # a comment\n\n")
    configs = " ".join(
        f"--config {ROOT / 'configs' / name}"
        for name in ("data/sentinel2.yaml", "method/infomax.yaml", "demo.yaml")
    )
    typed(
        folder,
        "s2pairs simulate --tiles tiles.txt --out products --size 1024 --dates 2 "
        "--cloudy-dates 0 --start 2020-04-01 --end 2020-09-30",
    )
    typed(
        folder,
        "s2pairs build --tiles tiles.txt --source safe:products --out cube.zarr --dates 2 "
        "--regions 12 --region-size 256",
    )
    typed(folder, "s2pairs check cube.zarr")
    typed(
        folder,
        f"mimodel train {configs} --set data.cube=cube.zarr --set training.iterations=2 "
        "--set training.batch_size=4 --out run",
    )
    typed(
        folder,
        "mimodel probe run/artifact --cube cube.zarr --labels products/truth/landcover "
        "--iterations 20 --dates 2 --out probe",
    )
    run(folder, "mimodel embed --cube cube.zarr --artifact run/artifact --out index")
    return folder


def test_what_the_line_leaves_behind(line: Path) -> None:
    made = {path.name for path in (line / "run").iterdir()}
    assert made >= {"artifact", "metrics.jsonl", "curves.png", "config.yaml", "tensorboard"}
    assert {path.name for path in (line / "run" / "artifact").iterdir()} == {
        "model.safetensors",
        "README.md",
        "SHA256SUMS",
    }
    report = (line / "probe" / "probe.md").read_text()
    for features in ("shared", "image statistics", "untrained encoder"):
        assert re.search(rf"\| {features} \| MLP \(Table 7\) \| [\d.]+ \(", report)
    assert "raw pixels" in report


def test_the_specification_of_the_cube_opens_one(line: Path) -> None:
    specification = (ROOT / "docs/cube.md").read_text()
    examples = "\n".join(re.findall(r"```python\n(.*?)```", specification, re.DOTALL))
    (way_out,) = re.findall(r"`(cube\.drop_vars.*?)`", specification)
    # affine warns of what rioxarray does with it
    warnings = ["-W", "error", "-W", "ignore::PendingDeprecationWarning"]
    subprocess.run(
        [sys.executable, *warnings, "-c", f"{examples}\n{way_out}"], cwd=line, check=True
    )


def test_the_tour_over_http(line: Path) -> None:
    pictures = line / "pictures"
    pictures.mkdir()
    printed = run(
        ROOT,
        f"python {ROOT / 'examples/first_light.py'} --artifact {line / 'run/artifact'} "
        f"--cube {line / 'cube.zarr'} --out {pictures}",
    )
    difference = re.search(r"largest difference to embedding in process (\S+)", printed)
    assert difference
    assert float(difference[1]) < 1e-5
    assert "/classify:" in printed
    assert "service: stopped" in printed
    assert (pictures / "similarity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_notebooks_run(line: Path, tmp_path: Path) -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    with serving(line / "run" / "artifact", "--index", str(line / "index")) as service:
        for notebook in notebooks:
            copy = shutil.copy(notebook, tmp_path)
            run(
                tmp_path,
                f"jupyter-execute {copy}",
                CROSSMI_URL=service.url,
                CROSSMI_CUBE=str(line / "cube.zarr"),
                MPLBACKEND="module://matplotlib_inline.backend_inline",
            )
