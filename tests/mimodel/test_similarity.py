"""Similarity maps against equation 5 written out patch by patch."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from mimodel.artifact import Artifact
from mimodel.errors import InputError
from mimodel.similarity import SimilarityMap, similarity_map
from tests.mimodel import textbook


def _image(height: int = 96, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 0.4, (4, height, width)).astype(np.float32)


def _equation_5(artifact: Artifact, x: np.ndarray, y: np.ndarray) -> float:
    """One pair of patches, textbook networks in float32."""
    scaled = artifact.network_input(np.stack([x, y]), None)
    c, s = artifact.networks.encoder(scaled)
    g = textbook.score(artifact.networks.global_statistics, c, s.flip(0))
    t = textbook.score(artifact.networks.local_statistics, c, s.flip(0))
    return float(0.5 * -softplus(-g).sum() - softplus(-t).mean((1, 2)).sum())


def test_a_map_is_equation_5_for_each_pair_of_patches(artifact: Artifact) -> None:
    image = _image()
    found = similarity_map(artifact, image, (40, 44), stride=16)
    assert found.row_centres.tolist() == [32, 48, 64]
    assert found.col_centres.tolist() == [32, 48]
    reference = image[:, 8:72, 12:76]
    with torch.no_grad():
        for i, row in enumerate(found.row_centres - 32):
            for j, col in enumerate(found.col_centres - 32):
                other = image[:, row : row + 64, col : col + 64]
                expected = _equation_5(artifact, reference, other)
                assert found.scores[i, j] == pytest.approx(expected, abs=0.01)


def test_likeness_is_symmetric(artifact: Artifact) -> None:
    image = _image(64, 128)
    there = similarity_map(artifact, image, (32, 32), stride=64)
    back = similarity_map(artifact, image, (32, 96), stride=64)
    assert there.scores[0, 1] == pytest.approx(float(back.scores[0, 0]), abs=1e-3)


def test_a_query_at_the_border_takes_the_nearest_whole_patch(artifact: Artifact) -> None:
    image = _image()
    at_corner = similarity_map(artifact, image, (0, 79), stride=16)
    inside = similarity_map(artifact, image, (32, 48), stride=16)
    np.testing.assert_allclose(at_corner.scores, inside.scores, atol=1e-6)


def test_scores_are_at_most_zero_and_finite_even_without_data(artifact: Artifact) -> None:
    image = _image()
    image[:, :, :40] = np.nan
    found = similarity_map(artifact, image, (5, 5))
    assert np.isfinite(found.scores).all()
    assert (found.scores <= 0).all()


def test_a_map_is_linear_between_centres_and_flat_outside() -> None:
    rows, cols = np.array([32, 48, 60]), np.array([32, 42])
    plane = (2.0 * rows[:, None] + 3.0 * cols[None, :]).astype(np.float32)
    image = SimilarityMap(plane, rows, cols, (0, 0), (92, 74)).to_image()
    assert image.shape == (92, 74)
    r, c = np.clip(np.arange(92), 32, 60), np.clip(np.arange(74), 32, 42)
    np.testing.assert_allclose(image, 2.0 * r[:, None] + 3.0 * c[None, :], rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "query", "stride", "says"),
    [
        ((63, 80), (0, 0), 8, "at least 64"),
        ((64, 64), (64, 0), 8, "outside"),
        ((64, 64), (0, -1), 8, "outside"),
        ((64, 64), (0, 0), 0, "stride"),
    ],
)
def test_what_cannot_be_mapped_is_refused(
    artifact: Artifact, size: tuple[int, int], query: tuple[int, int], stride: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        similarity_map(artifact, np.zeros((4, *size), np.float32), query, stride=stride)
