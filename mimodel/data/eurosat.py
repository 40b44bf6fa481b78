"""EuroSAT RGB (Helber et al. 2017): labelled patches, and pairs of simulated acquisitions of them.

The JPEGs hold bands B04, B03, B02 of level 1C as grey = clip(reflectance / 0.275 * 255, 0, 255), so
reflectance up to 0.275 can be read back. EuroSAT has one date a place; a pair is therefore the same
patch under two simulated acquisitions.
"""

import hashlib
import io
import re
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mimodel.data.pairs import ORIENTATIONS, LabelledPatches, PairBatch, turned
from mimodel.errors import DataError
from mimodel.normalisation import Normalisation

BANDS = ("B04", "B03", "B02")
CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
    "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
REFLECTANCE_PER_GREY = 0.275 / 255
_MEMBER = re.compile(r"(?:.*/)?(?P<label>[A-Za-z]+)_(?P<number>\d+)\.jpg")
_HAZE_SPECTRUM = torch.tensor([0.4, 0.65, 1.0])
"""Path radiance falls with the wavelength; B04, B03, B02 relative to B02."""
_BLOCK = 50
_TEST_BLOCKS = 5


@dataclass(frozen=True, eq=False)
class EuroSat:
    """All images of the archive, in the order of class and file number."""

    grey: npt.NDArray[np.uint8]
    """(image, band, 64, 64)"""
    label: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]

    @property
    def test(self) -> npt.NDArray[np.bool_]:
        """Every fifth block of 50 consecutive file numbers of a class.

        Neighbouring numbers are often neighbouring ground, so single images drawn at random would
        have their neighbours in the other half.
        """
        chosen: npt.NDArray[np.bool_] = self.number // _BLOCK % _TEST_BLOCKS == _TEST_BLOCKS - 1
        return chosen

    @property
    def reflectance(self) -> npt.NDArray[np.float32]:
        """(image, band, 64, 64); clipped by the archive at 0.275."""
        return self.grey * np.float32(REFLECTANCE_PER_GREY)


def read_eurosat(archive: Path) -> EuroSat:
    """All JPEGs `<Class>_<number>.jpg` of a tar archive."""
    from PIL import Image

    images: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                file = tar.extractfile(member) if match and member.isfile() else None
                if match is None or file is None or match["label"] not in CLASSES:
                    continue
                pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                key = CLASSES.index(match["label"]), int(match["number"])
                images[key] = pixels.transpose(2, 0, 1)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read the EuroSAT archive {archive}: {error}") from error
    if not images:
        raise DataError(f"{archive} holds no EuroSAT image such as Forest/Forest_1.jpg")
    keys = sorted(images)
    label, number = np.array(keys).T
    return EuroSat(np.stack([images[key] for key in keys]), label, number)


def labelled_eurosat(archive: Path) -> LabelledPatches:
    """All images with their class; a block of consecutive file numbers counts as one place."""
    data = read_eurosat(archive)
    return LabelledPatches(
        reflectance=data.reflectance,
        label=data.label,
        place=data.label * 10_000 + data.number // _BLOCK,
        date=np.zeros(len(data.label), np.int64),
        split=np.where(data.test, "test", "train"),
        classes=CLASSES,
    )


class EuroSatPairs:
    """Each pair is one training image under two simulated acquisitions; labels are not read.

    What differs between the two, drawn for each image anew: illumination (one factor on all bands,
    log-uniform within 1/`gain` to `gain`), season and sensor (a factor of its own on each band,
    `band_gain`), haze (path radiance up to `haze` in B02, less towards the red), registration (a
    shift of up to `shift` pixels), and noise. The view's orientation (eight turns and mirrors) is
    drawn for each image too: what a place is does not depend on north.
    """

    def __init__(
        self,
        archive: Path,
        *,
        gain: float,
        band_gain: float,
        haze: float,
        shift: int,
        seed: int,
        normalisation: Normalisation | None = None,
    ) -> None:
        if normalisation and normalisation.bands != BANDS:
            raise DataError(
                f"the shared encoder reads {', '.join(normalisation.bands)}, and EuroSAT RGB has "
                f"{', '.join(BANDS)}"
            )
        self._given = normalisation
        data = read_eurosat(archive)
        self._grey = torch.from_numpy(data.grey[~data.test])
        self.gain, self.band_gain, self.haze, self.shift = gain, band_gain, haze, shift
        self._seed = seed

    @property
    def image_size(self) -> tuple[int, int]:
        return 64, 64

    @cached_property
    def normalisation(self) -> Normalisation:
        return self._given or Normalisation.fit(
            BANDS, self._grey.numpy() * np.float32(REFLECTANCE_PER_GREY)
        )

    @cached_property
    def description(self) -> dict[str, str]:
        return {
            "data_digest": hashlib.sha256(self._grey.numpy().tobytes()).hexdigest(),
            "data": f"EuroSAT RGB, {len(self._grey)} training images, "
            "pairs of simulated acquisitions of one image",
            "level": "L1C, top of atmosphere, reflectance clipped at 0.275",
        }

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
        if size > len(self._grey):
            raise DataError(
                f"a batch of {size} pairs needs as many images, and there are {len(self._grey)} "
                "for training; lower training.batch_size"
            )
        rng = np.random.default_rng([self._seed, 1, step])
        chosen = rng.choice(len(self._grey), size, replace=False)
        generator = Generator().manual_seed(int(rng.integers(2**62)))
        reflectance = self._grey[torch.from_numpy(chosen)] * REFLECTANCE_PER_GREY
        x, y = (self._acquire(reflectance, generator) for _ in range(2))
        return PairBatch(x[rows], y[rows])

    def _acquire(
        self, reflectance: Float[Tensor, "batch band row col"], generator: Generator
    ) -> Float[Tensor, "batch band row col"]:
        """One simulated acquisition of each image, normalised."""
        count, bands = reflectance.shape[:2]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) * 2 - 1

        gain = self.gain ** uniform(count, 1, 1, 1) * self.band_gain ** uniform(count, bands, 1, 1)
        haze = self.haze * (uniform(count, 1, 1, 1) + 1) / 2 * _HAZE_SPECTRUM.view(1, -1, 1, 1)
        turns = torch.randint(ORIENTATIONS, (count,), generator=generator)
        view = _shifted(turned(reflectance, turns), self.shift, generator)
        noise = torch.randn(view.shape, generator=generator) * 0.002
        acquired = view * gain * (1 - haze) + haze + noise
        return torch.from_numpy(self.normalisation(acquired.numpy()))


def _shifted(images: Tensor, limit: int, generator: Generator) -> Tensor:
    """Each image moved by up to `limit` pixels either way, mirrored at the border."""
    if limit == 0:
        return images
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (limit,) * 4, mode="reflect")
    top, left = torch.randint(2 * limit + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    cols = left[:, None] + torch.arange(width)
    index = torch.arange(count)
    last = padded.permute(0, 2, 3, 1)
    moved = last[index[:, None, None], rows[:, :, None], cols[:, None, :]]
    return moved.permute(0, 3, 1, 2)
