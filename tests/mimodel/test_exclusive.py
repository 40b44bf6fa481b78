"""The exclusive stage: equations 8 to 10 by loops, who learns from what, and what stays frozen."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from mimodel.artifact import Artifact, ArtifactSpec, HeadSpec, Networks, save_artifact
from mimodel.config import RunConfig, TrainingConfig
from mimodel.data.configs import EuroSatConfig
from mimodel.data.pairs import LabelledPatches, PairBatch
from mimodel.errors import ArtifactError, ConfigError, InputError, TrainingError
from mimodel.methods.base import RepresentationScale
from mimodel.methods.configs import ExclusiveStageConfig, SharedStageConfig
from mimodel.methods.exclusive import ExclusiveNetworks, ExclusiveStage
from mimodel.metrics import read_metrics
from mimodel.normalisation import Normalisation
from mimodel.objectives import AdversarialForm, derangement
from mimodel.probe import feature_sets
from mimodel.train import train
from tests.mimodel import textbook
from tests.mimodel.archives import write_archive

PAIRS = 5
ALPHA, BETA, ADVERSARIAL = 0.5, 1.0, 0.05


def make_shared(folder: Path, seed: int) -> Artifact:
    torch.manual_seed(seed)
    spec = ArtifactSpec(
        name="shared",
        encoder=textbook.SMALL,
        normalisation=Normalisation(bands=("a", "b"), mean=(0, 0), std=(1, 1)),
        representations={"shared": 6},
        alpha=ALPHA,
        beta=BETA,
    )
    networks = Networks(spec)
    # BatchNorm that would notice if its statistics moved or the batch's were used.
    for module in networks.encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return save_artifact(folder, spec, networks.state_dict(), "# Shared\n")


def _stage(
    folder: Path,
    domains: int = 2,
    form: AdversarialForm = "non-saturating",
    inputs: RepresentationScale = "as they are",
) -> ExclusiveStage:
    shared = [make_shared(folder / str(domain), domain) for domain in range(domains)]
    torch.manual_seed(11)
    stage = ExclusiveStage(
        shared,
        representation=3,
        alpha=ALPHA,
        beta=BETA,
        adversarial=ADVERSARIAL,
        form=form,
        discriminator_inputs=inputs,
    )
    return stage.double().train()


def _batch() -> PairBatch:
    torch.manual_seed(3)
    return PairBatch(*torch.randn(2, PAIRS, 2, 16, 16, dtype=torch.float64))


def _encoded(networks: ExclusiveNetworks, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(maps of both encoders, S, E); the shared encoder in eval mode, without gradients."""
    with torch.no_grad():
        c_shared, s = textbook.encoded(networks.shared_encoder.eval(), images)
    c_exclusive, e = textbook.encoded(networks.encoder, images)
    return torch.cat([c_shared, c_exclusive], 1), s, e


def _equation_8(networks: ExclusiveNetworks, c: Tensor, s: Tensor, e: Tensor) -> Tensor:
    """alpha L_global(X, R_X) + beta L_local(X, R_X), one image and one position after another."""
    r = torch.cat([s, e], 1)
    order = derangement(PAIRS, Generator().manual_seed(4))
    of_all = textbook.information_one_by_one(networks.global_statistics, c, r, order)
    of_each = textbook.information_one_by_one(networks.local_statistics, c, r, order)
    return ALPHA * of_all + BETA * of_each


@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("form", ["non-saturating", "saturating"])
def test_the_encoder_minimises_equation_10(
    tmp_path: Path, domains: int, form: AdversarialForm
) -> None:
    stage, batch = _stage(tmp_path, domains, form), _batch()
    terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
    ours = sum(terms.values())

    expected = torch.zeros((), dtype=torch.float64)
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        c, s, e = _encoded(networks, images)
        fake = networks.discriminator(s, e).sigmoid()
        adversarial = -fake.log().mean() if form == "non-saturating" else (1 - fake).log().mean()
        expected = expected - _equation_8(networks, c, s, e) + ADVERSARIAL * adversarial
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)

    parameters = list(stage.players[0].parameters)
    mine, theirs = torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
        assert other.abs().max() > 0


def test_the_discriminator_maximises_equation_9_with_e_of_another_image(tmp_path: Path) -> None:
    stage, batch = _stage(tmp_path), _batch()
    encoder, discriminator = stage.players
    stage.objective(encoder, batch, Generator().manual_seed(4))
    (loss,) = stage.objective(discriminator, batch, Generator().manual_seed(7)).values()

    order = derangement(PAIRS, Generator().manual_seed(7)).tolist()
    equation_9 = torch.zeros((), dtype=torch.float64)
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        _, s, e = _encoded(networks, images)
        for one in range(PAIRS):
            own, other = e[one : one + 1].detach(), e[order[one] : order[one] + 1].detach()
            real = networks.discriminator(s[one : one + 1], other).sigmoid()
            fake = networks.discriminator(s[one : one + 1], own).sigmoid()
            equation_9 = equation_9 + (real.log() + (1 - fake).log()).sum() / PAIRS
    torch.testing.assert_close(loss, -equation_9, atol=1e-9, rtol=1e-9)
    parameters = list(discriminator.parameters)
    mine = torch.autograd.grad(loss, parameters)
    theirs = torch.autograd.grad(-equation_9, parameters)
    for one, by_loop in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, by_loop, atol=1e-9, rtol=1e-9)
        assert by_loop.abs().max() > 0


def test_a_standardised_discriminator_sees_e_whatever_its_scale(tmp_path: Path) -> None:
    """Else the encoder could hide in a dimension what it is not to say there."""
    batch, losses = _batch(), {}
    for inputs in get_args(RepresentationScale):
        stage = _stage(tmp_path / inputs, inputs=inputs)
        for scale in (1.0, 1e-2):
            with torch.no_grad():
                stage.x.encoder.output.weight[1] *= scale
                stage.x.encoder.output.bias[1] *= scale
            terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
            (loss,) = stage.objective(stage.players[1], batch, Generator().manual_seed(7)).values()
            losses[inputs, scale] = torch.stack([terms["adversarial"], loss])
    seen = "standardised"
    torch.testing.assert_close(losses[seen, 1.0], losses[seen, 1e-2], rtol=1e-4, atol=1e-6)
    assert (losses["as they are", 1.0] - losses["as they are", 1e-2]).abs().min() > 1e-5

    stage = _stage(tmp_path / "again", inputs=seen)
    expected = torch.zeros((), dtype=torch.float64)
    for networks, images in ((stage.x, batch.x), (stage.y, batch.y)):
        _, s, e = _encoded(networks, images)
        s, e = ((one - one.mean(0)) / (one.std(0, correction=0) + 1e-5) for one in (s, e))
        expected = expected - ADVERSARIAL * networks.discriminator(s, e).sigmoid().log().mean()
    torch.testing.assert_close(losses[seen, 1.0][0], expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", get_args(AdversarialForm))
@pytest.mark.parametrize(
    ("player", "term", "taught"),
    [
        ("encoder", "global", {"encoder", "global_statistics"}),
        ("encoder", "local", {"encoder", "local_statistics"}),
        ("encoder", "adversarial", {"encoder"}),
        ("discriminator", "discriminator", {"discriminator"}),
    ],
)
def test_each_term_teaches_its_own_networks_alone(
    tmp_path: Path, form: AdversarialForm, player: str, term: str, taught: set[str]
) -> None:
    """Taught as in the loop: gradients of a term end at the parameters of its player."""
    stage, batch = _stage(tmp_path, form=form), _batch()
    terms: dict[str, Tensor] = {}
    for one in stage.players:
        terms |= stage.objective(one, batch, Generator().manual_seed(4))
        if one.name == player:
            terms[term].backward(inputs=list(one.parameters))
    assert set(terms) == {"global", "local", "adversarial", "discriminator"}
    for networks in (stage.x, stage.y):
        assert textbook.reached(networks) == taught
        assert not any(one.requires_grad for one in networks.shared_encoder.parameters())


def test_each_player_moves_its_own_parameters_and_none_the_shared_encoder(tmp_path: Path) -> None:
    stage, batch = _stage(tmp_path), _batch()
    encoder, discriminator = stage.players
    frozen = {id(p) for one in (stage.x, stage.y) for p in one.shared_encoder.parameters()}
    sets = [{id(p) for p in player.parameters} for player in (encoder, discriminator)]
    assert not sets[0] & sets[1]
    assert sets[0] | sets[1] | frozen == {id(p) for p in stage.parameters()}
    assert not frozen & (sets[0] | sets[1])

    terms = stage.objective(encoder, batch, Generator().manual_seed(4))
    first = stage.x.encoder.convolutions[0].weight
    statistics = list(stage.x.global_statistics.parameters())
    # The adversarial term reaches the exclusive encoder through the discriminator.
    gradient, *unused = torch.autograd.grad(
        terms["adversarial"], [first, *statistics], allow_unused=True
    )
    assert gradient.abs().max() > 0
    assert all(gradient is None for gradient in unused)
    # The discriminator's loss ends at the representations.
    loss = stage.objective(discriminator, batch, Generator())["discriminator"]
    (none,) = torch.autograd.grad(loss, [first], allow_unused=True)
    assert none is None


def _run(folder: Path, archive: Path, method: object, **training: object) -> RunConfig:
    fields = {"iterations": 3, "batch_size": 2, "log_every": 1, "threads": 1, **training}
    return RunConfig.model_validate(
        {
            "data": EuroSatConfig(name="eurosat", archive=archive),
            "method": method,
            "training": TrainingConfig.model_validate(fields),
        }
    )


def test_after_training_the_shared_encoder_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "images.tar", range(1, 301, 100))
    first = _run(tmp_path, archive, SharedStageConfig(name="infomax-shared"))
    train(first, tmp_path / "shared", lambda *_: None)
    method = ExclusiveStageConfig(
        name="infomax-exclusive", shared=tmp_path / "shared", representation=8
    )
    # On other images, whose own mean and deviation are others.
    archive = write_archive(tmp_path / "more.tar", range(1, 401, 100))
    train(_run(tmp_path, archive, method), tmp_path / "exclusive", lambda *_: None)

    before = Artifact.load(tmp_path / "shared" / "artifact")
    after = Artifact.load(tmp_path / "exclusive" / "artifact")
    kept = after.networks.state_dict()
    for name, tensor in before.networks.state_dict().items():
        assert torch.equal(kept[name], tensor), name  # BatchNorm buffers included
    trained = torch.load(tmp_path / "exclusive" / "checkpoint.pt", weights_only=True)["method"]
    for name, tensor in before.networks.encoder.state_dict().items():
        assert torch.equal(trained[f"x.shared_encoder.{name}"], tensor), name
    assert after.spec.normalisation == before.spec.normalisation
    assert after.spec.representations == {"shared": 64, "exclusive": 8}
    assert after.spec.provenance["shared_iterations"] == "3"
    for kept_as_it_was in ("switched", "distance"):
        assert after.spec.provenance[kept_as_it_was] == before.spec.provenance[kept_as_it_was]

    patches = np.random.default_rng(0).uniform(0, 0.3, (3, 3, 64, 64)).astype(np.float32)
    np.testing.assert_array_equal(after.embed(patches), before.embed(patches))
    exclusive = after.embed(patches, representation="exclusive")
    assert exclusive.shape == (3, 8)
    assert np.ptp(exclusive, axis=0).max() > 0
    looks = LabelledPatches(
        reflectance=patches,
        label=np.zeros(3, np.int64),
        place=np.arange(3),
        date=np.zeros(3, np.int64),
        split=np.repeat("test", 3),
        classes=("a",),
    )
    probed = feature_sets(after, looks)
    assert list(probed) == ["shared", "exclusive", "image statistics", "untrained encoder"]
    np.testing.assert_array_equal(probed["exclusive"], exclusive)
    with pytest.raises(InputError, match="no representation 'exclusive'; it has: shared"):
        before.embed(patches, representation="exclusive")


def test_an_exclusive_run_stopped_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With moves and a rate of the discriminator's own, levels that begin where it was stopped, a
    memory, and a probe of stage 1 in between."""
    archive = write_archive(tmp_path / "images.tar", range(1, 301, 100))
    first = _run(tmp_path, archive, SharedStageConfig(name="infomax-shared"))
    train(first, tmp_path / "shared", lambda *_: None)
    method = ExclusiveStageConfig(
        name="infomax-exclusive",
        shared=tmp_path / "shared",
        representation=8,
        discriminator_steps=2,
        discriminator_rate=1e-3,
        levels=3,
        levels_from=0.5,
        independence=2.0,
    )
    config = _run(tmp_path, archive, method, decay="cosine", iterations=4)
    told, advanced = [], ExclusiveStage.advanced
    with monkeypatch.context() as patch:
        patch.setattr(
            ExclusiveStage, "advanced", lambda *given: (told.append(given[1]), advanced(*given))
        )
        train(config, tmp_path / "whole" / "run", lambda *_: None)
    assert told == [0, 0.25, 0.5, 0.75]
    encoder, discriminator = torch.load(
        tmp_path / "whole" / "run" / "checkpoint.pt", weights_only=True
    )["optimisers"]
    assert discriminator["param_groups"][0]["lr"] == pytest.approx(1e-3 * (1 - 2**-0.5) / 2)
    # Four steps of the game: four moves of the encoder, eight of the discriminator.
    assert {int(state["step"]) for state in encoder["state"].values()} == {4}
    assert {int(state["step"]) for state in discriminator["state"].values()} == {8}

    def stop(step: int, total: int, figures: object) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "stopped" / "run"
    assert not train(config, folder, stop).finished
    shared = Artifact.load(tmp_path / "shared" / "artifact")
    head = HeadSpec(classes=("a", "b"), hidden=4)
    spec = shared.spec.model_copy(update={"heads": {"planted": head}})
    probed = replace(shared, spec=spec, networks=Networks(spec))
    probed.networks.load_state_dict(shared.networks.state_dict(), strict=False)
    probed.save(tmp_path / "shared" / "artifact", "# Probed\n")
    (made,) = train(config, folder, lambda *_: None).artifacts
    whole, stopped = (Artifact.load(one) for one in (tmp_path / "whole/run/artifact", made))
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(
        tmp_path / "whole/run/metrics.jsonl"
    )
    theirs = stopped.networks.state_dict()
    for name, tensor in whole.networks.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    assert "planted" in stopped.spec.heads

    # Another encoder under a run that has begun is noticed, whatever its folder says.
    train(
        _run(tmp_path, archive, SharedStageConfig(name="infomax-shared"), seed=5),
        tmp_path / "other",
        lambda *_: None,
    )
    shutil.rmtree(tmp_path / "shared")
    (tmp_path / "other").rename(tmp_path / "shared")
    with pytest.raises(TrainingError, match="shared_digest"):
        train(config, folder, lambda *_: None)


def test_moves_of_the_discriminator_are_counted(tmp_path: Path) -> None:
    shared = [make_shared(tmp_path, 0)]
    stage = ExclusiveStage(
        shared, representation=3, alpha=1, beta=1, adversarial=1, form="saturating",
        discriminator_steps=3, discriminator_rate=1e-3,
    )  # fmt: skip
    _, discriminator = stage.players
    assert (discriminator.steps, discriminator.learning_rate) == (3, 1e-3)


def test_a_wrong_path_leaves_no_run_folder(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "images.tar", range(1, 301, 100))
    method = ExclusiveStageConfig(name="infomax-exclusive", shared=tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no artifact of a finished run"):
        train(_run(tmp_path, archive, method), tmp_path / "run", lambda *_: None)
    assert not (tmp_path / "run").exists()


def test_a_shared_encoder_of_other_images_is_an_error(tmp_path: Path) -> None:
    make_shared(tmp_path / "artifact", 0)
    method = ExclusiveStageConfig(name="infomax-exclusive", shared=tmp_path)
    with pytest.raises(ConfigError, match="train the shared stage on the same data first"):
        method.build(4, (64, 64))
