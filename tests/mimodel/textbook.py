"""The tables as a textbook would write them: tiled, concatenated, one layer. Slow and obvious."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, leaky_relu, linear, relu, softplus

from mimodel.networks import (
    ConvSpec,
    Encoder,
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


def encoded(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """C and the representation by Table 1, 8 or 14, by the parameters of `encoder`.

    As it is in: BatchNorm by the batch in training (its running statistics are left as they are),
    by those statistics else.
    """
    convolutions = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in encoder.convolutions if isinstance(layer, nn.BatchNorm2d)]
    first, *others = convolutions
    maps = leaky_relu(conv2d(images, first.weight, first.bias, first.stride), 0.2)
    for convolution, norm in zip(others, norms, strict=True):
        assert convolution.bias is None
        maps = conv2d(maps, convolution.weight, None, convolution.stride)
        known = (None, None) if encoder.training else (norm.running_mean, norm.running_var)
        maps = batch_norm(maps, *known, norm.weight, norm.bias, encoder.training, eps=1e-5)
        maps = leaky_relu(maps, 0.2)
    return maps, linear(maps.flatten(1), encoder.output.weight, encoder.output.bias)


def reached(networks: nn.Module) -> set[str]:
    """Which of its parts have had gradients: all parameters of a part, or none."""
    found = set()
    for name, part in networks.named_children():
        moved = {bool(p.grad is not None and p.grad.abs().max() > 0) for p in part.parameters()}
        assert len(moved) < 2, name
        if moved == {True}:
            found.add(name)
    return found


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


def information_one_by_one(
    network: StatisticsNetwork, c: Tensor, z: Tensor, order: Tensor
) -> Tensor:
    """Equation 3 or 4 by loops over images and, for a local table, over positions."""
    terms = []
    for image, other in enumerate(order.tolist()):
        assert other != image
        for feature in _features(network, c[image]):
            of_pair = _dense(network, torch.cat([feature, z[image]]))
            of_strangers = _dense(network, torch.cat([feature, z[other]]))
            terms.append(-torch.log(1 + torch.exp(-of_pair)) - torch.log(1 + of_strangers.exp()))
    return torch.stack(terms).mean()


def _features(network: StatisticsNetwork, c: Tensor) -> Iterator[Tensor]:
    """What a statistics network sees of one feature map: all of it, or one position at a time."""
    if isinstance(network, LocalStatistics):
        _, height, width = c.shape
        yield from (c[:, row, col] for row in range(height) for col in range(width))
        return
    for layer in network.convolutions:
        if isinstance(layer, nn.Conv2d):
            c = conv2d(c[None], layer.weight, layer.bias)[0]
        elif isinstance(layer, nn.ReLU):
            c = relu(c)
    yield c.flatten()


def _dense(network: GlobalStatistics | LocalStatistics, values: Tensor) -> Tensor:
    weight = torch.cat([network.first.feature.weight, network.first.representation.weight], 1)
    hidden = relu(linear(values, weight, network.first.representation.bias))
    _, second, _, last = network.head
    return linear(relu(linear(hidden, second.weight, second.bias)), last.weight, last.bias)
