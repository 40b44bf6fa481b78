"""The shared stage of Sanchez et al. 2019: what stays, by cross mutual information."""

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from mimodel.branches import Branch, side_by_side
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Learnt, Method, Player, RepresentationScale
from mimodel.methods.information import by_artifact, otherwise, pair_information, scaled
from mimodel.networks import Encoder, EncoderSpec, GlobalStatistics, LocalStatistics
from mimodel.objectives import L1Norm, representation_distance
from mimodel.parallel import joint_derangements


@final
class SharedNetworks(nn.Module):
    """What the shared stage learns of one domain: an encoder and its two statistics networks."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.encoder = Encoder(spec)
        self.global_statistics = GlobalStatistics(spec.feature_shape, spec.representation)
        self.local_statistics = LocalStatistics(spec.feature_shape, spec.representation)

    def encoding(self, images: Tensor) -> Branch:
        """C(x) and S of the images."""
        return Branch(self.encoder, (images,), (self.encoder,))

    def information(
        self, feature_map: Tensor, representation: Tensor, orders: Tensor, bound: float | None
    ) -> Branch:
        """Equations 3 and 4 of this domain's feature map and a representation."""
        networks = (self.global_statistics, self.local_statistics)

        def both(feature_map: Tensor, representation: Tensor) -> list[Tensor]:
            return [
                pair_information(each, feature_map, representation, orders, bound)
                for each in networks
            ]

        return Branch(both, (feature_map, representation), networks)


@final
class SharedStage(Method):
    """Equations 5 to 7 (Tables 1 to 3, 8 to 10, 14 to 16).

    `encoders` is 2 where X and Y are of two domains, each with networks of its own, and 1 where
    they are of one and share them. `switched` is the paper's switch of representations: X's feature
    map with Y's representation. Without it ("non-SSR" in Table 6) each image informs its own, and
    nothing drives out what only one of the two images has.

    `distance_inputs` is ours. As the representations are, making both small brings them together as
    well as making them alike does; standardised, only the latter is left. So are `distance_norm`,
    `negatives`, `score_bound` and `encoded`, of which the paper says nothing: see
    `mimodel.methods.configs.SharedStageConfig`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        alpha: float,
        beta: float,
        gamma: float,
        switched: bool,
        encoders: Literal[1, 2] = 1,
        distance_inputs: RepresentationScale = "as they are",
        distance_norm: L1Norm = "mean",
        negatives: int = 1,
        score_bound: float | None = None,
        encoded: Literal["apart", "together"] = "apart",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.gamma, self.switched = alpha, beta, gamma, switched
        self._distance_inputs, self._distance_norm = distance_inputs, distance_norm
        self._negatives, self._score_bound = negatives, score_bound
        self._together = encoded == "together"
        self.x = SharedNetworks(spec)
        self.own_y = SharedNetworks(spec) if encoders == 2 else None

    @property
    def y(self) -> SharedNetworks:
        """The networks of the second image; those of the first where there is one domain."""
        return self.own_y or self.x

    @property
    def players(self) -> Sequence[Player]:
        return (Player("shared", list(self.parameters())),)

    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        (c_x, s_x), (c_y, s_y) = self._encoded(batch)
        with_x, with_y = (s_y, s_x) if self.switched else (s_x, s_y)
        orders = joint_derangements(len(batch.x), self._negatives, generator).to(s_x.device)
        (global_x, local_x), (global_y, local_y) = side_by_side(
            self.x.information(c_x, with_x, orders, self._score_bound),
            self.y.information(c_y, with_y, orders, self._score_bound),
        )
        near_x, near_y = (scaled(s, self._distance_inputs) for s in (s_x, s_y))
        distance = representation_distance(near_x, near_y, self._distance_norm)
        return {
            "global": -self.alpha * (global_x + global_y),
            "local": -self.beta * (local_x + local_y),
            "distance": self.gamma * distance,
        }

    def _encoded(self, batch: PairBatch) -> Sequence[Sequence[Tensor]]:
        """C(x) and S of both images."""
        if not self._together:
            return side_by_side(self.x.encoding(batch.x), self.y.encoding(batch.y))
        both = self.x.encoder(torch.cat([batch.x, batch.y]))
        return tuple(zip(*(values.chunk(2) for values in both), strict=True))

    def learnt(self) -> Mapping[str, Learnt]:
        return {
            name: Learnt(
                {
                    "encoder": networks.encoder.spec,
                    "representations": {"shared": networks.encoder.spec.representation},
                    "alpha": self.alpha,
                    "beta": self.beta,
                },
                networks.state_dict(),
                {
                    "switched": "yes" if self.switched else "no",
                    "distance": f"{self.gamma:g} between representations {self._distance_inputs}"
                    + ", summed over dimensions" * (self._distance_norm == "sum"),
                    **otherwise(self._negatives, self._score_bound),
                    **({"encoded": "both images in one batch"} if self._together else {}),
                },
            )
            for name, networks in by_artifact(self.x, self.own_y).items()
        }
