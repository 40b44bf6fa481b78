"""How unlike the training data a patch is, by its shared representation and its plainest looks.

The Mahalanobis distance to training patches (Lee et al. 2018), whose covariance is estimated as
Ledoit and Wolf 2004 say. A shared representation has learnt to forget how bright or noisy a date
was, so brightness, contrast and roughness of each band stand beside it. A distance tells a user
little, so the score is the share of held-out patches that are nearer: 0.5 is as ordinary as can be,
and of patches like the training data one in a hundred scores above 0.99, whatever the distribution
of distances.
"""

from typing import final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mimodel.errors import DataError

Vectors = npt.NDArray[np.float32]

_MAX_DISTANCES = 1000
_LEVEL = 1e-3
"""Of the training pixels' deviation: less than that is no contrast."""


class NoveltySpec(BaseModel):
    """What the score rests on: numbers of vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fitted_on: int
    held_out: int
    distances: int
    """Of held-out patches that are kept, evenly spaced in rank."""


@final
class Novelty(nn.Module):
    """A fitted score; its tensors are part of an artifact."""

    mean: Tensor
    whitening: Tensor
    distances: Tensor

    def __init__(self, spec: NoveltySpec, dimension: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("whitening", torch.eye(dimension))
        self.register_buffer("distances", torch.zeros(spec.distances))

    def distance(self, vectors: Tensor) -> Tensor:
        """Mahalanobis distances (N,) of vectors (N, dim)."""
        lengths: Tensor = torch.linalg.vector_norm((vectors - self.mean) @ self.whitening, dim=1)
        return lengths

    def forward(self, vectors: Tensor) -> Tensor:
        """Scores (N,) from 0, as near as any held-out patch, to 1, farther than all."""
        nearer = torch.searchsorted(self.distances, self.distance(vectors).contiguous())
        return nearer / len(self.distances)


def looks(images: Tensor) -> Tensor:
    """Brightness, contrast, roughness (N, 3 x band) of normalised images (N, band, H, W).

    Roughness is the deviation of differences between neighbours in a row.
    """
    differences = images[..., 1:] - images[..., :-1]
    spreads = [(values.std((2, 3)) + _LEVEL).log() for values in (images, differences)]
    return torch.cat([images.mean((2, 3)), *spreads], 1)


def fit_novelty(training: Vectors, held_out: Vectors) -> tuple[NoveltySpec, Novelty]:
    """The score whose distance is fitted on `training` and whose ranks come from `held_out`.

    Both are vectors (N, dim) as `Artifact.described` makes them. Fewer than two training vectors,
    or none held out, are a `DataError`.
    """
    from sklearn.covariance import LedoitWolf

    if len(training) < 2 or not len(held_out):
        raise DataError(
            f"{len(training)} training and {len(held_out)} held-out patches are too few to tell "
            "what is unlike them"
        )
    fitted = LedoitWolf().fit(training.astype(np.float64))
    spec = NoveltySpec(
        fitted_on=len(training),
        held_out=len(held_out),
        distances=min(len(held_out), _MAX_DISTANCES),
    )
    novelty = Novelty(spec, training.shape[1])
    # precision = L L', so the Mahalanobis distance of x is the length of x L.
    whitening = np.linalg.cholesky(fitted.precision_)
    novelty.mean = torch.from_numpy(fitted.location_.astype(np.float32))
    novelty.whitening = torch.from_numpy(whitening.astype(np.float32))
    distances = novelty.distance(torch.from_numpy(held_out)).numpy()
    ranks = (np.arange(spec.distances) + 0.5) / spec.distances
    novelty.distances = torch.from_numpy(np.quantile(distances, ranks).astype(np.float32))
    return spec, novelty
