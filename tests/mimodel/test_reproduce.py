"""A study from its files to its page; the fetching of its files."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mimodel.artifact import Artifact
from mimodel.cli import app
from mimodel.config import load_config
from mimodel.data import fetch, mnist
from mimodel.errors import ConfigError, DataError
from mimodel.reproduce import Settings, reproduce
from mimodel.studies import STUDIES
from tests.mimodel.made_digits import write_digits

CONFIGS = Path(__file__).parents[2] / "configs"


def _reproduce(data: Path, out: Path, *more: str) -> str:
    # fmt: off
    arguments = [
        "reproduce", "mnist", "--data", str(data), "--out", str(out), "--configs", str(CONFIGS),
        "--iterations", "5", "--classifier-iterations", "10", "--set", "training.batch_size=4",
        "--set", "training.threads=1", *more,
    ]
    # fmt: on
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_study_goes_from_digits_to_a_page_and_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "digits", tmp_path / "study"
    data.mkdir()
    write_digits(data, monkeypatch)
    _reproduce(data, out, "--set", "exclusive:method.adversarial=0.2")
    page = (out / "report.md").read_text()
    assert "| both stages | shared | 5 | 50000 |" in page
    assert "| both stages | exclusive | 1 | 10000 |" in page
    assert "Variant: training.batch_size=4, training.threads=1, exclusive:" in page
    for row in (
        "| both stages | X | shared | digit | 100.00 | 94.48 |",
        "| both stages | Y | exclusive | digit | 10.00 | 13.75",
    ):
        assert row in page
    for picture in ("shared/curves.png", "leakage-exclusive/learning-y.png"):
        assert (out / "seed-0" / picture).stat().st_size > 1000
    assert "adversarial: 0.2" in (out / "seed-0/exclusive/config.yaml").read_text()

    stage_1, stage_2 = (
        Artifact.load(out / "seed-0" / stage / "artifact-y") for stage in ("shared", "exclusive")
    )
    kept = stage_2.networks.state_dict()
    for name, tensor in stage_1.networks.state_dict().items():
        assert torch.equal(kept[name], tensor), name
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert len(times) == 4
    again = _reproduce(data, out, "--set", "exclusive:method.adversarial=0.2")
    assert "reading digit from" not in again  # no classifier is fitted a second time
    assert "reading digit from" in _reproduce(
        data, out, "--set", "exclusive:method.adversarial=0.2", "--classifier-iterations", "5"
    )
    assert times == {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}


def test_what_is_the_studys_own_cannot_be_set(tmp_path: Path) -> None:
    settings = Settings(CONFIGS, (), ["training.seed=7"], 5, 3, 10)
    with pytest.raises(ConfigError, match=r"training\.seed is the study's own"):
        reproduce(
            STUDIES["mnist"],
            tmp_path,
            tmp_path / "out",
            settings,
            training=lambda _: _ignore,
            report=print,
        )


@pytest.mark.parametrize(
    ("study", "override"),
    [("ablation", "method.gamma=0.05"), ("sweep", "exclusive:method.adversarial=0.1")],
)
def test_what_a_study_varies_cannot_be_set_either(
    tmp_path: Path, study: str, override: str
) -> None:
    settings = Settings(CONFIGS, (), [override], 5, 1, 10)
    with pytest.raises(ConfigError, match="is the study's own"):
        reproduce(
            STUDIES[study],
            tmp_path,
            tmp_path / "out",
            settings,
            training=lambda _: _ignore,
            report=print,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(STUDIES))
def test_each_study_names_configurations_that_exist_and_reads_them(name: str) -> None:
    """What it sets is settable, and no two stages of one folder differ."""
    study = STUDIES[name]
    settings = {}
    for stage in (stage for arm in study.arms for stage in arm.stages):
        files = [
            CONFIGS / "data" / f"{study.data}.yaml",
            CONFIGS / "method" / f"{stage.method}.yaml",
        ]
        more = [*stage.overrides, "data.folder=x"]
        if stage.stands_on:
            more.append(f"method.shared={stage.stands_on}")
        config = load_config(files, more)
        assert settings.setdefault(stage.folder, config) == config
    folders = [arm.folder for arm in study.arms]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("leakage") for folder in folders)
    for figures in study.published.values():
        assert {arm for arm, *_ in figures} <= {arm.name for arm in study.arms}


def _ignore(*_: object) -> None:
    pass


def test_files_that_are_there_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(fetch, "_WAYS", {})
    fetch.fetch_mnist(write_digits(tmp_path, monkeypatch), said.append)
    assert said == [f"{tmp_path} has MNIST already, verified"]


def test_what_comes_is_verified_and_a_second_way_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_digits(source, monkeypatch)

    def forged(scratch: Path) -> None:
        for name in mnist.FILES:
            (scratch / name).write_bytes(b"forged")

    def broken(scratch: Path) -> None:
        raise ImportError("no torchvision")

    def good(scratch: Path) -> None:
        import gzip

        for name in mnist.FILES:
            packed = (source / f"{name}.gz").read_bytes()
            (scratch / name).write_bytes(gzip.decompress(packed))

    monkeypatch.setattr(fetch, "_WAYS", {"a forger": forged, "a cut line": broken})
    with pytest.raises(DataError, match=r"a forger: .* not MNIST's; a cut line: no torchvision"):
        fetch.fetch_mnist(out, lambda _: None)
    assert mnist.missing_files(out) == list(mnist.FILES)
    monkeypatch.setattr(fetch, "_WAYS", {"a forger": forged, "a friend": good})
    fetch.fetch_mnist(out, lambda _: None)
    assert mnist.missing_files(out) == []
    assert sorted(file.name for file in out.iterdir()) == sorted(mnist.FILES)
    shutil.rmtree(out)
