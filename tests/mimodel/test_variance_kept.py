"""What an artifact keeps of E: its leading components, and none of a leak outside them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from torch import Generator, Tensor, nn

from mimodel.config import load_config
from mimodel.data.pairs import PairBatch
from mimodel.errors import ConfigError
from mimodel.methods.exclusive import ExclusiveStage, leading
from tests.mimodel.test_exclusive import make_shared


def _layer(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).double()


def _projected(layer: nn.Linear, values: Tensor, share: float) -> tuple[nn.Linear, int]:
    weight, bias, count = leading(layer, values, share)
    other = _layer(layer.in_features, layer.out_features)
    with torch.no_grad():
        other.weight.copy_(weight)
        other.bias.copy_(bias)
    return other, count


@pytest.mark.parametrize(("share", "count"), [(0.5, 2), (0.9, 4), (1.0, 6)])
def test_a_projected_layer_gives_what_scikit_learn_restores(share: float, count: int) -> None:
    inputs = torch.randn(200, 9, generator=Generator().manual_seed(1)).double()
    layer = _layer(9, 6)
    values = layer(inputs).detach()
    projected, found = _projected(layer, values, share)
    mean, deviation = values.mean(0).numpy(), values.std(0, correction=0).numpy()
    unit = (values.numpy() - mean) / deviation
    pca = PCA(count).fit(unit)
    assert found == count
    assert pca.explained_variance_ratio_.sum() >= share - 1e-12
    assert pca.explained_variance_ratio_[:-1].sum() < share
    restored = pca.inverse_transform(pca.transform(unit)) * deviation + mean
    np.testing.assert_allclose(projected(inputs).detach().numpy(), restored, atol=1e-10)


def test_the_scale_of_a_dimension_is_no_matter() -> None:
    inputs = torch.randn(200, 9, generator=Generator().manual_seed(1)).double()
    layer, scales = _layer(9, 6), torch.tensor([1, 1e-3, 10, 1, 100, 1]).double()
    plain = _projected(layer, layer(inputs), 0.7)[0](inputs)
    with torch.no_grad():
        layer.weight.mul_(scales[:, None])
        layer.bias.mul_(scales)
    scaled = _projected(layer, layer(inputs), 0.7)[0](inputs)
    torch.testing.assert_close(scaled / scales, plain, atol=1e-10, rtol=1e-10)


def test_a_faint_leak_is_gone_and_what_is_strong_is_whole() -> None:
    """Two strong hidden values and a hundredth of S, mixed: all of S can be read, and then none."""
    generator = Generator().manual_seed(2)
    hidden = torch.randn(4000, 3, generator=generator).double()
    s = hidden[:, 2].numpy()
    layer = _layer(3, 8)
    with torch.no_grad():
        layer.weight[:, 2] *= 0.01
    projected, count = _projected(layer, layer(hidden[:2000]), 0.999)
    assert count == 2
    before, after = (one(hidden).detach().numpy() for one in (layer, projected))
    for told, wanted, least, most in (
        (before, s, 0.999, 1.0),
        (after, s, -0.01, 0.01),
        (after, hidden[:, 0].numpy(), 0.999, 1.0),
        (after, hidden[:, 1].numpy(), 0.999, 1.0),
    ):
        reader = LinearRegression().fit(told[:2000], wanted[:2000])
        assert least <= reader.score(told[2000:], wanted[2000:]) <= most


def test_a_dimension_that_does_not_vary_is_kept_as_it_is() -> None:
    layer = _layer(9, 4)
    with torch.no_grad():
        layer.weight[1] = 0
    inputs = torch.randn(50, 9, generator=Generator().manual_seed(1)).double()
    values = layer(inputs).detach()
    found = _projected(layer, values, 0.6)[0](inputs)
    torch.testing.assert_close(found[:, 1], values[:, 1], atol=1e-9, rtol=0)
    assert found.isfinite().all()


def _stage(folder: Path, variance_kept: float, independence: float, domains: int) -> ExclusiveStage:
    shared = [make_shared(folder / str(domain), domain) for domain in range(domains)]
    torch.manual_seed(11)
    stage = ExclusiveStage(
        shared,
        representation=4,
        alpha=0.5,
        beta=1.0,
        adversarial=0.05,
        form="non-saturating",
        independence=independence,
        variance_kept=variance_kept,
    )
    return stage.double().train()


@pytest.mark.parametrize("independence", [0.0, 3.0])
@pytest.mark.parametrize("domains", [1, 2])
def test_what_is_kept_is_projected_and_what_learns_is_not(
    tmp_path: Path, domains: int, independence: float
) -> None:
    stage, plain = (_stage(tmp_path, share, independence, domains) for share in (0.6, 1.0))
    untouched = {
        k: v.clone() for k, v in stage.learnt()["artifact" + "-x" * (domains == 2)].state.items()
    }
    for name, value in stage.x.encoder.state_dict().items():  # nothing is remembered yet
        assert torch.equal(untouched[f"exclusive_encoder.{name}"], value)
    for step in range(3):
        torch.manual_seed(step)
        batch = PairBatch(*torch.randn(2, 5, 2, 16, 16, dtype=torch.float64))
        terms = [
            one.objective(one.players[0], batch, Generator().manual_seed(4))
            for one in (stage, plain)
        ]
        assert terms[0] == terms[1]
    whole = stage.state_dict()
    for name, value in plain.state_dict().items():
        assert "remembered" in name or torch.equal(whole[name], value), name
    for learnt, networks in zip(stage.learnt().values(), (stage.x, stage.y), strict=False):
        weight, bias, count = leading(networks.encoder.output, networks.remembered.e, 0.6)
        assert 1 <= count < 4
        assert torch.linalg.matrix_rank(weight) == count
        expected = networks.encoder.state_dict() | {"output.weight": weight, "output.bias": bias}
        for name, value in expected.items():
            assert torch.equal(learnt.state[f"exclusive_encoder.{name}"], value), name
        said = f"{count} of 4, with 0.6 of the variance"
        assert learnt.provenance["exclusive_components"] == said
    for learnt in plain.learnt().values():
        assert "exclusive_components" not in learnt.provenance


def test_levels_and_a_share_are_not_set_together(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {name: colored-mnist, folder: mnist}\n"
        "method: {name: infomax-exclusive, shared: run, levels: 3, variance_kept: 0.9}\n"
    )
    with pytest.raises(ConfigError, match="set levels or variance_kept, not both"):
        load_config([path], [])
