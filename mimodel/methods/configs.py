"""What a run says of its method, and what builds it: one model a method, by `name`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mimodel.artifact import Artifact, run_artifacts
from mimodel.data.configs import Section
from mimodel.errors import ConfigError
from mimodel.methods.base import Method, RepresentationScale
from mimodel.networks import LEAKY_SLOPE, EncoderSpec
from mimodel.normalisation import Normalisation
from mimodel.objectives import AdversarialForm, L1Norm


class SharedStageConfig(Section):
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
        from mimodel.methods.shared import SharedStage

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


class ExclusiveStageConfig(Section):
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
    levels_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run after which the rounding begins. Ours."""
    independence: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the dependence of S and E, a kernel's criterion between a batch and the steps
    before it, beside the adversary. Ours (docs/design/0012)."""
    variance_kept: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of E's variance that its leading principal components hold together in the artifact; it
    is projected on these, and 1 keeps it as it is. What leaks lies in the last ones. Ours
    (docs/design/0015)."""
    first: Literal["encoder", "discriminator"] = "encoder"
    """Who moves first in a step; the paper does not say. The discriminator then has representations
    of its own made, of which BatchNorm's running statistics hear too."""
    negatives: Annotated[int, Field(ge=1)] = 1
    """As in the shared stage."""
    score_bound: Annotated[float, Field(gt=0)] | None = None
    """As in the shared stage."""

    @model_validator(mode="after")
    def _levels_are_of_use(self) -> "ExclusiveStageConfig":
        if self.levels_from and self.levels is None:
            raise ValueError("levels_from needs levels; name how many, or leave levels_from at 0")
        if self.levels and self.variance_kept < 1:
            raise ValueError(
                "levels are rounded after the layer whose variance is kept; set levels or "
                "variance_kept, not both"
            )
        return self

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
        from mimodel.methods.exclusive import ExclusiveStage

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
            levels_from=self.levels_from,
            independence=self.independence,
            variance_kept=self.variance_kept,
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


class VaeConfig(Section):
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


MethodConfig = Annotated[
    SharedStageConfig | ExclusiveStageConfig | VaeConfig, Field(discriminator="name")
]
