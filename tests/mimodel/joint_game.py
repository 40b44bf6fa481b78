"""A short game of both stages and of the autoencoder in float64, for one process or for several
that torchrun starts.

`python -m tests.mimodel.joint_game FOLDER` writes what came of it to FOLDER/joint.pt.
"""

import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

from mimodel.artifact import Artifact
from mimodel.data.pairs import PairBatch
from mimodel.methods.base import Method
from mimodel.methods.exclusive import ExclusiveStage
from mimodel.methods.shared import SharedStage
from mimodel.methods.vae import VariationalAutoencoder
from mimodel.parallel import (
    average_gradients,
    is_first,
    mean_over_processes,
    process_group,
    rows,
)
from tests.mimodel import textbook

PAIRS = 6
_RATE = {SharedStage: 0.1, ExclusiveStage: 0.1, VariationalAutoencoder: 1e-4}
"""The autoencoder's terms are sums over pixels."""


def play(folder: Path) -> dict[str, Tensor]:
    """Two steps of gradient descent of each stage; every term, weight and statistic."""
    torch.manual_seed(7)
    shared = SharedStage(
        textbook.SMALL,
        alpha=0.5,
        beta=1.0,
        gamma=0.1,
        switched=True,
        encoders=2,
        distance_inputs="standardised",
    ).double()
    exclusive, of_levels = (
        ExclusiveStage(
            [Artifact.load(folder / name) for name in ("x", "y")],
            representation=3,
            alpha=0.5,
            beta=1.0,
            adversarial=0.05,
            form="non-saturating",
            discriminator_inputs="standardised",
            independence=2.0,
            levels=levels,
        ).double()
        for levels in (None, 4)
    )
    autoencoder = VariationalAutoencoder(textbook.SMALL, likelihood="gaussian").double()
    found: dict[str, Tensor] = {}
    methods: dict[str, Method] = {
        "shared": shared,
        "exclusive": exclusive,
        "exclusive of levels": of_levels,
        "autoencoder": autoencoder,
    }
    for name, method in methods.items():
        found |= {f"{name} {key}": value for key, value in _descend(method.train()).items()}
    return found


def _descend(method: Method) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for step in range(2):
        torch.manual_seed(step)
        images = torch.randn(2, PAIRS, 2, 16, 16, dtype=torch.float64)
        batch = PairBatch(images[0][rows(PAIRS)], images[1][rows(PAIRS)])
        generator = Generator().manual_seed(step)
        for player in method.players:
            terms = method.objective(player, batch, generator)
            method.zero_grad()
            torch.stack(list(terms.values())).sum().backward(inputs=list(player.parameters))
            average_gradients(player.parameters)
            with torch.no_grad():
                for parameter in player.parameters:
                    assert parameter.grad is not None
                    parameter.sub_(_RATE[method.__class__] * parameter.grad)
            for name, term in terms.items():
                found[f"step {step} {name}"] = mean_over_processes(term.detach())
    return {**found, **method.state_dict()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with process_group(torch.device("cpu")):
        found = play(folder)
        if is_first():
            torch.save(found, folder / "joint.pt")
