"""How unlike the training data a patch is: by its shared representation, and by its plainest looks.

Two distances, because neither sees what the other does. That of the representation is the
Mahalanobis distance to training patches (Lee et al. 2018), whose covariance is estimated as Ledoit
and Wolf 2004 say. It knows what is in a picture, and has learnt to forget how bright or noisy a
date was. That of the looks (brightness, dark level, contrast, roughness of each band) is the
distance to the nearest training patch (Sun et al. 2022), in units of their covariance: looks come
in kinds, clouds and water among them, that no one ellipsoid holds.

A distance tells a user little. The rank of one is the share of held-out patches that are nearer; a
patch is as strange as the larger of its two ranks; and its score is the share of held-out patches
that are less strange. So 0.5 is as ordinary as can be, and of patches like the training data one in
a hundred scores above 0.99, whatever the distributions of the distances.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mimodel.errors import DataError

LOOKS = 5
"""Numbers by band that `looks` gives."""
_MAX_KEPT = 1000
_LEVEL = 1e-3
"""Of the training pixels' deviation: less than that is no contrast."""
_DARK = 0.02
"""Part of a patch's pixels that are darker than its dark level."""


class NoveltySpec(BaseModel):
    """What the score rests on: numbers of patches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitted_on: int
    held_out: int
    examples: int
    """Of training patches whose looks are kept, evenly spaced in their order."""
    quantiles: int
    """Of held-out distances that are kept, evenly spaced in rank from the least to the largest."""


@dataclass(frozen=True, eq=False)
class Described:
    """What the score sees of patches."""

    shared: Float[Tensor, "patch dim"]
    looks: Float[Tensor, "patch look"]

    def __len__(self) -> int:
        return len(self.shared)


@final
class Novelty(nn.Module):
    """A fitted score; its tensors are part of an artifact."""

    mean: Tensor
    whitening: Tensor
    distances: Tensor
    look_whitening: Tensor
    examples: Tensor
    look_distances: Tensor
    strangeness: Tensor

    def __init__(self, spec: NoveltySpec, dimension: int, bands: int) -> None:
        """`dimension` is that of the shared representation."""
        super().__init__()
        width = LOOKS * bands
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("whitening", torch.eye(dimension))
        self.register_buffer("look_whitening", torch.eye(width))
        self.register_buffer("examples", torch.zeros(spec.examples, width))
        for name in ("distances", "look_distances", "strangeness"):
            self.register_buffer(name, torch.zeros(spec.quantiles))

    def distance(self, shared: Float[Tensor, "patch dim"]) -> Float[Tensor, " patch"]:
        """Mahalanobis distances of representations."""
        lengths: Tensor = torch.linalg.vector_norm((shared - self.mean) @ self.whitening, dim=1)
        return lengths

    def look_distance(self, looks: Float[Tensor, "patch look"]) -> Float[Tensor, " patch"]:
        """Distances to the looks of the nearest training patch, of those that are kept."""
        nearest: Tensor = torch.cdist(looks @ self.look_whitening, self.examples).amin(1)
        return nearest

    def larger_rank(self, patches: Described) -> Float[Tensor, " patch"]:
        """How strange patches are: by whichever of the two distances has the larger rank."""
        by_shared = _rank(self.distances, self.distance(patches.shared))
        return by_shared.maximum(_rank(self.look_distances, self.look_distance(patches.looks)))

    def forward(self, patches: Described) -> Float[Tensor, " patch"]:
        """Scores from 0, no stranger than any held-out patch, to 1, stranger than all."""
        return _rank(self.strangeness, self.larger_rank(patches))


def looks(images: Float[Tensor, "patch band row col"]) -> Float[Tensor, "patch look"]:
    """Brightness, dark level, contrast, and roughness at one and two pixels, of each band.

    Of normalised images. Roughness is the deviation of differences between pixels of a row.
    """
    pixels = images.flatten(2)
    dark = pixels.kthvalue(int(_DARK * pixels.shape[2]) + 1, dim=2).values
    rough = [images[..., step:] - images[..., :-step] for step in (1, 2)]
    spreads = [(values.std((2, 3)) + _LEVEL).log() for values in (images, *rough)]
    return torch.cat([pixels.mean(2), dark, *spreads], 1)


def fit_novelty(training: Described, held_out: Described) -> tuple[NoveltySpec, Novelty]:
    """The score whose distances are fitted on `training` and whose ranks come from `held_out`.

    Both are what `Artifact.described` makes. Fewer than two training patches, or none held out, are
    a `DataError`.
    """
    if len(training) < 2 or not len(held_out):
        raise DataError(
            f"{len(training)} training and {len(held_out)} held-out patches are too few to tell "
            "what is unlike them"
        )
    spec = NoveltySpec(
        fitted_on=len(training),
        held_out=len(held_out),
        examples=min(len(training), _MAX_KEPT),
        quantiles=min(len(held_out), _MAX_KEPT),
    )
    width = training.looks.shape[1]
    novelty = Novelty(spec, training.shared.shape[1], width // LOOKS)
    novelty.mean, novelty.whitening = _whitening(training.shared)
    _, novelty.look_whitening = _whitening(training.looks)
    kept = torch.linspace(0, len(training) - 1, spec.examples).round().long()
    novelty.examples = training.looks[kept] @ novelty.look_whitening
    novelty.distances = _quantiles(novelty.distance(held_out.shared), spec.quantiles)
    novelty.look_distances = _quantiles(novelty.look_distance(held_out.looks), spec.quantiles)
    novelty.strangeness = _quantiles(novelty.larger_rank(held_out), spec.quantiles)
    return spec, novelty


def _whitening(vectors: Float[Tensor, "patch dim"]) -> tuple[Tensor, Tensor]:
    """The mean of vectors, and L: the Mahalanobis distance of x is the length of (x - mean) L."""
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(vectors.double().numpy())
    root: npt.NDArray[np.float64] = np.linalg.cholesky(fitted.precision_)  # precision = L L'
    return torch.from_numpy(fitted.location_).float(), torch.from_numpy(root).float()


def _quantiles(values: Float[Tensor, " patch"], count: int) -> Float[Tensor, " quantile"]:
    """From the least to the largest: beyond the largest is beyond all."""
    ranks = np.linspace(0, 1, count)
    return torch.from_numpy(np.quantile(values.numpy(), ranks, method="higher").astype(np.float32))


def _rank(held_out: Float[Tensor, " quantile"], values: Float[Tensor, " patch"]) -> Tensor:
    """The share of held-out values that are less."""
    return torch.searchsorted(held_out, values.contiguous()) / len(held_out)
