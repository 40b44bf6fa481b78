"""What is random in a step is drawn anew for each move, and is a function of seed and step."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Generator, Tensor, nn

from mimodel.config import RunConfig, TrainingConfig
from mimodel.data.configs import ColoredMnistConfig
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Learnt, Method, Player
from mimodel.methods.configs import SharedStageConfig
from mimodel.objectives import derangement
from mimodel.train import train
from tests.mimodel.made_digits import write_digits

PAIRS = 16
"""So many that two orders out of nearly 16!/e are never the same by chance."""


@final
class Recorder(Method):
    """Two players that learn nothing; it keeps the order of negatives that each move draws."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.drawn: list[tuple[int, ...]] = []

    @property
    def players(self) -> Sequence[Player]:
        return Player("one", [self.one]), Player("two", [self.two], steps=2)

    def objective(
        self, player: Player, batch: PairBatch, generator: Generator
    ) -> dict[str, Tensor]:
        self.drawn.append(tuple(derangement(len(batch.x), generator).tolist()))
        (parameter,) = player.parameters
        return {player.name: parameter.square().sum()}

    def learnt(self) -> Mapping[str, Learnt]:
        return {"artifact": Learnt({}, {})}


def _drawn(
    digits: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, stop: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """The orders of the moves of a run, or of its continuation, that is stopped after a step."""
    recorder = Recorder()
    monkeypatch.setattr(SharedStageConfig, "build", lambda *_: recorder)
    config = RunConfig(
        data=ColoredMnistConfig(name="colored-mnist", folder=digits),
        method=SharedStageConfig(name="infomax-shared"),
        training=TrainingConfig(iterations=100, batch_size=PAIRS, seed=seed, threads=1),
    )

    def report(step: int, total: int, figures: Mapping[str, float]) -> None:
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    assert train(config, folder, report).step == stop
    return recorder.drawn


def test_negatives_are_other_ones_in_each_move_of_each_step_and_those_of_seed_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = write_digits(tmp_path, monkeypatch)
    drawn = _drawn(digits, tmp_path / "whole", monkeypatch, stop=3)
    moves = 3  # one of the first player, two of the second
    assert len(drawn) == 3 * moves
    assert len(set(drawn)) == len(drawn)

    begun = _drawn(digits, tmp_path / "stopped", monkeypatch, stop=1)
    continued = _drawn(digits, tmp_path / "stopped", monkeypatch, stop=3)
    assert (len(begun), len(continued)) == (moves, 2 * moves)
    assert begun + continued == drawn

    other = _drawn(digits, tmp_path / "other", monkeypatch, stop=3, seed=1)
    assert not set(other) & set(drawn)
