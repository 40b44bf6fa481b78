"""Training as a game of players: what the one loop asks of a method."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Generator, Tensor, nn

from mimodel.data.pairs import PairBatch

RepresentationScale = Literal["as they are", "standardised"]
"""How a term reads representations; standardised over the batch, their scale plays no part."""


@dataclass(frozen=True)
class Player:
    """Parameters that are stepped together to minimise one objective."""

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float | None = None
    """None: that of the run."""
    steps: int = 1
    """Moves in a step of the game."""


@dataclass(frozen=True)
class Learnt:
    """What a method leaves behind for one kind of image."""

    fields: Mapping[str, Any]
    """Those fields of an `ArtifactSpec` that the method knows."""
    state: Mapping[str, Tensor]
    """Tensors under the names that they carry in an artifact."""
    provenance: Mapping[str, str] = field(default_factory=dict)


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

    def advanced(self, done: float) -> None:
        """Told before each step what share of the run is behind it, by iterations or by time."""

    @property
    def description(self) -> dict[str, str]:
        """What it stands on beside its data; a run does not go on when this has changed."""
        return {}

    @abstractmethod
    def learnt(self) -> Mapping[str, Learnt]:
        """What is to be kept, by the name of its artifact's folder."""
