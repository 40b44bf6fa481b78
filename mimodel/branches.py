"""Two halves of one computation at the same time, each on a thread of its own, forward and back.

A step of a model with networks for each of two domains is two halves that seldom meet. On a CPU,
half of the cores for each wastes less than all of them at one operation after the other, most of
which are too small to share: on two cores a step of colored-MNIST takes four fifths of the time.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimodel.parallel import processes

T = TypeVar("T")

_THREADS = "branch"


class Branch(NamedTuple):
    """One half: a function of tensors, and the networks in it that are trained.

    Gradients flow to the inputs and to the parameters of these, on one way back. A branch draws no
    random numbers: which half would draw first is open.
    """

    run: Callable[..., Sequence[Tensor]]
    inputs: Sequence[Tensor]
    networks: Sequence[nn.Module]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of its networks."""
        return [parameter for network in self.networks for parameter in network.parameters()]


def side_by_side(first: Branch, second: Branch) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The outputs of both, as many of one as of the other, with their gradients.

    One after the other they run on a GPU, which either fills; among several processes, whose
    exchanges have an order; where they have networks in common, since BatchNorm's statistics move
    with each call; where these are compiled, since tracing is for one thread; inside of a branch;
    and where there is one thread for both.
    """
    threads = torch.get_num_threads() // 2
    if not threads or not torch.is_grad_enabled() or not _apart(first, second):
        return first.run(*first.inputs), second.run(*second.inputs)
    given = (tensor for each in (first, second) for tensor in (*each.inputs, *each.parameters))
    made: tuple[Tensor, ...] = _SideBySide.apply(first, second, threads, *given)
    half = len(made) // 2
    return made[:half], made[half:]


def _apart(first: Branch, second: Branch) -> bool:
    """Whether the two may run at once."""
    networks = [
        module for each in (first, second) for net in each.networks for module in net.modules()
    ]
    return (
        len(networks) == len(set(map(id, networks)))
        and all(module._compiled_call_impl is None for module in networks)
        and all(tensor.device.type == "cpu" for tensor in first.inputs)
        and processes() == 1
        and not threading.current_thread().name.startswith(_THREADS)
    )


class _Graph(NamedTuple):
    """What a branch has computed, to be gone back through."""

    sources: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def gradients(self, of_outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of the sources, given those of the outputs; None for what has none."""
        reached = [(o, g) for o, g in zip(self.outputs, of_outputs, strict=True) if g is not None]
        wanted = [source for source in self.sources if source.requires_grad]
        if not reached or not wanted:
            return [None] * len(self.sources)
        outputs, given = zip(*reached, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, given, allow_unused=True))
        return [next(found) if source.requires_grad else None for source in self.sources]


@final
class _SideBySide(torch.autograd.Function):
    """A node of the caller's graph that holds the graphs of both branches."""

    @staticmethod
    def forward(
        ctx: Any, first: Branch, second: Branch, threads: int, *_: Tensor
    ) -> tuple[Tensor, ...]:
        # Precision is a state of the thread, but the cache of cast weights one of the process, and
        # whichever thread is done first would clear it for the other.
        precision = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"), False

        def forth(branch: Branch) -> _Graph:
            inputs = [t.detach().requires_grad_(t.requires_grad) for t in branch.inputs]
            with torch.autocast("cpu", *precision):
                return _Graph([*inputs, *branch.parameters], branch.run(*inputs))

        ctx.set_materialize_grads(False)
        ctx.threads = threads
        ctx.graphs = _both(lambda: forth(first), lambda: forth(second), threads)
        outputs = [output for graph in ctx.graphs for output in graph.outputs]
        detached = tuple(output.detach() for output in outputs)
        fixed = (d for d, o in zip(detached, outputs, strict=True) if not o.requires_grad)
        ctx.mark_non_differentiable(*fixed)
        return detached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.graphs is None:
            raise RuntimeError("branches are gone back through once; compute the loss again")
        (first, second), ctx.graphs = ctx.graphs, None
        half = len(of_outputs) // 2
        found = _both(
            lambda: first.gradients(of_outputs[:half]),
            lambda: second.gradients(of_outputs[half:]),
            ctx.threads,
        )
        return (None, None, None, *(gradient for each in found for gradient in each))


def _both(first: Callable[[], T], second: Callable[[], T], threads: int) -> tuple[T, T]:
    """The results of both, when both are done."""
    pool = _pool(threads)
    running = pool.submit(first), pool.submit(second)
    wait(running)
    return running[0].result(), running[1].result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Two threads that compute with so many each."""
    before = torch.get_num_threads()
    begun = threading.Barrier(3)

    def begin() -> None:
        torch.get_num_threads()  # or the first operation takes the number that the process has
        torch.set_num_threads(threads)
        begun.wait()

    pool = ThreadPoolExecutor(2, thread_name_prefix=_THREADS, initializer=begin)
    for _ in range(2):
        pool.submit(lambda: None)
    begun.wait()
    # A number that one thread sets is that of all threads that begin later, too.
    torch.set_num_threads(before)
    return pool
