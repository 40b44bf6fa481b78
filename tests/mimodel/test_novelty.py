"""The out-of-distribution score against truth, and confidence that is what it says."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from mimodel.errors import DataError
from mimodel.novelty import Novelty, fit_novelty
from mimodel.readouts import expected_calibration_error, fit_temperature

RNG = np.random.default_rng(0)


def gaussian(count: int, seed: int) -> np.ndarray:
    """Correlated, off centre, of different scales."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(16, 16))).Q
    mixing = np.logspace(-0.5, 0.5, 16)[:, None] * turn
    return (rng.normal(size=(count, 16)) @ mixing + 40).astype(np.float32)


def scores(novelty: Novelty, vectors: np.ndarray) -> np.ndarray:
    return novelty(torch.from_numpy(vectors.astype(np.float32))).numpy()


def test_scores_of_more_of_the_same_are_uniform() -> None:
    spec, novelty = fit_novelty(gaussian(4000, 1), gaussian(1500, 2))
    assert (spec.fitted_on, spec.held_out, spec.distances) == (4000, 1500, 1000)
    found = scores(novelty, gaussian(4000, 3))
    # Kolmogorov: sup difference of 1500 and 4000 draws, at one in a thousand.
    ranks = np.sort(found)
    assert np.abs(ranks - (np.arange(4000) + 0.5) / 4000).max() < 1.95 * np.sqrt(
        1 / 1500 + 1 / 4000
    )


def test_scores_are_the_share_of_held_out_patches_that_are_nearer() -> None:
    """Against scikit-learn's own distance, counted one by one."""
    train, held, asked = gaussian(4000, 1), gaussian(400, 2), gaussian(50, 3)
    _, novelty = fit_novelty(train, held)
    reference = LedoitWolf().fit(train.astype(np.float64))
    expected = [(reference.mahalanobis(held) < one).mean() for one in reference.mahalanobis(asked)]
    np.testing.assert_allclose(scores(novelty, asked), expected, atol=0.006)


def test_planted_outliers_are_farther_than_all() -> None:
    train = gaussian(4000, 1)
    _, novelty = fit_novelty(train, gaussian(500, 2))
    # Along the direction of least variance: less than patches differ by Euclid, far by Mahalanobis.
    values, directions = np.linalg.eigh(np.cov(train.T.astype(np.float64)))
    planted = train[:100] + 12 * np.sqrt(values[0]) * directions[:, 0]
    usual = np.linalg.norm(train[:100] - train[100:200], axis=1).mean()
    assert np.linalg.norm(planted - train[:100], axis=1).max() < 0.6 * usual
    assert scores(novelty, planted).min() == 1.0
    assert scores(novelty, train.mean(0, keepdims=True)) == 0.0


def test_fewer_patches_than_dimensions_still_have_a_score() -> None:
    _, novelty = fit_novelty(gaussian(10, 1), gaussian(5, 2))
    found = scores(novelty, gaussian(20, 3))
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
    with pytest.raises(DataError, match="too few"):
        fit_novelty(gaussian(10, 1), gaussian(0, 2))


def test_the_temperature_is_that_by_which_logits_were_scaled() -> None:
    logits = RNG.normal(size=(20_000, 5)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (chances.cumsum(1) < RNG.random((20_000, 1))).sum(1)
    for factor in (0.5, 1.0, 3.0):
        found = fit_temperature((logits * factor).astype(np.float32), labels)
        assert found == pytest.approx(factor, rel=0.05)
    honest = expected_calibration_error(chances.astype(np.float32), labels)
    bold = np.exp(logits * 3) / np.exp(logits * 3).sum(1, keepdims=True)
    assert honest < 0.02
    assert expected_calibration_error(bold.astype(np.float32), labels) > 0.15


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    # Ten answers at 0.95, nine of them right; ten at 0.65, all right.
    probabilities = np.array(10 * [[0.95, 0.05]] + 10 * [[0.35, 0.65]], np.float32)
    labels = np.array(9 * [0] + [1] + 10 * [1])
    expected = (10 * abs(0.95 - 0.9) + 10 * abs(0.65 - 1)) / 20
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    sure = np.array([[1.0, 0.0]], np.float32)
    assert expected_calibration_error(sure, np.array([0])) == 0
