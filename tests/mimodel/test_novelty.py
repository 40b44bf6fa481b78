"""The out-of-distribution score against truth, and confidence that is what it says."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from mimodel.errors import DataError
from mimodel.novelty import LOOKS, Described, Novelty, fit_novelty, looks
from mimodel.readouts import expected_calibration_error, fit_temperature

RNG = np.random.default_rng(0)
BANDS = 2


def gaussian(count: int, seed: int, width: int = 16) -> np.ndarray:
    """Correlated, off centre, of different scales."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(width, width))).Q
    mixing = np.logspace(-0.5, 0.5, width)[:, None] * turn
    return (rng.normal(size=(count, width)) @ mixing + 40).astype(np.float32)


def described(shared: np.ndarray, seen: np.ndarray) -> Described:
    return Described(torch.from_numpy(shared), torch.from_numpy(seen))


def drawn(count: int, seed: int) -> Described:
    return described(gaussian(count, seed), gaussian(count, seed + 100, LOOKS * BANDS))


def scores(novelty: Novelty, patches: Described) -> np.ndarray:
    return novelty(patches).numpy()


def test_scores_of_more_of_the_same_are_uniform() -> None:
    spec, novelty = fit_novelty(drawn(4000, 1), drawn(1500, 2))
    assert (spec.fitted_on, spec.held_out, spec.examples, spec.quantiles) == (
        4000,
        1500,
        1000,
        1000,
    )
    ranks = np.sort(scores(novelty, drawn(4000, 3)))
    # Kolmogorov: sup difference of 1500 and 4000 draws, at one in a thousand.
    assert np.abs(ranks - (np.arange(4000) + 0.5) / 4000).max() < 1.95 * np.sqrt(
        1 / 1500 + 1 / 4000
    )


def test_scores_are_shares_of_held_out_patches_counted_one_by_one() -> None:
    """Against scikit-learn's own distance, and the nearest example by its covariance."""
    train, held, asked = drawn(900, 1), drawn(400, 2), drawn(50, 3)
    _, novelty = fit_novelty(train, held)
    shared = LedoitWolf().fit(train.shared.double().numpy())
    precision = LedoitWolf().fit(train.looks.double().numpy()).precision_

    def nearest(one: np.ndarray) -> float:
        apart = train.looks.numpy() - one
        return float(np.sqrt(((apart @ precision) * apart).sum(1).min()))

    def both(patches: Described) -> tuple[np.ndarray, np.ndarray]:
        by_looks = [nearest(one) for one in patches.looks.double().numpy()]
        return shared.mahalanobis(patches.shared.numpy()), np.array(by_looks)

    def larger(of: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        shares = [(h < a[:, None]).mean(1) for h, a in zip(both(held), of, strict=True)]
        return np.maximum(*shares)

    ordinary = larger(both(held))
    expected = [(ordinary < one).mean() for one in larger(both(asked))]
    np.testing.assert_allclose(scores(novelty, asked), expected, atol=0.006)


def test_planted_outliers_are_stranger_than_all() -> None:
    train = drawn(4000, 1)
    _, novelty = fit_novelty(train, drawn(500, 2))
    usual = drawn(100, 3)
    for part in ("shared", "looks"):
        vectors = getattr(train, part).numpy()
        # Along the direction of least variance: less than patches differ by Euclid.
        values, directions = np.linalg.eigh(np.cov(vectors.T.astype(np.float64)))
        moved = getattr(usual, part).numpy() + 12 * np.sqrt(values[0]) * directions[:, 0]
        between = np.linalg.norm(vectors[:100] - vectors[100:200], axis=1).mean()
        assert 12 * np.sqrt(values[0]) < between
        whole = {"shared": usual.shared, "looks": usual.looks} | {
            part: torch.from_numpy(moved.astype(np.float32))
        }
        assert scores(novelty, Described(**whole)).min() == 1.0
    middle = described(train.shared.mean(0, keepdim=True).numpy(), train.looks[:1].numpy())
    assert scores(novelty, middle) == 0.0


def textures(count: int, seed: int) -> torch.Tensor:
    """Images of rounded noise, each with its own brightness, and values alike in all bands."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(count, BANDS, 26, 26))
    smooth = np.stack([white[..., i : i + 24, j : j + 24] for i in range(3) for j in range(3)])
    images = smooth.mean(0) * 3 + rng.normal(size=(count, BANDS, 1, 1))
    return torch.from_numpy(images.astype(np.float32))


def test_what_a_representation_may_forget_is_seen() -> None:
    """One that is blind to everything: noise, another order of the pixels, an offset, a level."""
    blind = torch.from_numpy(gaussian(700, 4))
    train, held = textures(400, 1), textures(200, 2)
    _, novelty = fit_novelty(
        Described(blind[:400], looks(train)), Described(blind[400:600], looks(held))
    )
    asked, same = textures(100, 3), blind[600:]
    ordinary = scores(novelty, Described(same, looks(asked)))
    assert (ordinary > 0.95).mean() < 0.15
    order = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(0))
    spread, level = asked.std((2, 3), keepdim=True), asked.mean((2, 3), keepdim=True)
    changed = {
        "noise": level + spread * torch.randn(asked.shape, generator=torch.Generator()),
        "shuffled": asked.flatten(2)[:, :, order].view_as(asked),
        "offset": asked + 6,
        "constant": level.expand_as(asked),
        "nothing": torch.zeros_like(asked),
    }
    for name, images in changed.items():
        assert scores(novelty, Described(same, looks(images))).min() > 0.95, name


def test_fewer_patches_than_dimensions_still_have_a_score() -> None:
    _, novelty = fit_novelty(drawn(10, 1), drawn(5, 2))
    found = scores(novelty, drawn(20, 3))
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
    with pytest.raises(DataError, match="too few"):
        fit_novelty(drawn(10, 1), drawn(0, 2))


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
