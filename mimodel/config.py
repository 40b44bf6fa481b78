"""What a run is, as YAML: the data, the method, the training. The only reader of YAML."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from sysconfig import get_path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from mimodel.data.configs import (
    BenchmarkConfig,
    CubeConfig,
    DataConfig,
    EuroSatConfig,
    Section,
)
from mimodel.data.pairs import PairSource
from mimodel.errors import ConfigError
from mimodel.methods.configs import MethodConfig

_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(Section):
    """Adam with the supplement's learning rate and momenta; what it leaves open is ours."""

    iterations: Annotated[int, Field(ge=1)] = 200_000
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Finish after this time in the loop, however many iterations that was; the artifact says how
    many. For demonstrations: what comes out depends on the machine."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    readers: Annotated[int, Field(ge=1)] = 1
    """Threads that make batches while the step before is computed; one batch each waits."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    decay: Literal["none", "cosine"] = "none"
    """cosine lets the learning rate fall to nothing over the run (over `minutes`, where these end
    it). Ours: a short run may then begin with a high one."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 autocast where the hardware multiplies it natively."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of a CPU run; none named: all cores. One thread makes a run repeatable bit by bit."""
    deterministic: bool = False
    """Use deterministic algorithms alone, so that a run on a GPU is repeatable too; slower."""
    compile: bool = False
    """Compile the encoders with torch.compile: for GPUs. On a CPU it needs a C++ compiler and takes
    minutes to begin."""
    batch_norm: Literal["joint", "process"] = "joint"
    """Where several processes train together: statistics of the joint batch, or of each its own."""
    log_every: Annotated[int, Field(ge=1)] = 50
    checkpoint_every: Annotated[int, Field(ge=1)] = 500


class RunConfig(Section):
    """One training run, as it is written into its folder."""

    data: DataConfig
    method: MethodConfig
    training: TrainingConfig = TrainingConfig()

    @property
    def is_benchmark(self) -> bool:
        """Whether the data's factors are all known."""
        return not isinstance(self.data, CubeConfig | EuroSatConfig)

    def open(self, device: torch.device) -> PairSource:
        """The pairs to learn from. Those of benchmarks, which are small, are made on the device
        that trains; those of a cube where `data.device` says."""
        seed, normalisation = self.training.seed, self.method.normalisation()
        if isinstance(self.data, CubeConfig | EuroSatConfig):
            return self.data.open(seed, normalisation)
        return self.data.open(seed, normalisation, device)

    def benchmark(self) -> BenchmarkConfig:
        """The data, where their factors are known."""
        if isinstance(self.data, CubeConfig | EuroSatConfig):
            raise ConfigError(
                f"the factors behind {self.data.name} are not known, so nothing can be said of "
                "what leaks; `mimodel probe` reads labels from its representations"
            )
        return self.data


def load_config(files: Iterable[Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Merge YAML files, then `key.key=value` overrides, and check the whole.

    Later files win field by field. Everything wrong is a `ConfigError` that names the field.
    """
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _read(file))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r} is not an override; expected training.iterations=1000")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{override!r}: {value!r} is not a YAML value") from error
        _merge(merged, _nested(key.strip().split("."), parsed))
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigError(f"the configuration is not valid: {problems}") from error


def default_configs() -> Path:
    """The configurations that come with the package: of the source tree, or as installed."""
    beside = Path(__file__).parents[1] / "configs"
    return beside if beside.is_dir() else Path(get_path("data")) / "share" / "crossmi" / "configs"


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {file}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not a mapping; expected keys such as data, method, training")
    return content


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
