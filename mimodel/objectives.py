"""The equations of Sanchez, Serrurier and Ortner 2019, as pure functions of tensors.

T stands for the output of a statistics network, on draws of the joint distribution ("joint") or of
the product of the marginals ("product"). Information is in nats.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor
from torch.nn.functional import softplus


def joint_term(joint: Float[Tensor, "*joint"]) -> Float[Tensor, "*joint"]:
    """-log(1 + exp(-T)): the term of equation 2 on the joint distribution, before its mean."""
    return -softplus(-_at_least_single(joint))


def jsd_mutual_information(
    joint: Float[Tensor, "*joint"], product: Float[Tensor, "*product"]
) -> Float[Tensor, ""]:
    """Jensen-Shannon estimate of I(X; Z), equation 2.

    `joint` is T(x, z) on draws from p(x, z); `product` is T(x', z) on draws from p(x)p(z); any
    shapes, since the expectation runs over batch and positions alike (equations 3 and 4). The
    estimate never exceeds 2 JSD(p(x, z) || p(x)p(z)) - 2 log 2, so it is at most 0.
    """
    return joint_term(joint).mean() - softplus(_at_least_single(product)).mean()


L1Norm = Literal["mean", "sum"]


def representation_distance(
    s_x: Float[Tensor, "batch dim"], s_y: Float[Tensor, "batch dim"], norm: L1Norm = "mean"
) -> Float[Tensor, ""]:
    """Mean over pairs of the L1 norm of their representations' difference, equation 6.

    The paper leaves open whether the norm is summed or averaged over the dimensions; averaging is
    ours (summing lets this term drown the others at 64 dimensions).
    """
    apart = (_at_least_single(s_x) - _at_least_single(s_y)).abs()
    return apart.mean() if norm == "mean" else apart.sum(1).mean()


def bounded(scores: Float[Tensor, "*draw"], bound: float | None) -> Float[Tensor, "*draw"]:
    """T kept within `bound` by a hyperbolic tangent (ours), so that no single pair may weigh more
    than that; as it is where there is no bound."""
    return scores if bound is None else bound * torch.tanh(_at_least_single(scores) / bound)


AdversarialForm = Literal["non-saturating", "saturating"]


def adversarial_term(fake: Float[Tensor, " batch"], form: AdversarialForm) -> Float[Tensor, ""]:
    """What the exclusive encoder minimises, given the logits of D on its pairs (S, E).

    "saturating" is the second term of equation 9, E log(1 - D(S, E)). "non-saturating",
    -E log D(S, E), has the same fixed point and a gradient where the discriminator is sure
    (Goodfellow et al. 2014). The equation's first term, on shuffled pairs, depends on E as well; it
    is left to the discriminator in both, as is usual.
    """
    fake = _at_least_single(fake)
    return -softplus(fake).mean() if form == "saturating" else softplus(-fake).mean()


def discriminator_loss(
    real: Float[Tensor, " batch"], fake: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """The cross-entropy that the discriminator minimises: equation 9 with its sign turned.

    `real` are logits of (S, E of another image), draws from the product of the marginals; `fake`
    those of (S, E). It is 2 log 2 where the two cannot be told apart.
    """
    return softplus(-_at_least_single(real)).mean() + softplus(_at_least_single(fake)).mean()


def dependence(
    s: Float[Tensor, "batch dim"],
    e: Float[Tensor, "batch own"],
    other_s: Float[Tensor, "other dim"],
    other_e: Float[Tensor, "other own"],
) -> Float[Tensor, ""]:
    """How far S and E are from independent: an unbiased estimate of the Hilbert-Schmidt
    independence criterion (Gretton et al. 2005), between a batch and other samples of the same.

    Its expectation is 0 if and only if they are independent. Two samples at least of each.
    Representations of deviation 1 are to be given (`_kernel`).
    """
    k, l = _kernel(s, other_s), _kernel(e, other_e)  # noqa: E741 -- theirs
    centred = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    return (centred * l).sum() / ((k.shape[0] - 1) * (k.shape[1] - 1))


def _kernel(
    values: Float[Tensor, "batch dim"], others: Float[Tensor, "other dim"]
) -> Float[Tensor, "batch other"]:
    """The mean of two Gaussians of the mean squared difference over the dimensions: the wide one
    sees what all of a representation tells, the narrow one what tells its nearest apart."""
    a, b = _at_least_single(values), _at_least_single(others)
    with torch.autocast(a.device.type, enabled=False):
        products = a @ b.T
    apart = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * products) / a.shape[1]
    return torch.stack([(-width * apart / 2).exp() for width in (1, 8)]).mean(0)


def _at_least_single(values: Tensor) -> Tensor:
    """Half precisions as float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def derangement(size: int, generator: Generator) -> Int64[Tensor, " item"]:
    """A uniformly random permutation without fixed points: it pairs each item with another one.

    With it, draws of the joint distribution become draws of the product of the marginals, and no
    true pair is ever taken for a negative. About one permutation in e is one, whatever the size.
    """
    if size < 2:
        raise ValueError(f"a batch of {size} has no negatives; at least 2 pairs are needed")
    while True:
        order = torch.randperm(size, generator=generator)
        if not bool((order == torch.arange(size)).any()):
            return order
