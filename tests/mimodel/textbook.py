"""The tables as a textbook would write them: tiled, concatenated, one layer. Slow and obvious."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, relu, softplus

from mimodel.networks import (
    ConvSpec,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
    StatisticsNetwork,
)

SMALL = EncoderSpec(
    in_channels=2,
    image_size=(16, 16),
    convolutions=(
        ConvSpec(channels=8, kernel=4, stride=2, batch_norm=False),
        ConvSpec(channels=16, kernel=3, stride=1),
    ),
    representation=6,
)
"""An encoder that brute force can follow."""


def score(network: StatisticsNetwork, feature_map: Tensor, z: Tensor) -> Tensor:
    """T of a global (batch,) or a local table (batch, row, col), by the parameters of `network`."""
    if isinstance(network, GlobalStatistics):
        flat = feature_map.flatten(1)
        if len(network.convolutions) > 1:  # Tables 2 and 4 have none
            first, second = network.convolutions[0], network.convolutions[2]
            hidden = relu(conv2d(feature_map, first.weight, first.bias))
            flat = conv2d(hidden, second.weight, second.bias).flatten(1)
        return _dense(network, torch.cat([flat, z], 1)).squeeze(1)
    tiled = z[:, :, None, None].expand(-1, -1, *feature_map.shape[2:])
    stacked = torch.cat([feature_map, tiled], 1)
    return _dense(network, stacked.movedim(1, -1)).squeeze(-1)


def information(network: StatisticsNetwork, c: Tensor, z: Tensor, order: Tensor) -> Tensor:
    """Equation 3 or 4, negatives made by permuting the representations."""
    joint, product = score(network, c, z), score(network, c, z[order])
    return (-softplus(-joint)).mean() - softplus(product).mean()


def _dense(network: GlobalStatistics | LocalStatistics, values: Tensor) -> Tensor:
    weight = torch.cat([network.first.feature.weight, network.first.representation.weight], 1)
    hidden = relu(linear(values, weight, network.first.representation.bias))
    _, second, _, last = network.head
    return linear(relu(linear(hidden, second.weight, second.bias)), last.weight, last.bias)
