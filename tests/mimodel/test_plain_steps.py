"""What the benchmarks time against is an oracle: plainly written, and the same step."""

from pathlib import Path

import pytest
import torch

from benchmarks.test_training import (
    MNIST,
    PATCH,
    Step,
    as_trained,
    exclusive_stage,
    pairs,
    plain_exclusive,
    plain_shared,
    shared_stage,
)
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Method
from mimodel.networks import EncoderSpec


def _batch(spec: EncoderSpec) -> PairBatch:
    batch = pairs(spec, 3)
    return PairBatch(batch.x.double(), batch.y.double())


def _taken(method: Method, step: Step) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of a step, and the gradients that it leaves."""
    losses = step()
    assert all(loss.dtype == torch.float64 for loss in losses)
    named = method.named_parameters()
    return losses, {name: one.grad for name, one in named if one.grad is not None}


def _assert_same(plain: Method, of_plain: Step, trained: Method, of_trained: Step) -> None:
    """float64, which autocast leaves alone; what is left is the order of sums."""
    losses, gradients = _taken(plain, of_plain)
    found, own = _taken(trained, of_trained)
    torch.testing.assert_close(found, losses, atol=1e-10, rtol=1e-10)
    learning = {name for name, one in plain.named_parameters() if one.requires_grad}
    assert set(gradients) == set(own) == learning
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(own[name], gradient, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("spec", [MNIST, PATCH], ids=["28x28", "64x64"])
def test_a_shared_step_as_trained_is_the_plain_one(spec: EncoderSpec) -> None:
    plain, trained = (shared_stage(spec).double() for _ in range(2))
    batch = _batch(spec)
    _assert_same(plain, plain_shared(plain, batch), trained, as_trained(trained, batch))


@pytest.mark.parametrize("spec", [MNIST, PATCH], ids=["28x28", "64x64"])
def test_an_exclusive_step_as_trained_is_the_plain_one(spec: EncoderSpec, tmp_path: Path) -> None:
    plain, trained = (exclusive_stage(spec, tmp_path / str(one)).double() for one in range(2))
    batch = _batch(spec)
    _assert_same(plain, plain_exclusive(plain, batch), trained, as_trained(trained, batch))
