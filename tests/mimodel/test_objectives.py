"""The equations against closed forms."""

import math
from collections import Counter

import pytest
import torch
from torch import Generator

from mimodel.objectives import (
    derangement,
    joint_term,
    jsd_mutual_information,
    representation_distance,
)


def test_jsd_estimate_reaches_its_bound_at_the_log_density_ratio() -> None:
    # Two fair coins that agree 3 times in 4, against two independent ones.
    agree, differ = math.log(3 / 2), math.log(1 / 2)
    joint = torch.tensor(3 * [agree] + 1 * [differ])
    product = torch.tensor(2 * [agree] + 2 * [differ])
    p, q = torch.tensor([3 / 4, 1 / 4]), torch.tensor([1 / 2, 1 / 2])
    m = (p + q) / 2
    jsd = (p * (p / m).log() + q * (q / m).log()).sum() / 2
    bound = 2 * jsd - 2 * math.log(2)
    torch.testing.assert_close(jsd_mutual_information(joint, product), bound)
    for change in (-0.3, 0.2):
        assert jsd_mutual_information(joint + change, product + change) < bound


def test_an_indifferent_network_estimates_minus_two_log_two() -> None:
    estimate = jsd_mutual_information(torch.zeros(7), torch.zeros(5, 3))
    torch.testing.assert_close(estimate, torch.tensor(-2 * math.log(2)))


def test_joint_term_is_the_log_of_the_logistic_function() -> None:
    t = torch.linspace(-5, 5, 11)
    torch.testing.assert_close(joint_term(t), torch.sigmoid(t).log())


def test_distance_is_averaged_over_batch_and_dimensions() -> None:
    s_x, s_y = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert representation_distance(s_x, s_y) == (1 + 0 + 2 + 3) / 4


@pytest.mark.parametrize("size", [2, 3, 64])
def test_a_derangement_is_a_permutation_that_moves_each_item(size: int) -> None:
    generator = Generator().manual_seed(3)
    for _ in range(20):
        order = derangement(size, generator)
        assert sorted(order.tolist()) == list(range(size))
        assert not (order == torch.arange(size)).any()


def test_derangements_are_drawn_anew_and_uniformly() -> None:
    generator = Generator().manual_seed(0)
    drawn = Counter(tuple(derangement(4, generator).tolist()) for _ in range(1800))
    assert len(drawn) == 9  # the subfactorial of 4
    # Binomial with mean 200 and standard deviation 13.3; six of them on either side.
    assert all(120 < count < 280 for count in drawn.values())


def test_a_single_pair_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, Generator())
