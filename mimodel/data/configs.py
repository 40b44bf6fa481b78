"""What a run says of its data, and what opens them: one model a data set, by `name`."""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mimodel.data.pairs import Domain, LabelledImages, PairSource
from mimodel.normalisation import Normalisation

if TYPE_CHECKING:
    from mimodel.data.words import Words


class Section(BaseModel):
    """A part of a configuration; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CubeConfig(Section):
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
    displaced: Annotated[int, Field(ge=0, le=57)] = 0
    """The second image of a pair is cut up to so many pixels away from the first, along rows and
    along columns. Ours (docs/design/0014): what a pair shares is then the neighbourhood's."""
    turn: bool = False
    """See each pair in one of eight orientations, both dates alike. Ours: an encoder soon knows few
    places by heart, and what a place is does not depend on north."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.displaced > 64 - self.patch:
            raise ValueError(
                f"a patch of {self.patch} pixels can be displaced by up to {64 - self.patch} "
                f"within the 64 of a place, not by {self.displaced}; lower data.displaced or "
                "data.patch"
            )
        return self

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
            displaced=self.displaced,
            turn=self.turn,
            seed=seed,
            normalisation=normalisation,
        )


class EuroSatConfig(Section):
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


class ColoredMnistConfig(Section):
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


class Shapes3DConfig(Section):
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


class _WordsConfig(Section):
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


BenchmarkConfig = (
    ColoredMnistConfig | Shapes3DConfig | IamConfig | WriterDigitsConfig | FontWordsConfig
)
"""Data whose factors are all known."""
DataConfig = Annotated[CubeConfig | EuroSatConfig | BenchmarkConfig, Field(discriminator="name")]
