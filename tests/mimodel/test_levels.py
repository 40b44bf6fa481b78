"""Representations of a few levels: the nearest one, a gradient as without, the same everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from mimodel.artifact import Artifact, ArtifactSpec, Networks, frozen, save_artifact
from mimodel.backends import Backend, embedder
from mimodel.config import load_config
from mimodel.data.pairs import PairBatch
from mimodel.errors import ConfigError
from mimodel.methods.configs import ExclusiveStageConfig
from mimodel.methods.exclusive import Remembered
from mimodel.networks import Encoder, Levels
from mimodel.normalisation import Normalisation
from mimodel.objectives import derangement
from tests.mimodel import textbook
from tests.mimodel.test_exclusive import make_shared
from tests.mimodel.test_open_choices import exclusive_stage

PAIRS = 6
EXCLUSIVE = textbook.SMALL.model_copy(update={"representation": 3, "levels": 3})


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / (values.var(0, correction=0) + 1e-5).sqrt()


def _nearest(standardised: Tensor, count: int) -> Tensor:
    """The nearest of `count` values, 1 apart and even around 0, by looking at all of them."""
    levels = torch.arange(count, dtype=standardised.dtype) - (count - 1) / 2
    return levels[(standardised[..., None] - levels).abs().argmin(-1)]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_each_value_becomes_the_nearest_level(count: int) -> None:
    values = torch.randn(500, 8, generator=Generator().manual_seed(0), dtype=torch.float64) * 9 + 4
    layer = Levels(count, 8).double()
    rounded = layer(values.requires_grad_())
    torch.testing.assert_close(rounded, _nearest(_standardised(values), count), atol=1e-9, rtol=0)
    # Another scale of a dimension is the same code: none of them can fall silent.
    torch.testing.assert_close(layer(values * 100), rounded, atol=1e-9, rtol=0)
    with torch.no_grad():
        exact = layer(values)
    assert [len(column.unique()) for column in exact.T] == [count] * 8
    assert exact.max() == -exact.min() == (count - 1) / 2


def test_what_is_served_is_rounded_by_the_running_statistics() -> None:
    layer = Levels(4, 3)
    layer.norm.running_mean.copy_(torch.tensor([5.0, -1.0, 0.0]))  # type: ignore[union-attr]
    layer.norm.running_var.copy_(torch.tensor([4.0, 1.0, 100.0]))  # type: ignore[union-attr]
    layer.eval()
    with torch.no_grad():
        found = layer(torch.tensor([[5.1, 1.9, -9.0], [1.9, -1.2, 1e9]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.5, -0.5], [-1.5, -0.5, 1.5]]))


def test_gradients_pass_the_rounding() -> None:
    generator = Generator().manual_seed(1)
    values, weights = torch.randn(2, 20, 5, generator=generator, dtype=torch.float64)
    values.requires_grad_()
    (ours,) = torch.autograd.grad((weights * Levels(2, 5).double()(values)).sum(), values)
    (plain,) = torch.autograd.grad((weights * _standardised(values)).sum(), values)
    torch.testing.assert_close(ours, plain)


def test_all_terms_of_the_exclusive_stage_read_the_levels(tmp_path: Path) -> None:
    stage = exclusive_stage(tmp_path, levels=3, independence=7.0)
    torch.manual_seed(3)
    before = torch.randn(9, 6).double(), torch.randn(9, 3).double()
    remembered = Remembered(6, 3).double()
    for memory in (remembered, stage.x.remembered, stage.y.remembered):
        memory.add(*before)
    batch = PairBatch(*torch.randn(2, PAIRS, 2, 16, 16, dtype=torch.float64))
    terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
    order = derangement(PAIRS, Generator().manual_seed(4))
    expected = {name: torch.zeros((), dtype=torch.float64) for name in terms}
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        c_shared, s = networks.shared_encoder.eval()(images)
        c_own = networks.encoder(images).feature_map
        e = _nearest(_standardised(networks.encoder.output(c_own.flatten(1))), 3)
        assert s.unique().numel() == s.numel()  # the shared one is as the paper has it
        c, r = torch.cat([c_shared, c_own], 1), torch.cat([s, e], 1)
        for name, network, weight in (
            ("global", networks.global_statistics, 0.5),
            ("local", networks.local_statistics, 1.0),
        ):
            joint, product = (textbook.score(network, c, z) for z in (r, r[order]))
            expected[name] -= weight * (-softplus(-joint).mean() - softplus(product).mean())
        expected["adversarial"] += 0.05 * softplus(-networks.discriminator(s, e)).mean()
        expected["dependence"] += 7 * remembered.dependence(s, e)
    torch.testing.assert_close(terms, expected, atol=1e-10, rtol=1e-10)
    moved = torch.autograd.grad(
        torch.stack(list(terms.values())).sum(), list(stage.x.encoder.parameters())
    )
    assert all(gradient.abs().max() > 0 for gradient in moved)


def test_levels_may_begin_late_and_are_always_in_what_is_kept(tmp_path: Path) -> None:
    stage = exclusive_stage(tmp_path, levels=3, levels_from=0.5)
    images = torch.randn(PAIRS, 2, 16, 16, dtype=torch.float64)

    def seen() -> tuple[Tensor, Tensor]:
        networks = stage.x
        values = networks.encoder.output(networks.encoder(images).feature_map.flatten(1))
        return networks.encoder(images).representation, _standardised(values)

    for done in (0, 0.49):
        stage.advanced(done)
        torch.testing.assert_close(*seen(), atol=1e-12, rtol=0)
    stage.eval()
    assert set(seen()[0].detach().unique().tolist()) <= {-1, 0, 1}
    stage.train()
    for done in (0.5, 1):
        stage.advanced(done)
        found, standardised = seen()
        torch.testing.assert_close(found, _nearest(standardised, 3), atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def model() -> Artifact:
    torch.manual_seed(0)
    spec = ArtifactSpec(
        name="levels",
        encoder=textbook.SMALL,
        exclusive_encoder=EXCLUSIVE,
        normalisation=Normalisation(bands=("a", "b"), mean=(0, 0), std=(1, 1)),
        representations={"shared": 6, "exclusive": 3},
    )
    networks = Networks(spec)
    statistics = dict(networks.named_buffers())
    torch.nn.init.normal_(statistics["exclusive_encoder.levels.norm.running_mean"], std=0.1)
    torch.nn.init.uniform_(statistics["exclusive_encoder.levels.norm.running_var"], 0.01, 0.1)
    return Artifact(spec, "0" * 64, frozen(networks))


@pytest.mark.parametrize("backend", list(Backend))
def test_every_backend_gives_levels(
    model: Artifact, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if backend in (Backend.ONNXRUNTIME, Backend.OPENVINO):
        pytest.importorskip(backend.value)
    patches = np.random.default_rng(0).normal(size=(40, 2, 16, 16)).astype(np.float32) * 3
    found = embedder(model, "exclusive", backend)(patches)
    assert set(np.unique(found)) == {-1, 0, 1}
    plain = Encoder(EXCLUSIVE).eval()
    plain.load_state_dict(model.networks.exclusive_encoder.state_dict())  # type: ignore[union-attr]
    assert isinstance(plain.levels, Levels)
    norm = plain.levels.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        values = plain.output(plain.convolutions(torch.from_numpy(patches)).flatten(1))
        scaled = (values - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    expected = _nearest(scaled, 3).numpy()
    # bfloat16 may move what lies between two levels to the other one.
    sure = ((scaled.abs() - 0.5).abs() > 0.05).numpy()
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(found[sure], expected[sure])


def test_levels_are_part_of_what_makes_a_representation(model: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    spec = model.spec.model_copy(
        update={"exclusive_encoder": EXCLUSIVE.model_copy(update={"levels": 2})}
    )
    other = save_artifact(folder, spec, model.networks.state_dict(), "#")
    digests = [
        [one.representation_digest(name) for name in ("shared", "exclusive")]
        for one in (model, other)
    ]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]
    patches = np.random.default_rng(0).normal(size=(40, 2, 16, 16)).astype(np.float32)
    vectors = Artifact.load(folder).embed(patches, representation="exclusive")
    assert set(np.unique(vectors)) == {-0.5, 0.5}


def test_a_configuration_names_the_levels(tmp_path: Path) -> None:
    make_shared(tmp_path / "run" / "artifact", 0)
    config = ExclusiveStageConfig(name="infomax-exclusive", shared=tmp_path / "run", levels=5)
    stage = config.build(2, textbook.SMALL.image_size)
    assert stage.description["exclusive_levels"] == "5"
    exclusive, shared = (
        stage.learnt()["artifact"].fields[name] for name in ("exclusive_encoder", "encoder")
    )
    assert (exclusive.levels, shared.levels) == (5, None)
    late = config.model_copy(update={"levels_from": 0.25}).build(2, textbook.SMALL.image_size)
    assert late.description["exclusive_levels"] == "5, from 0.25 of the run"
    plain = config.model_copy(update={"levels": None}).build(2, textbook.SMALL.image_size)
    assert "exclusive_levels" not in plain.description
    for wrong, said in (
        ("levels: 1", r"method.infomax-exclusive.levels"),
        ("levels_from: 0.5", "levels_from needs levels; name how many, or leave levels_from at 0"),
    ):
        given = f"method={{name: infomax-exclusive, shared: run, {wrong}}}"
        with pytest.raises(ConfigError, match=said):
            load_config([], ["data={name: sentinel2, cube: x}", given])
