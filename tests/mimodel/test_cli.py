"""The command's words: examples, sentences and exit codes, as a user meets them."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mimodel.artifact import Artifact
from mimodel.cli import app

CONFIGS = Path(__file__).parents[2] / "configs"
METHOD = ["--config", str(CONFIGS / "method" / "infomax.yaml")]
CUBE = ["--config", str(CONFIGS / "data" / "sentinel2.yaml"), *METHOD]
STAGE_2 = ["--config", str(CONFIGS / "method" / "infomax-exclusive.yaml")]
MNIST = ["--config", str(CONFIGS / "data" / "colored-mnist.yaml")]


def _mimodel(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_importing_mimodel_needs_neither_rasters_nor_training_extras() -> None:
    heavy = ("rasterio", "sentinelhub", "torchgeo", "xarray", "zarr", "sklearn", "matplotlib")
    heavy += ("s2pairs", "mimodel.data", "faiss", "PIL")
    modules = "mimodel.artifact, mimodel.similarity, mimodel.index"
    code = f"import sys, {modules}; print(set(sys.modules) & set({heavy}))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "command", ["train", "probe", "embed", "leakage", "reproduce", "data", "info"]
)
def test_each_command_has_help_with_an_example(command: str) -> None:
    answer = _mimodel(command, "--help")
    assert answer.exit_code == 0
    assert f"Example: mimodel {command}" in " ".join(answer.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", *CUBE, "--set", "data.cube=nowhere.zarr", "--out", "OUT"], "nowhere.zarr"),
        (["train", *CUBE, "--set", "data.cube=c", "--set", "method.d=1", "--out", "OUT"], "d: "),
        (["train", "--config", "nothing.yaml", "--out", "OUT"], "nothing.yaml"),
        (["info", "nowhere"], "nowhere"),
        (["train", *CUBE, "--set", "data.bands=[B04", "--out", "OUT"], "is not a YAML value"),
        (["train", *CUBE, "--set", "data.cube=2020-13-45", "--out", "OUT"], "is not a YAML value"),
        (["train", *CUBE, "--set", "training.seed=-1", "--out", "OUT"], "training.seed"),
        (["train", *CUBE, "--set", "training.betas=[1, 1]", "--out", "OUT"], "training.betas"),
        (["train", *MNIST, *METHOD, "--set", "data.folder=nil", "--out", "OUT"], "data mnist --to"),
        (["train", *MNIST, *STAGE_2, "--set", "data.folder=nil", "--set", "method.shared=nil",
          "--out", "OUT"], "nil holds no artifact"),
        (["leakage", "nowhere", "--out", "OUT"], "nowhere holds no artifact"),
        (["reproduce", "mnist", "--data", "ARTIFACT/README.md", "--out", "OUT"], "README.md"),
        (["probe", "nowhere", "--eurosat", "no.tar", "--out", "OUT"], "nowhere"),
        (["probe", "nowhere", "--eurosat", "no.tar", "--out", "ARTIFACT/README.md"], "README.md"),
        (["probe", "ARTIFACT", "--out", "OUT"], "either --cube with --labels, or --eurosat"),
        (["probe", "ARTIFACT", "--eurosat", "no.tar", "--out", "OUT"], "no.tar"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, folder: Path, tmp_path: Path
) -> None:
    places = {"OUT": str(tmp_path / "out"), "ARTIFACT": str(folder)}
    for name, path in places.items():
        arguments = [word.replace(name, path) for word in arguments]
    answer = _mimodel(*arguments)
    assert answer.exit_code == 2
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not answer.stdout


def test_a_flipped_bit_in_an_artifact_ends_with_a_sentence(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    answer = _mimodel("info", str(folder))
    assert answer.exit_code == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "damaged" in answer.stderr
    assert not answer.stdout


def test_info_prints_the_card_and_the_digest(folder: Path) -> None:
    answer = _mimodel("info", str(folder))
    assert answer.exit_code == 0
    assert Artifact.load(folder).digest in answer.stdout
    assert "# Untrained" in answer.stdout
