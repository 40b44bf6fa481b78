"""Stage 1 of Sanchez et al. 2019: the shared representation by cross mutual information."""

from collections.abc import Sequence
from typing import final

from jaxtyping import Float, Int64
from torch import Generator, Tensor

from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Method, Player
from mimodel.networks import (
    Encoder,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
    StatisticsNetwork,
)
from mimodel.objectives import derangement, jsd_mutual_information, representation_distance


def pair_information(
    network: StatisticsNetwork,
    feature_map: Float[Tensor, "batch channel row col"],
    representation: Float[Tensor, "batch dim"],
    order: Int64[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Equation 3 or 4 (by the network) of a feature map and a representation.

    The product of the marginals pairs each feature map with the representation that `order` names;
    both terms share the network's two sides.
    """
    feature = network.feature_side(feature_map)
    side = network.representation_side(representation)
    return jsd_mutual_information(network.score(feature, side), network.score(feature, side[order]))


@final
class SharedStage(Method):
    """Equations 5 to 7 with one encoder for both images (Tables 8, 9 and 10).

    `switched` is the paper's switch of representations: X's feature map with Y's representation.
    Without it ("non-SSR" in Table 6) each image informs its own, and nothing drives out what only
    one of the two images has.
    """

    def __init__(
        self, spec: EncoderSpec, *, alpha: float, beta: float, gamma: float, switched: bool
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma, self.switched = alpha, beta, gamma, switched
        self.encoder = Encoder(spec)
        self.global_statistics = GlobalStatistics(spec)
        self.local_statistics = LocalStatistics(spec)

    @property
    def players(self) -> Sequence[Player]:
        return (Player("shared", list(self.parameters())),)

    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        c_x, s_x = self.encoder(batch.x)
        c_y, s_y = self.encoder(batch.y)
        with_x, with_y = (s_y, s_x) if self.switched else (s_x, s_y)
        order = derangement(len(batch.x), generator)
        information = {
            name: pair_information(network, c_x, with_x, order)
            + pair_information(network, c_y, with_y, order)
            for name, network in (
                ("global", self.global_statistics),
                ("local", self.local_statistics),
            )
        }
        return {
            "global": -self.alpha * information["global"],
            "local": -self.beta * information["local"],
            "distance": self.gamma * representation_distance(s_x, s_y),
        }
