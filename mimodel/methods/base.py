"""Training as a game of players: what the one loop asks of a method."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from mimodel.data.pairs import PairBatch


@dataclass(frozen=True)
class Player:
    """Parameters that are stepped together to minimise one objective."""

    name: str
    parameters: Sequence[nn.Parameter]


class Method(nn.Module):
    """Networks and, for each player, the terms whose sum it minimises."""

    @property
    @abstractmethod
    def players(self) -> Sequence[Player]:
        """In the order in which they move within a step."""

    @abstractmethod
    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        """Weighted terms by name; their sum is minimised over the player's parameters.

        Whatever is random is drawn from `generator`, which is a function of seed and step.
        """
