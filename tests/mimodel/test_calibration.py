"""The estimator against channels whose information is known in closed form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mimodel.artifact import Artifact, ArtifactSpec, Networks, save_artifact
from mimodel.calibration import (
    calibrate,
    information_of_pairs,
    jsd_bound,
    symmetric_channel,
)
from mimodel.data.pairs import LabelledImages
from mimodel.normalisation import Normalisation
from tests.mimodel import textbook


def test_the_truth_is_known() -> None:
    assert symmetric_channel(10, 0) == pytest.approx(math.log(10))
    assert symmetric_channel(10, 0.9) == pytest.approx(0, abs=1e-12)
    entropy = -0.11 * math.log(0.11) - 0.89 * math.log(0.89)
    assert symmetric_channel(2, 0.11) == pytest.approx(math.log(2) - entropy)
    assert jsd_bound(2, 0.5) == pytest.approx(-2 * math.log(2))


@pytest.mark.parametrize(("classes", "error"), [(10, 0.1), (10, 0.4), (2, 0.1), (2, 0.25)])
def test_the_mean_of_t_is_the_information_in_nats(classes: int, error: float) -> None:
    """Rare symbols are learnt slowly, so within a tenth; equation 2 stays under its bound."""
    found = calibrate(classes, error)
    assert found.nats == pytest.approx(found.truth, abs=0.1)
    bound = jsd_bound(classes, error)
    assert bound - 0.06 < found.jsd < bound + 0.02


def test_without_error_t_grows_beyond_the_truth_where_nothing_holds_it() -> None:
    """Ten classes that always agree: T on pairs that never occur has no bound, that on the joint
    has one, ln 10."""
    found = calibrate(10, 0)
    assert found.truth == pytest.approx(math.log(10))
    assert found.nats == pytest.approx(found.truth, abs=0.15)


def test_of_an_untrained_model_the_pairs_share_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = ArtifactSpec(
        name="untrained",
        encoder=textbook.SMALL,
        normalisation=Normalisation(bands=("a", "b"), mean=(0, 0), std=(1, 1)),
        representations={"shared": 6},
        alpha=0.5,
        beta=1.0,
    )
    artifact: Artifact = save_artifact(tmp_path / "a", spec, Networks(spec).state_dict(), "# A\n")
    rng = np.random.default_rng(0)
    data = LabelledImages(
        images=rng.normal(size=(200, 2, 16, 16)).astype(np.float32),
        factors={"kind": np.arange(200) % 4, "own": rng.integers(3, size=200)},
        shared=("kind",),
        split=np.repeat(["train", "test"], 100),
    )
    found = information_of_pairs({"x": artifact}, {"x": data}, seed=0)
    assert found is not None
    assert found.truth == pytest.approx(math.log(4))
    assert abs(found.nats) < 0.2
    assert found.jsd == pytest.approx(-2 * math.log(2), abs=0.05)
