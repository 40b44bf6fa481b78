"""Does the estimator say what it should? Its estimates beside information that is known.

The value of equation 2 is bounded (at most 0), so it is no amount of nats. But T at its optimum is
log p(x, z) / p(x) p(z), so its mean over the joint distribution is the information in nats, which
can be compared with the truth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from mimodel.artifact import Artifact, inference_autocast
from mimodel.data.pairs import Domain, LabelledImages
from mimodel.networks import GlobalStatistics
from mimodel.objectives import derangement, jsd_mutual_information

_PAIRS = 2048
_CHUNK = 64


@dataclass(frozen=True)
class Estimate:
    """What T says of the information of pairs, beside the truth; nats."""

    jsd: float
    """Equation 2; at most `jsd_bound`."""
    nats: float
    """E[T] over the joint distribution."""
    truth: float


def symmetric_channel(classes: int, error: float) -> float:
    """Information, in nats, of two symbols of which the second is another one with chance `error`.

    The first is uniform over `classes`, a wrong second over the others: ln 10 for ten classes
    without error, ln 2 - H(error) for the binary symmetric channel.
    """
    parts = [(1 - error, 1), (error / (classes - 1), classes - 1)]
    noise = -sum(count * p * math.log(p) for p, count in parts if p > 0)
    return math.log(classes) - noise


def jsd_bound(classes: int, error: float) -> float:
    """What equation 2 can reach on that channel: 2 JSD(joint || product) - 2 ln 2."""
    joint = np.full((classes, classes), error / (classes - 1) / classes)
    np.fill_diagonal(joint, (1 - error) / classes)
    product = np.full_like(joint, 1 / classes**2)
    middle = (joint + product) / 2
    divergences = [
        float((p[p > 0] * np.log(p[p > 0] / middle[p > 0])).sum()) for p in (joint, product)
    ]
    return sum(divergences) - 2 * math.log(2)


def calibrate(classes: int, error: float, *, iterations: int = 600, seed: int = 0) -> Estimate:
    """Fit a statistics network (Table 2) on symbols through a channel, and ask it for nats."""
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = GlobalStatistics((classes, 1, 1), classes, width=64)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
    for _ in range(iterations):
        joint, product = _scores(network, *_symbols(classes, error, 512, generator), generator)
        optimiser.zero_grad()
        (-jsd_mutual_information(joint, product)).backward()
        optimiser.step()
    with torch.no_grad():
        joint, product = _scores(network, *_symbols(classes, error, 20_000, generator), generator)
    jsd = float(jsd_mutual_information(joint, product))
    return Estimate(jsd, float(joint.mean()), symmetric_channel(classes, error))


def _symbols(classes: int, error: float, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    sent = torch.randint(classes, (count,), generator=generator)
    other = (sent + torch.randint(1, classes, (count,), generator=generator)) % classes
    wrong = torch.rand(count, generator=generator) < error
    eye = torch.eye(classes)
    return eye[sent][:, :, None, None], eye[torch.where(wrong, other, sent)]


def _scores(
    network: GlobalStatistics, x: Tensor, z: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    feature, side = network.feature_side(x), network.representation_side(z)
    order = derangement(len(z), generator)
    return network.score(feature, side), network.score(feature, side[order])


@torch.inference_mode()
def information_of_pairs(
    artifacts: Mapping[Domain, Artifact], data: Mapping[Domain, LabelledImages], *, seed: int
) -> Estimate | None:
    """What the global networks of a run say of pairs of test images.

    X is paired with a Y of the same shared factors, so the truth is the entropy of these. The mean
    of both directions. None where no network has learnt to tell such pairs: of an autoencoder,
    without the global term (alpha 0), without the switch, and of pairs that share more.
    """
    x, y = data["x"], data.get("y", data["x"])
    model_x, model_y = artifacts["x"], artifacts.get("y", artifacts["x"])
    if not _estimates_these_pairs(model_x):
        return None
    rows_x, rows_y, truth = _same_shared(x, y, np.random.default_rng([seed, 11]))
    if len(rows_x) < 2:
        return None
    encoded = [
        [
            model.encode(model.network_input(images.images[part], None))
            for part in np.array_split(rows, -(-len(rows) // _CHUNK))
        ]
        for model, images, rows in ((model_x, x, rows_x), (model_y, y, rows_y))
    ]
    (c_x, s_x), (c_y, s_y) = (
        [torch.cat(part) for part in zip(*one, strict=True)] for one in encoded
    )
    generator = Generator().manual_seed(seed)
    both = []
    for model, feature_map, representation in ((model_x, c_x, s_y), (model_y, c_y, s_x)):
        assert model.networks.global_statistics is not None
        with inference_autocast():
            scores = _scores(
                model.networks.global_statistics, feature_map, representation, generator
            )
        both.append((float(jsd_mutual_information(*scores)), float(scores[0].float().mean())))
    jsd, nats = np.mean(both, axis=0)
    return Estimate(float(jsd), float(nats), truth)


def _estimates_these_pairs(model: Artifact) -> bool:
    """Whether its global network was trained on X's map with Y's representation, of such pairs."""
    said = model.spec.provenance
    return bool(model.spec.alpha) and said.get("switched") != "no" and "pairs_share" not in said


def _same_shared(
    x: LabelledImages, y: LabelledImages, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rows of test images of X and of Y that share their factors, and the entropy of these."""
    of_x, of_y = (np.flatnonzero(one.split == "test") for one in (x, y))
    keys_x, keys_y = (
        np.stack([one.factors[name][rows] for name in x.shared], 1)
        for one, rows in ((x, of_x), (y, of_y))
    )
    chosen = rng.permutation(len(of_x))[:_PAIRS]
    pairs = []
    for row in chosen:
        # Another image where X and Y are of one kind: with itself, T would have it easy.
        same = of_y[(keys_y == keys_x[row]).all(1)]
        others = same[same != of_x[row]] if x is y else same
        if len(others):
            pairs.append((of_x[row], int(rng.choice(others))))
    rows_x, rows_y = np.array(pairs, np.int64).reshape(-1, 2).T
    _, counts = np.unique(keys_x, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return rows_x, rows_y, float(-(shares * np.log(shares)).sum())
