"""A step of the shared stage at Tables 8 to 10, against the same tables written plainly.

The baseline is what a textbook gives: float32, contiguous tensors, the representation tiled and
concatenated with the feature map for the joint and for the product term, Adam as it comes.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mimodel.data.pairs import PairBatch
from mimodel.methods.infomax import SharedStage
from mimodel.networks import EncoderSpec, inference_dtype
from mimodel.objectives import derangement, representation_distance
from tests.mimodel.textbook import information

PAIRS = 16


def stage() -> SharedStage:
    torch.manual_seed(0)
    spec = EncoderSpec.for_images(4)
    return SharedStage(spec, alpha=0.5, beta=1.0, gamma=0.1, switched=True).train()


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(PAIRS, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    return x, x.roll(1, 2)


def plain() -> Callable[[], Any]:
    method = stage()
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-4)
    x, y = pairs()
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        c_x, s_x = method.x.encoder(x)
        c_y, s_y = method.x.encoder(y)
        order = derangement(PAIRS, generator)
        networks = (method.x.global_statistics, 0.5), (method.x.local_statistics, 1.0)
        loss = 0.1 * representation_distance(s_x, s_y)
        for network, weight in networks:
            loss = loss - weight * information(network, c_x, s_y, order)
            loss = loss - weight * information(network, c_y, s_x, order)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def as_trained() -> Callable[[], Any]:
    method = stage().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-4, fused=True)
    batch = PairBatch(*(side.contiguous(memory_format=torch.channels_last) for side in pairs()))
    generator = torch.Generator().manual_seed(0)
    (player,) = method.players
    native = inference_dtype(torch.device("cpu")) is torch.bfloat16

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native):
            terms = method.objective(player, batch, generator)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward(inputs=list(player.parameters))
        optimiser.step()

    return step


@pytest.mark.benchmark(group=f"shared step, 64x64x4, {PAIRS} pairs")
@pytest.mark.parametrize("form", [plain, as_trained])
def test_shared_step(benchmark: Any, form: Callable[[], Callable[[], Any]]) -> None:
    benchmark.pedantic(form(), rounds=5, warmup_rounds=1)
