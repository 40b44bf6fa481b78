"""The criterion of independence: its definition over quadruples, and what it is for."""

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from mimodel.config import load_config
from mimodel.errors import ConfigError
from mimodel.methods.configs import ExclusiveStageConfig
from mimodel.methods.infomax import ExclusiveStage
from mimodel.objectives import LEAST_SAMPLES, dependence
from tests.mimodel.test_exclusive import _batch, make_shared


def _by_quadruples(s: Tensor, e: Tensor) -> Tensor:
    """Song et al. 2012, the U-statistic of equation 4: over all ordered quadruples of samples."""

    def kernel(values: Tensor, i: int, j: int) -> Tensor:
        return torch.exp(-((values[i] - values[j]) ** 2).mean() / 2)

    terms = [
        kernel(s, i, j) * (kernel(e, i, j) + kernel(e, q, r) - 2 * kernel(e, i, q))
        for i, j, q, r in permutations(range(len(s)), 4)
    ]
    return torch.stack(terms).mean()


def test_it_is_the_mean_over_quadruples_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    s, e = torch.randn(6, 3).double().requires_grad_(), torch.randn(6, 2).double().requires_grad_()
    ours, theirs = dependence(s, e), _by_quadruples(s, e)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    for one, other in zip(
        torch.autograd.grad(ours, [s, e]), torch.autograd.grad(theirs, [s, e]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


def test_it_is_nothing_on_average_of_independent_draws_and_not_of_uncorrelated_ones() -> None:
    generator = Generator().manual_seed(0)
    independent, uncorrelated = [], []
    for _ in range(400):
        s, other = torch.randn(2, 32, 1, generator=generator)
        independent.append(dependence(s, other))
        uncorrelated.append(dependence(s, (s**2 - 1) / 2**0.5))
    of_independent, of_uncorrelated = torch.stack(independent), torch.stack(uncorrelated)
    error = of_independent.std() / 20
    assert of_independent.mean().abs() < 3 * error
    assert of_uncorrelated.mean() > 30 * error


def test_it_stands_beside_the_adversary_with_its_weight(tmp_path: Path) -> None:
    shared = [make_shared(tmp_path / str(domain), domain) for domain in range(2)]
    torch.manual_seed(11)
    stage = ExclusiveStage(
        shared,
        representation=3,
        alpha=0.5,
        beta=1.0,
        adversarial=0.05,
        form="non-saturating",
        independence=7.0,
    ).double()
    batch = _batch()
    terms = stage.train().objective(stage.players[0], batch, Generator().manual_seed(4))
    expected = torch.zeros((), dtype=torch.float64)
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        s = networks.shared_encoder.eval()(images).representation
        e = networks.encoder(images).representation
        unit = [(one - one.mean(0)) / (one.std(0, correction=0) + 1e-5) for one in (s, e)]
        expected = expected + 7 * _by_quadruples(*unit)
    torch.testing.assert_close(terms["dependence"], expected, atol=1e-9, rtol=1e-9)
    assert stage.description["independence"] == "7"


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_without_a_weight_there_is_no_such_term(tmp_path: Path, weight: float) -> None:
    artifact = make_shared(tmp_path / "run" / "artifact", 0)
    config = ExclusiveStageConfig(
        name="infomax-exclusive", shared=tmp_path / "run", independence=weight
    )
    stage = config.build(len(artifact.spec.bands), artifact.spec.encoder.image_size).double()
    terms = stage.train().objective(stage.players[0], _batch(), Generator().manual_seed(4))
    assert ("dependence" in terms) == (weight > 0)


def test_a_batch_too_small_for_it_is_refused_before_training() -> None:
    least = torch.randn(LEAST_SAMPLES, 2).double()
    assert torch.isfinite(dependence(least, least))
    method = "method={name: infomax-exclusive, shared: run, independence: 1}"
    data = "data={name: sentinel2, cube: x}"
    with pytest.raises(ConfigError, match=r"at least 4 pairs; raise training\.batch_size"):
        load_config([], [data, method, "training.batch_size=3"])
    load_config([], [data, method, "training.batch_size=4"])
    load_config([], [data, method.replace("1}", "0}"), "training.batch_size=3"])
