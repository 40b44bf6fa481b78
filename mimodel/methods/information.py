"""What both stages of the method are made of: the information of pairs, and how scales are met."""

from typing import TypeVar

from jaxtyping import Float, Int64
from torch import Tensor, nn

from mimodel.methods.base import RepresentationScale
from mimodel.networks import StatisticsNetwork
from mimodel.objectives import bounded, jsd_mutual_information
from mimodel.parallel import gathered, rows


def pair_information(
    network: StatisticsNetwork,
    feature_map: Float[Tensor, "batch channel row col"],
    representation: Float[Tensor, "batch dim"],
    orders: Int64[Tensor, "negatives batch"],
    bound: float | None = None,
) -> Float[Tensor, ""]:
    """Equation 3 or 4 (by the network) of a feature map and a representation.

    The product of the marginals pairs each feature map with the representations that `orders`
    name, rows of the joint batch of all processes; both terms share the network's two sides.
    `bound` is that of `bounded`.
    """
    feature = network.feature_side(feature_map)
    joint = gathered(representation)
    side = network.representation_side(joint)
    own, others = side[rows(len(joint))], side[orders]
    return jsd_mutual_information(
        bounded(network.score(feature, own), bound), bounded(network.score(feature, others), bound)
    )


def scaled(
    values: Float[Tensor, "batch dim"], scale: RepresentationScale
) -> Float[Tensor, "batch dim"]:
    """A representation as a term reads it."""
    if scale == "as they are":
        return values
    return standardised(values, gathered(values))


def standardised(values: Tensor, among: Tensor | None = None) -> Tensor:
    """Mean 0 and deviation 1 in each dimension of `among`; of the values themselves if unset."""
    among = values if among is None else among
    return (values - among.mean(0)) / (among.std(0, correction=0) + 1e-5)


def otherwise(negatives: int, score_bound: float | None) -> dict[str, str]:
    """For an artifact: where a run settles what the paper leaves open otherwise than by default."""
    said = {"negatives": f"{negatives} of each pair"} if negatives > 1 else {}
    return said | ({} if score_bound is None else {"score_bound": f"{score_bound:g}"})


_Networks = TypeVar("_Networks", bound=nn.Module)


def by_artifact(x: _Networks, own_y: _Networks | None) -> dict[str, _Networks]:
    """The folder of each domain's artifact."""
    return {"artifact": x} if own_y is None else {"artifact-x": x, "artifact-y": own_y}
