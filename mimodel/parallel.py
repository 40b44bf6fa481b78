"""Data parallel training: several processes, one joint batch.

Each process holds an equal run of rows of the batch. What the equations take over the whole batch
(negatives, BatchNorm's statistics, means) is taken over all processes, so that the gradients are
those of one process with the joint batch. Without torchrun there is one process, and every function
here is the identity.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from mimodel.objectives import derangement


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The group that torchrun describes in the environment, by NCCL on GPUs, else by gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # gloo beside NCCL: what the processes agree on each step never waits for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rows(size: int) -> slice:
    """Those rows of a joint batch of `size` that are this process's."""
    if processes() == 1:
        return slice(None)
    own = size // processes()
    return slice(dist.get_rank() * own, (dist.get_rank() + 1) * own)


def gathered(values: Float[Tensor, "batch dim"]) -> Float[Tensor, "joint dim"]:
    """The rows of all processes, in order; gradients find their way back to where they belong."""
    if processes() == 1:
        return values
    joint = values.new_zeros(processes() * len(values), values.shape[1])
    joint[rows(len(joint))] = values
    return summed(joint)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes; so is the gradient of what each makes of it."""
    if processes() == 1:
        return values
    result: Tensor = _Sum.apply(values)
    return result


@final
class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def joint_derangements(size: int, count: int, generator: Generator) -> Int64[Tensor, "count row"]:
    """For each of this process's `size` rows another row of the joint batch, `count` times.

    The generator is in the same state in every process, so these are the parts of one derangement.
    """
    joint = size * processes()
    return torch.stack([derangement(joint, generator)[rows(joint)] for _ in range(count)])


@final
class BatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of the joint batch.

    torch's SyncBatchNorm does the same, on GPUs alone. With `joint` false each process normalises
    by its own rows, as is usual where batches are large.
    """

    joint = True

    def forward(self, images: Float[Tensor, "batch channel row col"]) -> Tensor:
        if not self.training or not self.joint or processes() == 1:
            return super().forward(images)
        over = (0, 2, 3)
        count = images.shape[0] * images.shape[2] * images.shape[3] * processes()
        full = images.to(torch.promote_types(images.dtype, torch.float32))
        mean = summed(full.sum(over)) / count
        centred = full - mean[:, None, None]
        variance = summed((centred**2).sum(over)) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale[:, None, None]).to(images.dtype)
        normalised = centred * (self.weight * scale)[:, None, None] + self.bias[:, None, None]
        return normalised.to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as torch keeps them (of the unbiased variance)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes its mean over the processes, in one exchange."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def agreed(flags: tuple[bool, ...]) -> tuple[bool, ...]:
    """Each flag as it is in any of the processes: they stop together or not at all."""
    if processes() == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared)


def of_first(value: float) -> float:
    """A number as the first process has it, such as a time."""
    if processes() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


@torch.no_grad()
def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a figure over the processes."""
    if processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / processes()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if processes() > 1:
        dist.barrier()
