"""The shared stage: its wiring against a textbook, and what the switch is for."""

import math
from typing import Literal, get_args

import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from mimodel.data.pairs import PairBatch
from mimodel.methods.base import RepresentationScale
from mimodel.methods.shared import SharedStage
from mimodel.objectives import derangement, jsd_mutual_information
from tests.mimodel import textbook


def _stage(
    *,
    switched: bool,
    encoders: Literal[1, 2] = 1,
    distance_inputs: RepresentationScale = "as they are",
) -> SharedStage:
    torch.manual_seed(11)
    stage = SharedStage(
        textbook.SMALL,
        alpha=0.5,
        beta=1.0,
        gamma=0.1,
        switched=switched,
        encoders=encoders,
        distance_inputs=distance_inputs,
    )
    return stage.train()


@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize("switched", [True, False])
@pytest.mark.parametrize("distance_inputs", get_args(RepresentationScale))
def test_objective_is_equations_5_to_7(
    *, switched: bool, encoders: Literal[1, 2], distance_inputs: RepresentationScale
) -> None:
    stage = _stage(switched=switched, encoders=encoders, distance_inputs=distance_inputs).double()
    assert (stage.x is stage.y) == (encoders == 1)
    batch = PairBatch(*torch.randn(2, 6, 2, 16, 16, dtype=torch.float64))
    terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
    ours = torch.autograd.grad(sum(terms.values()), list(stage.parameters()))

    order = derangement(6, Generator().manual_seed(4))
    c_x, s_x = textbook.encoded(stage.x.encoder, batch.x)
    c_y, s_y = textbook.encoded(stage.y.encoder, batch.y)
    of_x, of_y = (s_y, s_x) if switched else (s_x, s_y)
    g_x, t_x = stage.x.global_statistics, stage.x.local_statistics
    g_y, t_y = stage.y.global_statistics, stage.y.local_statistics
    information = textbook.information_one_by_one
    l_mi = 0.5 * (information(g_x, c_x, of_x, order) + information(g_y, c_y, of_y, order)) + 1.0 * (
        information(t_x, c_x, of_x, order) + information(t_y, c_y, of_y, order)
    )
    if distance_inputs == "standardised":
        s_x, s_y = ((s - s.mean(0)) / (s.std(0, correction=0) + 1e-5) for s in (s_x, s_y))
    l_1 = (s_x - s_y).abs().mean()
    loss = -(l_mi - 0.1 * l_1)
    theirs = torch.autograd.grad(loss, list(stage.parameters()))

    torch.testing.assert_close(sum(terms.values()), loss, atol=1e-10, rtol=1e-10)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("term", "taught"),
    [
        ("global", {"encoder", "global_statistics"}),
        ("local", {"encoder", "local_statistics"}),
        ("distance", {"encoder"}),
    ],
)
@pytest.mark.parametrize("switched", [True, False])
def test_each_term_teaches_both_encoders_and_its_own_networks_alone(
    term: str, taught: set[str], *, switched: bool
) -> None:
    stage = _stage(switched=switched, encoders=2)
    (player,) = stage.players
    assert {id(one) for one in player.parameters} == {id(one) for one in stage.parameters()}
    batch = PairBatch(*torch.randn(2, 6, 2, 16, 16))
    terms = stage.objective(player, batch, Generator().manual_seed(4))
    terms[term].backward(inputs=list(player.parameters))
    for networks in (stage.x, stage.y):
        assert textbook.reached(networks) == taught


def test_with_the_switch_an_image_teaches_the_others_representation() -> None:
    """Where X's statistics networks alone have something to say, the layer of S_Y learns of it."""
    for switched, teaching in ((True, "y"), (False, "x")):
        stage = _stage(switched=switched, encoders=2)
        batch = PairBatch(*torch.randn(2, 6, 2, 16, 16))
        with torch.no_grad():  # a network whose answer is always 0 teaches nothing
            for network in (stage.y.global_statistics, stage.y.local_statistics):
                for parameter in network.head[3].parameters():
                    parameter.zero_()
        terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
        (terms["global"] + terms["local"]).backward(inputs=list(stage.parameters()))
        found = {
            domain
            for domain, networks in (("x", stage.x), ("y", stage.y))
            if textbook.reached(networks.encoder) >= {"output"}
        }
        assert found == {teaching}


def test_standardised_representations_cannot_come_near_by_shrinking() -> None:
    batch = PairBatch(*torch.randn(2, 6, 2, 16, 16))
    distances = {}
    for inputs in get_args(RepresentationScale):
        stage = _stage(switched=True, distance_inputs=inputs)
        for scale in (1.0, 0.01):
            with torch.no_grad():
                for parameter in stage.x.encoder.output.parameters():
                    parameter.mul_(scale)
            terms = stage.objective(stage.players[0], batch, Generator().manual_seed(4))
            distances[inputs, scale] = terms["distance"].item()
    assert distances["as they are", 0.01] < 0.02 * distances["as they are", 1.0]
    assert distances["standardised", 0.01] == pytest.approx(distances["standardised", 1.0], rel=0.1)


def test_only_switched_terms_are_blind_to_what_one_image_has_alone() -> None:
    """At the optimal T, in closed form: fair bits, one shared by X and Y, one of X's own.

    An own bit in the representation raises the unswitched estimate and leaves the switched one as
    it is. So only the switch gives no reason to keep it.
    """
    bits = [(shared, own) for shared in (0, 1) for own in (0, 1)]

    def optimal(pairs: dict[tuple[object, object], float]) -> float:
        """Equation 2 at T = log p(a, b) / (p(a) p(b)); probabilities are multiples of 1/64."""
        first: dict[object, float] = {}
        second: dict[object, float] = {}
        for (a, b), p in pairs.items():
            first[a] = first.get(a, 0) + p
            second[b] = second.get(b, 0) + p
        joint: list[float] = []
        product: list[float] = []
        for a, p_a in first.items():
            for b, p_b in second.items():
                p, q = pairs.get((a, b), 0.0), p_a * p_b
                t = math.log(p / q) if p else -math.inf
                joint += [t] * round(64 * p)
                product += [t] * round(64 * q)
        assert len(joint) == len(product) == 64
        return float(jsd_mutual_information(torch.tensor(joint), torch.tensor(product)))

    def switched(keep_own: bool) -> float:
        pairs: dict[tuple[object, object], float] = {}
        for shared, own_x in bits:
            for own_y in (0, 1):
                s_y = (shared, own_y) if keep_own else shared
                key = ((shared, own_x), s_y)
                pairs[key] = pairs.get(key, 0) + 1 / 8
        return optimal(pairs)

    def unswitched(keep_own: bool) -> float:
        return optimal({((s, o), (s, o) if keep_own else s): 1 / 4 for s, o in bits})

    assert switched(True) == pytest.approx(switched(False), abs=1e-6)
    assert unswitched(True) > unswitched(False) + 0.1


def _toy_batch(step: int, size: int = 64) -> tuple[PairBatch, Tensor, Tensor]:
    """Band 0 shows a stripe at the place's position, band 1 a level that each image has alone."""
    generator = Generator().manual_seed(step)
    place = torch.randint(4, (size,), generator=generator)
    own = torch.randint(2, (2, size), generator=generator)
    images = torch.randn(2, size, 2, 16, 16, generator=generator) * 0.1
    for position in range(4):
        images[:, place == position, 0, :, 4 * position : 4 * position + 4] += 1.0
    images[:, :, 1] += (own * 2.0 - 1.0)[:, :, None, None]
    return PairBatch(images[0], images[1]), place, own[0]


def _separability(s: Tensor, factor: Tensor) -> float:
    """Accuracy of a least-squares read-out, fitted on one half and scored on the other."""
    target = torch.nn.functional.one_hot(factor).float()
    s = torch.cat([s, torch.ones(len(s), 1)], 1)
    half = len(s) // 2
    weights = torch.linalg.lstsq(s[:half], target[:half]).solution
    return float(((s[half:] @ weights).argmax(1) == factor[half:]).float().mean())


@pytest.mark.slow
def test_training_keeps_the_place_and_only_unswitched_terms_keep_the_own_level() -> None:
    accuracy = {}
    for switched in (True, False):
        stage = _stage(switched=switched)
        optimiser = torch.optim.Adam(stage.parameters(), lr=1e-3)
        for step in range(200):
            batch, _, _ = _toy_batch(step)
            terms = stage.objective(stage.players[0], batch, Generator().manual_seed(step))
            optimiser.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimiser.step()
        batch, place, own = _toy_batch(10_000, size=1000)
        with torch.no_grad():
            s = stage.eval().x.encoder(batch.x).representation
        accuracy[switched] = _separability(s, place), _separability(s, own)
    assert accuracy[True][0] > 0.95
    assert accuracy[False][1] > 0.95
    # The own level has left the switched representation more than half way to chance.
    assert accuracy[True][1] < 0.75


def test_negatives_are_other_places_than_the_pair() -> None:
    """A network that knew the pairs exactly would reach the bound 0, were no pair a negative."""
    order = derangement(8, Generator().manual_seed(0))
    same = torch.where(torch.eye(8, dtype=torch.bool), 50.0, -50.0)
    estimate = -softplus(-same.diagonal()).mean() - softplus(same[torch.arange(8), order]).mean()
    assert estimate.abs() < 1e-6
