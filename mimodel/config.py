"""What a run is, as YAML: the data, the method, the training. The only reader of YAML."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from sysconfig import get_path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mimodel.artifact import Artifact, run_artifacts
from mimodel.data.pairs import Domain, LabelledImages, PairSource
from mimodel.errors import ConfigError
from mimodel.methods.base import Method, RepresentationScale
from mimodel.networks import LEAKY_SLOPE, EncoderSpec
from mimodel.normalisation import Normalisation
from mimodel.objectives import AdversarialForm, L1Norm

if TYPE_CHECKING:
    from mimodel.data.words import Words


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CubeConfig(_Model):
    """Pairs of dates from a Sentinel-2 cube made by `s2pairs build`."""

    name: Literal["sentinel2"]
    cube: Path | str
    """A path, or a URL such as s3://bucket/cube.zarr."""
    bands: tuple[str, ...] | None = None
    """Bands by name, in the network's order; none named: all of the cube's."""
    min_valid: Annotated[float, Field(ge=0, le=1)] = 0.95
    """A date of a place counts from this fraction of valid pixels on. Ours."""
    memory_gb: Annotated[float, Field(ge=0)] = 6.0
    """A training split up to this size is held in memory; a larger one is read batch by batch."""
    device: str | None = None
    """Hold the whole split on this torch device instead, such as cuda, and make batches there."""
    min_clear: Annotated[float, Field(ge=0, le=1)] = 0.5
    """And from this fraction of pixels on that are neither cloud nor shadow, as far as the source
    knew. Ours."""
    patch: Annotated[int, Field(ge=7, le=64)] = 64
    """Side of the images of a pair. Below 64 they are cut out of the cube's patches, each pair
    anywhere, at both dates alike. Ours: 9, for maps of pixels."""
    turn: bool = False
    """See each pair in one of eight orientations, both dates alike. Ours: an encoder soon knows few
    places by heart, and what a place is does not depend on north."""

    def open(self, seed: int, normalisation: Normalisation | None = None) -> PairSource:
        from mimodel.data.sentinel2 import CubePairs

        return CubePairs(
            self.cube,
            bands=self.bands,
            min_valid=self.min_valid,
            min_clear=self.min_clear,
            memory_gb=self.memory_gb,
            device=self.device,
            patch=self.patch,
            turn=self.turn,
            seed=seed,
            normalisation=normalisation,
        )


class EuroSatConfig(_Model):
    """Pairs of simulated acquisitions of EuroSAT RGB images; see `mimodel.data.eurosat`."""

    name: Literal["eurosat"]
    archive: Path
    gain: Annotated[float, Field(ge=1)] = 1.3
    band_gain: Annotated[float, Field(ge=1)] = 1.1
    haze: Annotated[float, Field(ge=0)] = 0.05
    shift: Annotated[int, Field(ge=0, le=32)] = 8

    def open(self, seed: int, normalisation: Normalisation | None = None) -> PairSource:
        from mimodel.data.eurosat import EuroSatPairs

        return EuroSatPairs(
            self.archive,
            gain=self.gain,
            band_gain=self.band_gain,
            haze=self.haze,
            shift=self.shift,
            seed=seed,
            normalisation=normalisation,
        )


class ColoredMnistConfig(_Model):
    """Pairs of a digit class in colours; see `mimodel.data.mnist`."""

    name: Literal["colored-mnist"]
    folder: Path
    """Holds MNIST's four idx files; `mimodel data mnist` fetches them."""
    same_image: bool = False
    """True pairs each image with itself in another colour."""

    def open(
        self, seed: int, normalisation: Normalisation | None, device: torch.device
    ) -> PairSource:
        from mimodel.data.mnist import ColoredMnistPairs

        return ColoredMnistPairs(
            self.folder,
            same_image=self.same_image,
            seed=seed,
            normalisation=normalisation,
            device=device,
        )

    def labelled(self, domain: Domain, seed: int) -> LabelledImages:
        from mimodel.data.mnist import labelled_mnist

        return labelled_mnist(self.folder, domain, seed=seed)


class Shapes3DConfig(_Model):
    """Pairs of one scale, shape and orientation in colours; see `mimodel.data.shapes3d`."""

    name: Literal["shapes3d"]
    folder: Path
    """Holds what `mimodel data shapes3d` makes, of the real file or by rendering."""
    probe_images: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (20_000, 10_000)
    """How many images of the 480,000 a probe is fitted on, and scored on. Ours."""

    def open(
        self, seed: int, normalisation: Normalisation | None, device: torch.device
    ) -> PairSource:
        from mimodel.data.shapes3d import Shapes3DPairs

        return Shapes3DPairs(self.folder, seed=seed, normalisation=normalisation, device=device)

    def labelled(self, domain: Domain, seed: int) -> LabelledImages:
        from mimodel.data.shapes3d import labelled_shapes3d

        train, test = self.probe_images
        return labelled_shapes3d(self.folder, seed=seed, train=train, test=test)


class _WordsConfig(_Model):
    """Words by many writers; pairs are of one hand. See `mimodel.data.words`."""

    folder: Path
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Draws the split; apart from the run's seed, since every run and measure needs the same."""

    def open(
        self, seed: int, normalisation: Normalisation | None, device: torch.device
    ) -> PairSource:
        from mimodel.data.words import WordPairs

        return WordPairs(self.read(), seed=seed, normalisation=normalisation, device=device)

    def labelled(self, domain: Domain, seed: int) -> LabelledImages:
        from mimodel.data.words import labelled_words

        return labelled_words(self.read())

    @abstractmethod
    def read(self) -> "Words":
        """The words in `folder`."""


class IamConfig(_WordsConfig):
    """The user's own copy of IAM; see `mimodel.data.iam`."""

    name: Literal["iam"]
    per_writer: Annotated[int, Field(ge=1)] = 150
    """Words of each writer, at most; the paper says 150, and its 8,750 images are 175."""

    def read(self) -> "Words":
        from mimodel.data.iam import read_iam

        return read_iam(self.folder, seed=self.split_seed, per_writer=self.per_writer)


class WriterDigitsConfig(_WordsConfig):
    """Numbers in the digits of MNIST's writers; see `mimodel.data.writer_digits`."""

    name: Literal["writer-digits"]

    def read(self) -> "Words":
        from mimodel.data.writer_digits import read_writer_digits

        return read_writer_digits(self.folder, self.folder, seed=self.split_seed)


class FontWordsConfig(_WordsConfig):
    """Words in handwriting fonts; see `mimodel.data.font_words`."""

    name: Literal["font-words"]

    def read(self) -> "Words":
        from mimodel.data.font_words import font_words

        return font_words(self.folder, seed=self.split_seed)


class SharedStageConfig(_Model):
    """The shared stage; coefficients of the supplement, section 1.4."""

    name: Literal["infomax-shared"]
    alpha: float = 0.5
    beta: float = 1.0
    gamma: float = 0.1
    representation: Annotated[int, Field(ge=1)] = 64
    switched: bool = True
    """False is the ablation "non-SSR" of Table 6."""
    encoders: Literal[1, 2] = 1
    """2 where X and Y are of two domains, as in colored-MNIST."""
    distance_inputs: RepresentationScale = "as they are"
    """standardised: over the batch, so that the distance of the two representations cannot be met
    by making both small. Ours."""
    distance_norm: L1Norm = "mean"
    """Over the dimensions; the paper does not say."""
    negatives: Annotated[int, Field(ge=1)] = 1
    """Draws of the product of the marginals for each pair; the paper does not say."""
    score_bound: Annotated[float, Field(gt=0)] | None = None
    """Keeps T within this bound while training. Ours."""
    encoded: Literal["apart", "together"] = "apart"
    """together: both images of a pair in one batch of the one encoder, whose BatchNorm then takes
    its statistics over both. The paper does not say."""
    leaky_slope: Annotated[float, Field(ge=0, lt=1)] = LEAKY_SLOPE
    """Of the encoder's LeakyReLU; the paper does not say. The exclusive encoder has the same."""

    @model_validator(mode="after")
    def _together_is_one(self) -> "SharedStageConfig":
        if self.encoded == "together" and self.encoders == 2:
            raise ValueError("encoded=together needs one encoder; leave method.encoders at 1")
        return self

    def normalisation(self) -> None:
        """The data's own: this stage comes first."""
        return

    def build(self, bands: int, image_size: tuple[int, int]) -> Method:
        from mimodel.methods.infomax import SharedStage

        spec = EncoderSpec.for_images(bands, image_size, self.representation)
        return SharedStage(
            spec.model_copy(update={"leaky_slope": self.leaky_slope}),
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            switched=self.switched,
            encoders=self.encoders,
            distance_inputs=self.distance_inputs,
            distance_norm=self.distance_norm,
            negatives=self.negatives,
            score_bound=self.score_bound,
            encoded=self.encoded,
        )


class ExclusiveStageConfig(_Model):
    """The exclusive stage; coefficients of the supplement, ours for Sentinel-2."""

    name: Literal["infomax-exclusive"]
    shared: Path
    """Run folder of the shared stage."""
    representation: Annotated[int, Field(ge=1)] = 64
    alpha: float = 0.5
    beta: float = 1.0
    adversarial: Annotated[float, Field(ge=0)] = 0.01
    """The paper's lambda."""
    form: AdversarialForm = "non-saturating"
    discriminator_inputs: RepresentationScale = "as they are"
    """standardised: over the batch. Ours."""
    discriminator_steps: Annotated[int, Field(ge=1)] = 1
    discriminator_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the discriminator; none named: that of the run."""
    levels: Annotated[int, Field(ge=2)] | None = None
    """Rounds each dimension of E to one of so many values; none named: to none. Ours."""
    independence: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the dependence of S and E (a kernel's criterion) beside the adversary. Ours."""
    first: Literal["encoder", "discriminator"] = "encoder"
    """Who moves first in a step; the paper does not say. The discriminator then has representations
    of its own made, of which BatchNorm's running statistics hear too."""
    negatives: Annotated[int, Field(ge=1)] = 1
    """As in the shared stage."""
    score_bound: Annotated[float, Field(gt=0)] | None = None
    """As in the shared stage."""

    def normalisation(self) -> Normalisation:
        """That of the shared stage: the frozen encoder reads nothing else."""
        return self._artifacts()[0].spec.normalisation

    def check_data(self, digest: str) -> None:
        """Refuse another split of a benchmark than the shared encoder has learnt from."""
        before = self._artifacts()[0].spec.provenance.get("data_digest", digest)
        if before != digest:
            raise ConfigError(
                f"the shared stage of {self.shared} was trained on other data, or another split "
                "of them, than this; images that it has learnt could be among those for testing"
            )

    def build(self, bands: int, image_size: tuple[int, int]) -> Method:
        from mimodel.methods.infomax import ExclusiveStage

        artifacts = self._artifacts()
        read = artifacts[0].spec.encoder
        if (read.in_channels, read.image_size) != (bands, image_size):
            raise ConfigError(
                f"the shared encoder of {self.shared} reads {read.in_channels} bands of "
                f"{read.image_size} pixels, and the data have {bands} of {image_size}; train the "
                "shared stage on the same data first"
            )
        return ExclusiveStage(
            artifacts,
            representation=self.representation,
            alpha=self.alpha,
            beta=self.beta,
            adversarial=self.adversarial,
            form=self.form,
            discriminator_inputs=self.discriminator_inputs,
            discriminator_steps=self.discriminator_steps,
            discriminator_rate=self.discriminator_rate,
            first=self.first,
            levels=self.levels,
            independence=self.independence,
            negatives=self.negatives,
            score_bound=self.score_bound,
        )

    def _artifacts(self) -> tuple[Artifact, ...]:
        """The shared stage's: one, or that of X and that of Y."""
        artifacts = run_artifacts(self.shared)
        first = artifacts[0].spec
        if any(artifact.spec.exclusive_encoder for artifact in artifacts):
            raise ConfigError(
                f"{self.shared} is a run of the exclusive stage; name the run of the shared stage"
            )
        if any(artifact.spec.normalisation != first.normalisation for artifact in artifacts):
            raise ConfigError(f"the artifacts of X and Y in {self.shared} are of different runs")
        return artifacts


class VaeConfig(_Model):
    """A variational autoencoder with the decoder of Table 20, to compare with."""

    name: Literal["vae"]
    representation: Annotated[int, Field(ge=1)] = 128
    likelihood: Literal["bernoulli", "gaussian"] = "gaussian"
    """The paper does not say which. bernoulli is for pixels that are -1 or 1."""

    def normalisation(self) -> None:
        """The data's own."""
        return

    def build(self, bands: int, image_size: tuple[int, int]) -> Method:
        from mimodel.methods.vae import VariationalAutoencoder

        if image_size[0] % 8 or image_size[1] % 8:
            raise ConfigError(
                f"the decoder of Table 20 makes images whose sides are multiples of 8, and these "
                f"are {image_size[0]} x {image_size[1]}"
            )
        return VariationalAutoencoder(
            EncoderSpec.for_images(bands, image_size, self.representation),
            likelihood=self.likelihood,
        )


_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(_Model):
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


BenchmarkConfig = (
    ColoredMnistConfig | Shapes3DConfig | IamConfig | WriterDigitsConfig | FontWordsConfig
)
"""Data whose factors are all known."""
DataConfig = Annotated[CubeConfig | EuroSatConfig | BenchmarkConfig, Field(discriminator="name")]
MethodConfig = Annotated[
    SharedStageConfig | ExclusiveStageConfig | VaeConfig, Field(discriminator="name")
]


class RunConfig(_Model):
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
