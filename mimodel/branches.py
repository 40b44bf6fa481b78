"""Two halves of one computation at the same time, each on a thread of its own, forward and back.

A step of a model with networks for each of two domains is two halves that seldom meet. On a CPU,
half of the cores for each wastes less than all of them at one operation after the other, most of
which are too small to share: on two cores a step of colored-MNIST takes four fifths of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimodel.parallel import processes


class Branch(NamedTuple):
    """One half: a function of tensors, and the parameters in it that are trained.

    Only to the inputs and these do gradients flow.
    """

    run: Callable[..., Sequence[Tensor]]
    inputs: Sequence[Tensor]
    parameters: Sequence[nn.Parameter]


def side_by_side(first: Branch, second: Branch) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """The outputs of both, as many of one as of the other, with their gradients.

    One after the other they run on a GPU, which either fills; among several processes, whose
    exchanges have an order; where they have parameters in common, since BatchNorm's statistics move
    with each call; and where there is one thread for both.
    """
    common = set(map(id, first.parameters)) & set(map(id, second.parameters))
    threads = torch.get_num_threads() // 2
    on_cpu = all(tensor.device.type == "cpu" for tensor in first.inputs)
    if common or not threads or not on_cpu or processes() > 1 or not torch.is_grad_enabled():
        return first.run(*first.inputs), second.run(*second.inputs)
    given = (tensor for each in (first, second) for tensor in (*each.inputs, *each.parameters))
    made: tuple[Tensor, ...] = _SideBySide.apply(first, second, threads, *given)
    half = len(made) // 2
    return made[:half], made[half:]


class _Graph(NamedTuple):
    """What a branch has computed, to be gone back through."""

    sources: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def gradients(self, of_outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of the sources, given those of the outputs; None for what has none."""
        reached = [(o, g) for o, g in zip(self.outputs, of_outputs, strict=True) if g is not None]
        wanted = [source for source in self.sources if source.requires_grad]
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
        # Precision is a state of the thread.
        precision = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

        def forth(branch: Branch) -> _Graph:
            torch.set_num_threads(threads)
            inputs = [t.detach().requires_grad_(t.requires_grad) for t in branch.inputs]
            with torch.autocast("cpu", *precision):
                return _Graph([*inputs, *branch.parameters], branch.run(*inputs))

        ctx.set_materialize_grads(False)
        ctx.threads = threads
        ctx.graphs = tuple(_pool().map(forth, (first, second)))
        outputs = [output for graph in ctx.graphs for output in graph.outputs]
        detached = tuple(output.detach() for output in outputs)
        fixed = (d for d, o in zip(detached, outputs, strict=True) if not o.requires_grad)
        ctx.mark_non_differentiable(*fixed)
        return detached

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        half = len(of_outputs) // 2

        def back(graph: _Graph, given: Sequence[Tensor | None]) -> list[Tensor | None]:
            torch.set_num_threads(ctx.threads)
            return graph.gradients(given)

        found: Iterator[list[Tensor | None]]
        found = _pool().map(back, ctx.graphs, (of_outputs[:half], of_outputs[half:]))
        gradients = tuple(gradient for each in found for gradient in each)
        del ctx.graphs
        return (None, None, None, *gradients)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="branch")
