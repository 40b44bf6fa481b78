"""What the paper leaves open: each choice is the equation that it names, and artifacts say so."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import batch_norm, conv2d, leaky_relu, linear, softplus

from mimodel.artifact import Artifact
from mimodel.config import load_config
from mimodel.data.pairs import PairBatch
from mimodel.errors import ConfigError
from mimodel.methods.configs import ExclusiveStageConfig, SharedStageConfig
from mimodel.methods.exclusive import ExclusiveStage
from mimodel.methods.shared import SharedStage
from mimodel.networks import Encoder, EncoderSpec, StatisticsNetwork
from mimodel.objectives import bounded, derangement
from tests.mimodel import textbook
from tests.mimodel.test_exclusive import make_shared

PAIRS = 6


def _batch() -> PairBatch:
    torch.manual_seed(3)
    return PairBatch(*torch.randn(2, PAIRS, 2, 16, 16, dtype=torch.float64))


def _shared(**choices: Any) -> SharedStage:
    torch.manual_seed(11)
    settings = {"alpha": 0.5, "beta": 1.0, "gamma": 0.1, "switched": True, **choices}
    return SharedStage(textbook.SMALL, **settings).double().train()


def _information(
    network: StatisticsNetwork, c: Tensor, z: Tensor, orders: list[Tensor], bound: float | None
) -> Tensor:
    """Equation 2 over several draws of the product of the marginals, with T in its bound."""

    def within(t: Tensor) -> Tensor:
        return t if bound is None else bound * (t / bound).tanh()

    joint = within(textbook.score(network, c, z))
    products = [within(textbook.score(network, c, z[order])) for order in orders]
    return (-softplus(-joint)).mean() - softplus(torch.cat(products)).mean()


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("bound", [None, 0.02])
@pytest.mark.parametrize("norm", ["mean", "sum"])
def test_the_shared_stage_with_other_negatives_bounds_and_norms(
    negatives: int, bound: float | None, norm: Literal["mean", "sum"]
) -> None:
    stage, batch = _shared(negatives=negatives, score_bound=bound, distance_norm=norm), _batch()
    terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
    ours = torch.autograd.grad(sum(terms.values()), list(stage.parameters()))

    generator = Generator().manual_seed(4)
    orders = [derangement(PAIRS, generator) for _ in range(negatives)]
    (c_x, s_x), (c_y, s_y) = stage.x.encoder(batch.x), stage.x.encoder(batch.y)
    expected = torch.zeros((), dtype=torch.float64)
    networks = ((stage.x.global_statistics, 0.5), (stage.x.local_statistics, 1.0))
    for network, weight in networks:
        for c, s in ((c_x, s_y), (c_y, s_x)):
            expected = expected - weight * _information(network, c, s, orders, bound)
    apart = (s_x - s_y).abs()
    expected = expected + 0.1 * (apart.mean() if norm == "mean" else apart.sum() / PAIRS)
    torch.testing.assert_close(sum(terms.values()), expected, atol=1e-10, rtol=1e-10)
    theirs = torch.autograd.grad(expected, list(stage.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_a_bound_changes_small_scores_little_and_stops_large_ones() -> None:
    scores = torch.tensor([-1e9, -0.01, 0.0, 0.01, 1e9])
    kept = bounded(scores, 2.0)
    torch.testing.assert_close(kept, torch.tensor([-2.0, -0.01, 0.0, 0.01, 2.0]), atol=1e-6, rtol=0)
    assert bounded(scores, None) is scores


def test_images_encoded_together_share_their_statistics() -> None:
    stages = {each: _shared(encoded=each) for each in ("apart", "together")}
    batch = _batch()
    brighter = PairBatch(batch.x + 5, batch.y)
    terms = {
        name: stage.objective(stage.players[0], brighter, Generator().manual_seed(4))
        for name, stage in stages.items()
    }
    assert not torch.isclose(terms["together"]["distance"], terms["apart"]["distance"], rtol=0.01)

    encoder = _shared(encoded="together").x.encoder
    _, both = encoder(torch.cat([brighter.x, brighter.y]))
    s_x, s_y = both[:PAIRS], both[PAIRS:]
    torch.testing.assert_close(terms["together"]["distance"], 0.1 * (s_x - s_y).abs().mean())
    for name, tensor in stages["together"].x.encoder.state_dict().items():
        torch.testing.assert_close(tensor, encoder.state_dict()[name], msg=name)


def test_two_encoders_cannot_encode_together() -> None:
    with pytest.raises(ConfigError, match="encoded=together needs one encoder"):
        load_config(
            [],
            [
                "data={name: sentinel2, cube: x}",
                "method={name: infomax-shared, encoders: 2, encoded: together}",
            ],
        )


@pytest.mark.parametrize("slope", [0.2, 0.01, 0.0])
def test_the_encoders_slope_is_that_of_its_spec(slope: float) -> None:
    torch.manual_seed(0)
    encoder = Encoder(textbook.SMALL.model_copy(update={"leaky_slope": slope})).eval()
    image = torch.randn(2, 2, 16, 16)
    first, _, second, norm, _ = encoder.convolutions
    hidden = leaky_relu(conv2d(image, first.weight, first.bias, stride=2), slope)
    normed = batch_norm(
        conv2d(hidden, second.weight), norm.running_mean, norm.running_var, norm.weight, norm.bias
    )
    expected = linear(leaky_relu(normed, slope).flatten(1), *encoder.output.parameters())
    torch.testing.assert_close(encoder(image).representation, expected)


def test_a_slope_reaches_the_network_and_specs_of_before_keep_theirs() -> None:
    stage = SharedStageConfig(name="infomax-shared", leaky_slope=0.05).build(4, (64, 64))
    assert isinstance(stage, SharedStage)
    assert stage.x.encoder.spec.leaky_slope == 0.05
    before = textbook.SMALL.model_dump(exclude={"leaky_slope"})
    assert EncoderSpec.model_validate(before).leaky_slope == 0.2


def exclusive_stage(folder: Path, **choices: Any) -> ExclusiveStage:
    shared = [make_shared(folder / str(domain), domain) for domain in range(2)]
    torch.manual_seed(11)
    settings: dict[str, Any] = {
        "representation": 3, "alpha": 0.5, "beta": 1.0, "adversarial": 0.05,
        "form": "non-saturating", **choices,
    }  # fmt: skip
    return ExclusiveStage(shared, **settings).double().train()


def test_a_discriminator_that_moves_first_sees_the_encoder_before_it_moves(tmp_path: Path) -> None:
    stage, batch = exclusive_stage(tmp_path, first="discriminator"), _batch()
    assert [player.name for player in stage.players] == ["discriminator", "encoder"]
    for _ in range(2):
        generator = Generator().manual_seed(7)
        (loss,) = stage.objective(stage.players[0], batch, generator).values()
        order = derangement(PAIRS, Generator().manual_seed(7))
        expected = torch.zeros((), dtype=torch.float64)
        for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
            s = networks.shared_encoder.eval()(images).representation
            e = networks.encoder(images).representation.detach()
            real, fake = networks.discriminator(s, e[order]), networks.discriminator(s, e)
            expected = expected + softplus(-real).mean() + softplus(fake).mean()
        torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
        moved = stage.objective(stage.players[1], batch, generator)
        gradients = torch.autograd.grad(sum(moved.values()), list(stage.players[1].parameters))
        with torch.no_grad():
            for parameter, gradient in zip(stage.players[1].parameters, gradients, strict=True):
                parameter.sub_(0.1 * gradient)


def test_the_exclusive_stage_with_other_negatives_and_a_bound(tmp_path: Path) -> None:
    stage, batch = exclusive_stage(tmp_path, negatives=2, score_bound=0.02), _batch()
    terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
    generator = Generator().manual_seed(4)
    orders = [derangement(PAIRS, generator) for _ in range(2)]
    expected = torch.zeros((), dtype=torch.float64)
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        c_shared, s = networks.shared_encoder.eval()(images)
        c_exclusive, e = networks.encoder(images)
        c, r = torch.cat([c_shared, c_exclusive], 1), torch.cat([s, e], 1)
        for network, weight in ((networks.global_statistics, 0.5), (networks.local_statistics, 1)):
            expected = expected - weight * _information(network, c, r, orders, 0.02)
    torch.testing.assert_close(terms["global"] + terms["local"], expected, atol=1e-10, rtol=1e-10)


def test_what_is_settled_otherwise_stands_in_the_artifact(tmp_path: Path) -> None:
    learnt = _shared(distance_norm="sum", negatives=3, score_bound=4.0, encoded="together").learnt()
    assert learnt["artifact"].provenance == {
        "switched": "yes",
        "distance": "0.1 between representations as they are, summed over dimensions",
        "negatives": "3 of each pair",
        "score_bound": "4",
        "encoded": "both images in one batch",
    }
    plain = _shared().learnt()["artifact"].provenance
    assert set(plain) == {"switched", "distance"}
    said = exclusive_stage(tmp_path, first="discriminator", negatives=2).description
    assert said["adversarial"].endswith("discriminator first")
    assert said["negatives"] == "2 of each pair"


def test_the_exclusive_stage_is_built_as_its_configuration_says(tmp_path: Path) -> None:
    run = tmp_path / "shared"
    artifact = make_shared(run / "artifact", 0)
    config = ExclusiveStageConfig(
        name="infomax-exclusive", shared=run, first="discriminator", negatives=2, score_bound=3.0
    )
    stage = config.build(len(artifact.spec.bands), artifact.spec.encoder.image_size)
    assert stage.players[0].name == "discriminator"
    assert stage.description["score_bound"] == "3"
    assert Artifact.load(run / "artifact").spec.encoder.leaky_slope == 0.2


def test_by_default_each_choice_is_the_plain_one() -> None:
    shared = SharedStageConfig(name="infomax-shared").model_dump()
    exclusive = ExclusiveStageConfig(name="infomax-exclusive", shared=Path("run")).model_dump()
    for stage in (shared, exclusive):
        assert (stage["negatives"], stage["score_bound"]) == (1, None)
    plain = {
        "distance_inputs": "as they are", "distance_norm": "mean", "encoded": "apart",
        "leaky_slope": 0.2,
    }  # fmt: skip
    assert {name: shared[name] for name in plain} == plain
    settled = {
        "form": "non-saturating", "discriminator_inputs": "as they are", "discriminator_steps": 1,
        "discriminator_rate": None, "first": "encoder", "independence": 0.0, "levels": None,
        "levels_from": 0.0,
    }  # fmt: skip
    assert {name: exclusive[name] for name in settled} == settled
