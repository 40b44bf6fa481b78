"""Mutual information as a likeness of pixels: section 5.4 of Sanchez et al. 2019, figure 6.

Equation 5 without its expectation over places: for the patches X and Y around two pixels

    alpha (g(X, S_Y) + g(Y, S_X)) + beta mean_positions(l(X, S_Y) + l(Y, S_X)),

where g and l are the joint term -softplus(-T) of the global and the local statistics network.
It is symmetric in X and Y and at most 0; higher is more alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mimodel.artifact import Artifact, inference_autocast
from mimodel.errors import InputError
from mimodel.networks import GlobalStatistics, LocalStatistics
from mimodel.normalisation import select_bands
from mimodel.objectives import joint_term

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """Likeness of the patches on a regular grid to the patch around a query pixel."""

    scores: npt.NDArray[np.float32]
    """(rows, columns) of the grid, at most 0, higher is more alike."""
    row_centres: npt.NDArray[np.int64]
    """Pixel rows of the image on which the grid's patches are centred."""
    col_centres: npt.NDArray[np.int64]
    query: tuple[int, int]
    image_size: tuple[int, int]

    def to_image(self) -> npt.NDArray[np.float32]:
        """The scores at each pixel of the image (H, W), linear between the grid's centres.

        Outside the outermost centres, where no whole patch fits, the nearest one counts.
        """
        height, width = self.image_size
        rows = np.interp(np.arange(height), self.row_centres, np.arange(len(self.row_centres)))
        cols = np.interp(np.arange(width), self.col_centres, np.arange(len(self.col_centres)))
        return _bilinear(_bilinear(self.scores, rows).T, cols).T.astype(np.float32)


@torch.inference_mode()
def similarity_map(
    artifact: Artifact,
    image: npt.NDArray[np.floating],
    query: tuple[int, int],
    *,
    stride: int = 8,
    bands: Sequence[str] | None = None,
) -> SimilarityMap:
    """How alike each place of `image` is to the place around the pixel `query` (row, column).

    `image` is reflectance (band, H, W), NaN where there is no data, H and W at least the artifact's
    patch size. Patches stand on a grid of `stride` pixels that covers the image; the query's patch
    is centred on its pixel, or as near as the image's border allows.
    """
    size = artifact.spec.patch_size
    pixels = _checked(artifact, image, query, stride, bands)
    height, width = pixels.shape[1:]
    tops, lefts = _origins(height, size, stride), _origins(width, size, stride)
    corners = [(top, left) for top in tops for left in lefts]
    query_corner = tuple(
        min(max(pixel - size // 2, 0), extent - size)
        for pixel, extent in zip(query, (height, width), strict=True)
    )
    reference = _Places.of(artifact, pixels, [(query_corner[0], query_corner[1])])
    scores = [
        pair_scores(artifact, reference, _Places.of(artifact, pixels, corners[at : at + _CHUNK]))
        for at in range(0, len(corners), _CHUNK)
    ]
    return SimilarityMap(
        scores=torch.cat(scores).reshape(len(tops), len(lefts)).numpy(),
        row_centres=np.asarray(tops) + size // 2,
        col_centres=np.asarray(lefts) + size // 2,
        query=query,
        image_size=(height, width),
    )


@dataclass(frozen=True, eq=False)
class _Places:
    """Both sides of both statistics networks for some patches: all that their likeness needs."""

    global_feature: Tensor
    global_representation: Tensor
    local_feature: Tensor
    local_representation: Tensor

    @classmethod
    def of(
        cls, artifact: Artifact, pixels: npt.NDArray[np.floating], corners: list[tuple[int, int]]
    ) -> "_Places":
        size = artifact.spec.patch_size
        patches = np.stack([pixels[:, t : t + size, left : left + size] for t, left in corners])
        feature_map, representation = artifact.encode(artifact.network_input(patches, None))
        global_, local = _statistics(artifact)
        with inference_autocast():
            return cls(
                global_.feature_side(feature_map),
                global_.representation_side(representation),
                local.feature_side(feature_map),
                local.representation_side(representation),
            )


def _statistics(artifact: Artifact) -> tuple[GlobalStatistics, LocalStatistics]:
    networks = artifact.networks
    if networks.global_statistics is None or networks.local_statistics is None:
        raise InputError(
            "this model has no statistics networks and so no similarity; load one of the shared "
            "stage"
        )
    return networks.global_statistics, networks.local_statistics


def pair_scores(artifact: Artifact, x: _Places, y: _Places) -> Tensor:
    """Likeness of the places x (one, or as many) with the places y, one score a pair."""
    spec = artifact.spec
    global_, local = _statistics(artifact)
    assert spec.alpha is not None
    assert spec.beta is not None
    with inference_autocast():
        g, t = global_.score, local.score
        global_terms = joint_term(g(x.global_feature, y.global_representation)) + joint_term(
            g(y.global_feature, x.global_representation)
        )
        local_terms = joint_term(t(x.local_feature, y.local_representation)) + joint_term(
            t(y.local_feature, x.local_representation)
        )
    return spec.alpha * global_terms + spec.beta * local_terms.mean(-1)


def _checked(
    artifact: Artifact,
    image: npt.NDArray[np.floating],
    query: tuple[int, int],
    stride: int,
    bands: Sequence[str] | None,
) -> npt.NDArray[np.floating]:
    size = artifact.spec.patch_size
    if image.ndim != 3 or min(image.shape[1:]) < size:
        raise InputError(
            f"expected an image (band, H, W) of at least {size} x {size} pixels, got {image.shape}"
        )
    height, width = image.shape[1:]
    if not (0 <= query[0] < height and 0 <= query[1] < width):
        raise InputError(
            f"the query pixel (row {query[0]}, column {query[1]}) lies outside the image of "
            f"{height} x {width} pixels"
        )
    if stride < 1:
        raise InputError(f"the stride is a number of pixels, at least 1; got {stride}")
    return select_bands(artifact.spec.bands, bands, image, axis=0)  # type: ignore[return-value]


def _origins(extent: int, size: int, stride: int) -> list[int]:
    """First pixels of the patches on one axis: every `stride`, and one that ends at the border."""
    last = extent - size
    return sorted({*range(0, last + 1, stride), last})


def _bilinear(
    values: npt.NDArray[np.floating], at: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Linear interpolation along the first axis at fractional indices."""
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    part = (at - low)[:, None]
    between: npt.NDArray[np.floating] = values[low] * (1 - part) + values[high] * part
    return between
