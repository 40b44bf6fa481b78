"""Two branches at once against the same two one after the other."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mimodel.branches import Branch, side_by_side
from tests.mimodel.joint_game import play
from tests.mimodel.test_exclusive import make_shared

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
        Branch(lambda t, n=network: (n(t), t.square()), (images,), (network,))
        for network, images in zip(networks, inputs, strict=True)
    ]


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
        torch.testing.assert_close(beside, after, atol=1e-12, rtol=1e-11)


def test_both_stages_learn_the_same_on_two_threads_as_on_one(tmp_path: Path) -> None:
    for seed, name in enumerate(("x", "y")):
        make_shared(tmp_path / name, seed)
    beside = play(tmp_path)
    torch.set_num_threads(1)
    after = play(tmp_path)
    assert beside.keys() == after.keys()
    for name, value in beside.items():
        torch.testing.assert_close(value, after[name], atol=1e-11, rtol=1e-9, msg=name)


def test_gradients_add_to_those_that_are_there_and_reach_no_others() -> None:
    one, other = networks = _networks()
    inputs = [torch.ones(4, 5, dtype=torch.float64) for _ in networks]
    wanted = list(one.parameters())
    for _ in range(2):
        (a, squares), (b, _) = side_by_side(*_branches(networks, inputs))
        assert (a.requires_grad, squares.requires_grad) == (True, False)
        (a.sum() + b.sum()).backward(inputs=wanted)
    twice = [p.grad.clone() for p in wanted if p.grad is not None]
    (a, _), _ = side_by_side(*_branches(networks, inputs))
    once = torch.autograd.grad(a.sum(), wanted)  # of one half alone
    for both, single in zip(twice, once, strict=True):
        torch.testing.assert_close(both, 2 * single)
    assert all(p.grad is None for p in other.parameters())


def test_where_nothing_is_learnt_there_is_no_way_back() -> None:
    networks = [network.requires_grad_(False) for network in _networks()]
    inputs = [torch.ones(4, 5, dtype=torch.float64) for _ in networks]
    (a, _), (b, _) = side_by_side(*_branches(networks, inputs))
    assert (a.requires_grad, b.requires_grad) == (False, False)
    networks[0].requires_grad_(True)
    (a, _), (b, _) = side_by_side(*_branches(networks, inputs))
    (a.sum() + b.sum()).backward()
    assert all(p.grad is not None for p in networks[0].parameters())


def test_a_second_way_back_is_refused() -> None:
    networks = _networks()
    inputs = [torch.ones(4, 5, dtype=torch.float64) for _ in networks]
    (a, _), (b, _) = side_by_side(*_branches(networks, inputs))
    (a.sum() + b.sum()).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        (a.sum() + b.sum()).backward()


def _where(networks: Sequence[nn.Module]) -> list[str]:
    """The threads that two branches ran on; where these are not the caller's, each has waited for
    the other to begin."""
    barrier, caller = threading.Barrier(2), threading.current_thread()
    seen: list[str] = []

    def run(values: Tensor) -> tuple[Tensor]:
        thread = threading.current_thread()
        seen.append(thread.name)
        if thread is not caller:
            barrier.wait(PATIENCE)
        return (values * 2,)

    inputs = [torch.ones(3, requires_grad=True) for _ in networks]
    pair = [Branch(run, (each,), (net,)) for each, net in zip(inputs, networks, strict=True)]
    side_by_side(*pair)
    return sorted(seen)


def test_they_run_at_once_where_they_have_nothing_in_common() -> None:
    here = threading.current_thread().name
    one, other = _networks()
    assert _where([one, other]) == ["branch_0", "branch_1"]
    assert _where([one, nn.Sequential(other, one[0])]) == [here, here]
    other.compile()
    assert _where([one, other]) == [here, here]
    one, other = _networks()
    with torch.no_grad():
        assert _where([one, other]) == [here, here]
    torch.set_num_threads(1)
    assert _where([one, other]) == [here, here]


def test_each_has_half_of_the_threads_and_others_keep_theirs() -> None:
    torch.set_num_threads(6)
    given: list[int] = []

    def run(values: Tensor) -> tuple[Tensor]:
        given.append(torch.get_num_threads())
        return (values,)

    side_by_side(*(Branch(run, (torch.ones(2),), (network,)) for network in _networks()))
    assert given == [3, 3]
    assert _where(_networks()) == ["branch_0", "branch_1"]
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (found, torch.get_num_threads()) == ([6], 6)


def test_precision_is_the_callers_and_whoever_ends_first_changes_nothing() -> None:
    """A weight that is used twice is cast anew each time: the cast ones are kept for the whole
    process, and go when any thread leaves its autocast."""
    weights = [nn.Linear(64, 64, bias=False) for _ in range(2)]
    images = torch.randn(256, 64, generator=torch.Generator().manual_seed(2))

    def gradient(other_ends: str) -> Tensor:
        middle, end = threading.Event(), threading.Event()

        def slow(values: Tensor) -> tuple[Tensor]:
            first = weights[0](values)
            middle.set()
            if other_ends == "in the middle":
                assert end.wait(PATIENCE)
                time.sleep(0.05)
            assert first.dtype == torch.bfloat16
            return ((first.sin() * weights[0](values).cos()).sum(),)

        def fast(values: Tensor) -> tuple[Tensor]:
            assert middle.wait(PATIENCE)
            made = weights[1](values).sum()
            end.set()
            return (made,)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            (a,), (b,) = side_by_side(
                Branch(slow, (images,), weights[:1]), Branch(fast, (images,), weights[1:])
            )
        return torch.autograd.grad(a + b, weights[0].weight)[0]

    assert torch.equal(gradient("in the middle"), gradient("at any time"))
    (single,), _ = side_by_side(
        *(Branch(lambda t, n=net: (n(t),), (images,), (net,)) for net in weights)
    )
    assert single.dtype == torch.float32


def test_what_goes_wrong_in_a_branch_comes_to_the_caller_when_both_are_done() -> None:
    done: list[bool] = []

    def slow(values: Tensor) -> tuple[Tensor]:
        time.sleep(0.2)
        done.append(True)
        return (values,)

    one, other = _networks()
    right, wrong = (torch.ones(4, size, dtype=torch.float64) for size in (5, 6))
    with pytest.raises(RuntimeError, match="4x6"):
        side_by_side(
            Branch(lambda t: (one(t),), (wrong,), (one,)), Branch(slow, (right,), (other,))
        )
    assert done == [True]
