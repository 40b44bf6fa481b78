"""Layer by layer against the tables of the supplement, and factored against tiled networks."""

import itertools

import pytest
import torch
from torch import nn

from mimodel.networks import (
    Classifier,
    Encoder,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
)
from tests.mimodel import textbook


@pytest.mark.parametrize(
    ("image", "shapes"),
    [
        ((64, 64), [(64, 61, 61), (128, 29, 29), (256, 13, 13), (512, 5, 5)]),  # Table 8
        ((64, 256), [(64, 61, 253), (128, 29, 125), (256, 13, 61), (512, 5, 29)]),  # Table 14
    ],
)
def test_encoder_layers_have_the_shapes_of_the_table(
    image: tuple[int, int], shapes: list[tuple[int, int, int]]
) -> None:
    spec = EncoderSpec.for_images(4, image)
    encoder = Encoder(spec).eval()
    x = torch.zeros(1, 4, *image)
    seen, kinds = [], []
    for layer in encoder.convolutions:
        x = layer(x)
        kinds.append(type(layer))
        if isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
            seen.append(tuple(x.shape[1:]))
    assert seen == shapes
    assert spec.feature_shape == shapes[-1]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, *block, *block, *block]
    convolutions = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(4, 4)] * 4
    assert [layer.stride for layer in convolutions] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    flat = shapes[-1][0] * shapes[-1][1] * shapes[-1][2]
    assert encoder.output.weight.shape == (64, flat)  # Flat0: 12800 and 74240
    assert flat == {64: 12800, 256: 74240}[image[1]]


def test_the_feature_map_is_taken_after_normalisation_and_activation() -> None:
    encoder = Encoder(EncoderSpec.for_images(3)).eval()
    encoded = encoder(torch.randn(2, 3, 64, 64))
    assert (encoded.feature_map < 0).any()  # LeakyReLU, not ReLU
    torch.testing.assert_close(
        encoded.representation, encoder.output(encoded.feature_map.flatten(1))
    )


def test_global_statistics_network_has_the_layers_of_table_9() -> None:
    network = GlobalStatistics((512, 5, 5), 64)
    x = torch.zeros(2, 512, 5, 5)
    shapes = []
    for layer in network.convolutions:
        x = layer(x)
        shapes.append((type(layer), tuple(x.shape[1:])))
    assert shapes == [
        (nn.Conv2d, (64, 3, 3)),
        (nn.ReLU, (64, 3, 3)),
        (nn.Conv2d, (32, 1, 1)),
        (nn.Flatten, (32,)),
    ]
    # ShGConcat0 is 32 + 64 = 96 wide.
    assert network.first.feature.weight.shape == (512, 32)
    assert network.first.representation.weight.shape == (512, 64)
    _assert_dense_head(network.head)


def test_local_statistics_network_has_the_layers_of_table_10() -> None:
    network = LocalStatistics((512, 5, 5), 64)
    # ShLConcat0 is 5 x 5 x 576.
    assert network.first.feature.weight.shape == (512, 512)
    assert network.first.representation.weight.shape == (512, 64)
    _assert_dense_head(network.head)
    side = network.feature_side(torch.zeros(2, 512, 5, 5))
    scores = network.score(side, network.representation_side(torch.zeros(2, 64)))
    assert scores.shape == (2, 25)


def _assert_dense_head(head: nn.Sequential) -> None:
    assert [type(layer) for layer in head] == [nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert head[1].weight.shape == (512, 512)
    assert head[3].weight.shape == (1, 512)


@pytest.mark.parametrize("kind", [GlobalStatistics, LocalStatistics])
def test_factored_networks_equal_tiled_and_concatenated_ones(
    kind: type[GlobalStatistics] | type[LocalStatistics],
) -> None:
    torch.manual_seed(5)
    network = kind((512, 5, 5), 64).double()
    c = torch.randn(5, 512, 5, 5, dtype=torch.float64, requires_grad=True)
    z = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([1, 2, 3, 4, 0])
    inputs = [c, z, *network.parameters()]

    feature, side = network.feature_side(c), network.representation_side(z)
    # The project's estimator works in float32; here its equation is written out in float64.
    joint, product = network.score(feature, side), network.score(feature, side[order])
    softplus = torch.nn.functional.softplus
    factored = (-softplus(-joint)).mean() - softplus(product).mean()
    expected = textbook.information(network, c, z, order)

    assert abs(factored - expected) < 1e-9
    ours, theirs = torch.autograd.grad(factored, inputs), torch.autograd.grad(expected, inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-9
        assert other.abs().max() > 0


def test_first_layer_is_drawn_as_the_undivided_one_would_be() -> None:
    torch.manual_seed(0)
    network = LocalStatistics((512, 5, 5), 64)
    bound = 1 / 576**0.5
    for parameter in network.first.parameters():
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.98 * bound
        assert abs(parameter.std() / (bound / 3**0.5) - 1) < 0.1


def test_classifier_has_the_layers_of_table_7_and_gives_logits() -> None:
    network = Classifier(64, 10)
    kinds = [type(layer) for layer in network.layers]
    dense = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*dense, *dense, nn.Linear]
    widths = [layer.out_features for layer in network.layers if isinstance(layer, nn.Linear)]
    assert widths == [32, 10, 10]
    logits = network.eval()(torch.randn(6, 64))
    assert not torch.allclose(logits.sum(1), torch.ones(6))


def test_parameter_counts_follow_from_the_tables() -> None:
    spec = EncoderSpec.for_images(4)
    kernel = 16
    channels = [4, 64, 128, 256, 512]
    convolutions = sum(a * b * kernel for a, b in itertools.pairwise(channels))
    encoder = convolutions + 64 + 2 * (128 + 256 + 512) + 12800 * 64 + 64
    assert sum(p.numel() for p in Encoder(spec).parameters()) == encoder
    head = 512 * 512 + 512 + 512 + 1
    global_ = (512 * 64 * 9 + 64) + (64 * 32 * 9 + 32) + (96 * 512 + 512) + head
    assert sum(p.numel() for p in GlobalStatistics(spec.feature_shape, 64).parameters()) == global_
    local = 576 * 512 + 512 + head
    assert sum(p.numel() for p in LocalStatistics(spec.feature_shape, 64).parameters()) == local
