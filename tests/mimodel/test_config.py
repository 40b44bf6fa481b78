"""Configurations: what merges, what is refused, what comes back."""

from pathlib import Path

import pytest

from mimodel.config import dump_config, load_config
from mimodel.data.configs import CubeConfig
from mimodel.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def _files(*names: str) -> list[Path]:
    return [CONFIGS / name for name in names]


def test_the_method_file_holds_the_constants_of_the_supplement() -> None:
    files = _files("data/sentinel2.yaml", "method/infomax.yaml")
    config = load_config(files, ["data.cube=cube.zarr"])
    method, training = config.method, config.training
    assert (method.alpha, method.beta, method.gamma) == (0.5, 1.0, 0.1)
    assert method.switched
    assert method.representation == 64
    assert (training.iterations, training.batch_size) == (200_000, 64)
    assert training.learning_rate == 1e-4  # PyYAML alone reads 1e-4 as a string
    assert training.betas == (0.9, 0.999)


def test_later_files_and_then_overrides_win() -> None:
    files = _files("data/sentinel2.yaml", "method/infomax.yaml", "demo.yaml")
    config = load_config(files, ["data.cube=a.zarr", "training.minutes=2.5", "method.gamma=0"])
    assert isinstance(config.data, CubeConfig)
    assert config.data.turn
    assert config.training.batch_size == 32
    assert config.training.iterations == 200_000
    assert config.training.minutes == 2.5
    assert config.method.gamma == 0


def test_a_resolved_configuration_reads_back(tmp_path: Path) -> None:
    files = _files("data/sentinel2.yaml", "method/infomax.yaml")
    config = load_config(files, ["data.cube=cube.zarr", "data.bands=[B08, B04]"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config([tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.cube=c", "training.iteration=5"], "training.iteration"),
        (["data.cube=c", "training.batch_size=1"], "training.batch_size"),
        (["data.cube=c", "data.name=landsat"], "data"),
        (["data.cube"], "not an override"),
        ([], "data.sentinel2.cube: Field required"),
    ],
)
def test_what_is_wrong_is_named(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(_files("data/sentinel2.yaml", "method/infomax.yaml"), overrides)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config([tmp_path / "bad.yaml"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        load_config([tmp_path / "nothing.yaml"])
