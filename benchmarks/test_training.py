"""A step of each stage at the supplement's tables, against the same tables written plainly.

The baseline is what a textbook gives: float32, contiguous tensors, the representation tiled and
concatenated with the feature map for the joint and for the product term, Adam as it comes. Both
give losses and gradients alike, says tests/mimodel/test_plain_steps.py; a step returns its losses,
one a player.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mimodel.artifact import Artifact, ArtifactSpec, Networks, save_artifact
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Method
from mimodel.methods.exclusive import ExclusiveNetworks, ExclusiveStage
from mimodel.methods.shared import SharedStage
from mimodel.networks import EncoderSpec, inference_dtype
from mimodel.normalisation import Normalisation
from mimodel.objectives import (
    adversarial_term,
    derangement,
    discriminator_loss,
    representation_distance,
)
from tests.mimodel.textbook import encoded, information

PAIRS = 16
Step = Callable[[], list[torch.Tensor]]
MNIST = EncoderSpec.for_images(3, (28, 28))
PATCH = EncoderSpec.for_images(4)


def shared_stage(spec: EncoderSpec) -> SharedStage:
    torch.manual_seed(0)
    encoders = 2 if spec is MNIST else 1
    return SharedStage(
        spec, alpha=0.5, beta=1.0, gamma=0.1, switched=True, encoders=encoders
    ).train()


def exclusive_stage(spec: EncoderSpec, folder: Path) -> ExclusiveStage:
    torch.manual_seed(0)
    size = 8 if spec is MNIST else 64
    shared = [_artifact(spec, folder / str(one)) for one in range(2 if spec is MNIST else 1)]
    return ExclusiveStage(
        shared, representation=size, alpha=0.5, beta=1.0, adversarial=0.05, form="non-saturating"
    ).train()


def _artifact(spec: EncoderSpec, folder: Path) -> Artifact:
    bands = tuple(f"band {band}" for band in range(spec.in_channels))
    ones = (1.0,) * len(bands)
    whole = ArtifactSpec(
        name="untrained",
        encoder=spec,
        normalisation=Normalisation(bands=bands, mean=ones, std=ones),
        representations={"shared": spec.representation},
        alpha=0.5,
        beta=1.0,
    )
    return save_artifact(folder, whole, Networks(whole).state_dict(), "# Untrained\n")


def pairs(spec: EncoderSpec, count: int = PAIRS) -> PairBatch:
    shape = (count, spec.in_channels, *spec.image_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return PairBatch(x, x.roll(1, 2))


def plain_shared(method: SharedStage, batch: PairBatch) -> Step:
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> list[torch.Tensor]:
        c_x, s_x = encoded(method.x.encoder, batch.x)
        c_y, s_y = encoded(method.y.encoder, batch.y)
        order = derangement(len(batch.x), generator)
        loss = 0.1 * representation_distance(s_x, s_y)
        for networks, c, s in ((method.x, c_x, s_y), (method.y, c_y, s_x)):
            loss = loss - 0.5 * information(networks.global_statistics, c, s, order)
            loss = loss - information(networks.local_statistics, c, s, order)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return [loss.detach()]

    return step


def plain_exclusive(method: ExclusiveStage, batch: PairBatch) -> Step:
    first, second = (torch.optim.Adam(p.parameters, lr=1e-4) for p in method.players)
    generator = torch.Generator().manual_seed(0)

    def half(networks: ExclusiveNetworks, images: torch.Tensor, order: torch.Tensor) -> Any:
        with torch.no_grad():
            c_shared, s = encoded(networks.shared_encoder, images)
        c_exclusive, e = encoded(networks.encoder, images)
        c, r = torch.cat([c_shared, c_exclusive], 1), torch.cat([s, e], 1)
        loss = -0.5 * information(networks.global_statistics, c, r, order)
        loss = loss - information(networks.local_statistics, c, r, order)
        fake = networks.discriminator(s, e)
        return loss + 0.05 * adversarial_term(fake, "non-saturating"), s, e.detach()

    def step() -> list[torch.Tensor]:
        order = derangement(len(batch.x), generator)
        sides = [half(method.x, batch.x, order), half(method.y, batch.y, order)]
        loss = sides[0][0] + sides[1][0]
        first.zero_grad()
        loss.backward()
        first.step()
        other = derangement(len(batch.x), generator)
        losses = [
            discriminator_loss(networks.discriminator(s, e[other]), networks.discriminator(s, e))
            for networks, (_, s, e) in zip((method.x, method.y), sides, strict=True)
        ]
        discrimination = losses[0] + losses[1]
        second.zero_grad()
        discrimination.backward()
        second.step()
        return [loss.detach(), discrimination.detach()]

    return step


def as_trained(method: Method, batch: PairBatch) -> Step:
    method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisers = [torch.optim.Adam(p.parameters, lr=1e-4, fused=True) for p in method.players]
    batch = PairBatch(
        batch.x.contiguous(memory_format=torch.channels_last),
        batch.y.contiguous(memory_format=torch.channels_last),
    )
    generator = torch.Generator().manual_seed(0)
    native = inference_dtype(torch.device("cpu")) is torch.bfloat16

    def step() -> list[torch.Tensor]:
        losses = []
        for player, optimiser in zip(method.players, optimisers, strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native):
                terms = method.objective(player, batch, generator)
            loss = torch.stack(list(terms.values())).sum()
            optimiser.zero_grad()
            loss.backward(inputs=list(player.parameters))
            optimiser.step()
            losses.append(loss.detach())
        return losses

    return step


@pytest.mark.parametrize("how", ["plain", "as trained"])
@pytest.mark.parametrize("spec", [MNIST, PATCH], ids=["28x28", "64x64"])
def test_shared_step(benchmark: Any, spec: EncoderSpec, how: str) -> None:
    benchmark.group = f"a shared step of {PAIRS} pairs of {spec.image_size}"
    method, batch = shared_stage(spec), pairs(spec)
    step = plain_shared(method, batch) if how == "plain" else as_trained(method, batch)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("how", ["plain", "as trained"])
@pytest.mark.parametrize("spec", [MNIST, PATCH], ids=["28x28", "64x64"])
def test_exclusive_step(benchmark: Any, spec: EncoderSpec, how: str, tmp_path: Path) -> None:
    benchmark.group = f"an exclusive step of {PAIRS} pairs of {spec.image_size}"
    method, batch = exclusive_stage(spec, tmp_path), pairs(spec)
    step = plain_exclusive(method, batch) if how == "plain" else as_trained(method, batch)
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)
