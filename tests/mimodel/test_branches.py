"""Two branches at once against the same two one after the other."""

from collections.abc import Iterator, Sequence
from threading import Barrier, BrokenBarrierError

import pytest
import torch
from torch import Tensor, nn

from mimodel.branches import Branch, side_by_side

PATIENCE = 20.0
"""Seconds that one branch waits for the other."""


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _networks(dtype: torch.dtype = torch.float64) -> list[nn.Sequential]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
        for _ in range(2)
    ]


def _branches(networks: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Branch]:
    return [
        Branch(lambda t, n=network: (n(t), t.square()), (images,), list(network.parameters()))
        for network, images in zip(networks, inputs, strict=True)
    ]


def _meeting() -> tuple[Barrier, Branch, Branch]:
    """Two branches each of which waits for the other."""
    barrier = Barrier(2)

    def run(values: Tensor) -> tuple[Tensor]:
        barrier.wait(PATIENCE)
        return (values * 2,)

    first, second = (torch.ones(3, requires_grad=True) for _ in range(2))
    return barrier, Branch(run, (first,), ()), Branch(run, (second,), ())


def _loss_and_gradients(threads: int) -> list[Tensor]:
    torch.set_num_threads(threads)
    networks = _networks()
    inputs = [torch.linspace(-1, 1 + k, 20, dtype=torch.float64).view(4, 5) for k in range(2)]
    for values in inputs:
        values.requires_grad_()
    (a, a_squares), (b, _) = side_by_side(*_branches(networks, inputs))
    # Each goes on into what belongs to both; one output is not used.
    loss = (a * b.detach().cos()).sum() + (b * a).tanh().sum() + a_squares.sum()
    sources = [*inputs, *(p for network in networks for p in network.parameters())]
    statistics = [buffer for network in networks for buffer in network.buffers()]
    return [a, b, loss, *torch.autograd.grad(loss, sources), *statistics]


def test_values_gradients_and_statistics_are_those_of_one_after_the_other() -> None:
    for beside, after in zip(_loss_and_gradients(2), _loss_and_gradients(1), strict=True):
        torch.testing.assert_close(beside, after, atol=1e-14, rtol=1e-13)


def test_gradients_add_to_those_that_are_there_and_reach_no_others() -> None:
    one, other = networks = _networks()
    inputs = [torch.ones(4, 5, dtype=torch.float64) for _ in networks]
    (a, _), (b, _) = side_by_side(*_branches(networks, inputs))
    wanted = list(one.parameters())
    (a.sum() + b.sum()).backward(inputs=wanted)
    first = [p.grad.clone() for p in wanted if p.grad is not None]
    assert len(first) == len(wanted)
    assert all(p.grad is None for p in other.parameters())
    (a, _), (b, _) = side_by_side(*_branches(networks, inputs))
    (a.sum() + b.sum()).backward(inputs=wanted)
    for parameter, once in zip(wanted, first, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * once)


def test_they_run_at_once_where_they_have_nothing_in_common() -> None:
    _, first, second = _meeting()
    (a,), (b,) = side_by_side(first, second)
    (a + 3 * b).sum().backward()
    grads = [branch.inputs[0].grad for branch in (first, second)]
    assert [grad.tolist() for grad in grads if grad is not None] == [[2.0] * 3, [6.0] * 3]


def test_one_after_the_other_where_they_share_a_network_or_a_single_thread() -> None:
    barrier, first, second = _meeting()
    shared = nn.Parameter(torch.ones(1))
    first, second = (branch._replace(parameters=[shared]) for branch in (first, second))
    barrier.abort()  # so that waiting for the other fails at once
    with pytest.raises(BrokenBarrierError):
        side_by_side(first, second)
    seen: list[str] = []
    calls = [
        Branch(lambda t, n=name: (seen.append(n) or t,), (torch.ones(2),), [shared])
        for name in ("first", "second")
    ]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        side_by_side(*calls)
    assert seen == ["first", "second"] * 2


def test_a_branch_has_the_precision_of_its_caller() -> None:
    networks = _networks(torch.float32)
    inputs = [torch.ones(4, 5) for _ in networks]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (a, _), _ = side_by_side(*_branches(networks, inputs))
    (b, _), _ = side_by_side(*_branches(networks, inputs))
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.float32)


def test_what_goes_wrong_in_a_branch_comes_to_the_caller() -> None:
    networks = _networks()
    wrong = [torch.ones(4, 5, dtype=torch.float64), torch.ones(4, 6, dtype=torch.float64)]
    with pytest.raises(RuntimeError, match="4x6"):
        side_by_side(*_branches(networks, wrong))
