"""Layer by layer against the tables of the supplement, and factored against tiled networks."""

import itertools

import pytest
import torch
from torch import nn

from mimodel.networks import (
    Classifier,
    Discriminator,
    Encoder,
    EncoderSpec,
    GlobalStatistics,
    LocalStatistics,
)
from mimodel.parallel import BatchNorm
from tests.mimodel import textbook


@pytest.mark.parametrize(
    ("image", "shapes", "flat"),
    [
        ((28, 28), [(64, 25, 25), (128, 11, 11), (256, 4, 4)], 4096),  # Table 1
        ((64, 64), [(64, 61, 61), (128, 29, 29), (256, 13, 13), (512, 5, 5)], 12800),  # Table 8
        ((64, 256), [(64, 61, 253), (128, 29, 125), (256, 13, 61), (512, 5, 29)], 74240),  # 14
    ],
)
def test_encoder_layers_have_the_shapes_of_the_table(
    image: tuple[int, int], shapes: list[tuple[int, int, int]], flat: int
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
    block = [nn.Conv2d, BatchNorm, nn.LeakyReLU]
    assert kinds == [nn.Conv2d, nn.LeakyReLU, *block * (len(shapes) - 1)]
    convolutions = [layer for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in convolutions] == [(4, 4)] * len(shapes)
    assert [layer.stride for layer in convolutions] == [(1, 1), *[(2, 2)] * (len(shapes) - 1)]
    assert encoder.output.weight.shape == (64, flat)


def test_the_encoder_of_small_images_has_no_stride() -> None:
    spec = EncoderSpec.for_images(4, (9, 9))
    x = torch.zeros(1, 4, 9, 9)
    encoder, seen = Encoder(spec).eval(), []
    for layer in encoder.convolutions:
        x = layer(x)
        if isinstance(layer, nn.LeakyReLU):
            seen.append(tuple(x.shape[1:]))
    assert seen == [(64, 7, 7), (128, 5, 5), (256, 3, 3)]
    assert encoder.output.weight.shape == (64, 2304)
    kinds = [nn.Conv2d, nn.LeakyReLU, *[nn.Conv2d, BatchNorm, nn.LeakyReLU] * 2]
    assert [type(layer) for layer in encoder.convolutions] == kinds
    assert spec.dense
    assert not EncoderSpec.for_images(4).dense
    # Table 1 needs 13 pixels.
    assert EncoderSpec.for_images(4, (13, 13)).feature_shape == (256, 1, 1)


def test_the_feature_map_is_taken_after_normalisation_and_activation() -> None:
    encoder = Encoder(EncoderSpec.for_images(3)).eval()
    encoded = encoder(torch.randn(2, 3, 64, 64))
    assert (encoded.feature_map < 0).any()  # LeakyReLU, not ReLU
    torch.testing.assert_close(
        encoded.representation, encoder.output(encoded.feature_map.flatten(1))
    )


@pytest.mark.parametrize(
    ("features", "representation", "convolved", "flat", "concatenated"),
    [
        ((256, 4, 4), 64, [], 4096, 4160),  # Table 2
        ((512, 4, 4), 72, [], 8192, 8264),  # Table 4
        ((512, 5, 5), 64, [(64, 3, 3), (32, 1, 1)], 32, 96),  # Table 9
        ((1024, 5, 5), 128, [(64, 3, 3), (32, 1, 1)], 32, 160),  # Table 11
        ((512, 5, 29), 64, [(64, 3, 27), (32, 1, 25)], 800, 864),  # Table 15
        ((1024, 5, 29), 128, [(64, 3, 27), (32, 1, 25)], 800, 928),  # Table 17
    ],
)
def test_global_statistics_networks_have_the_layers_of_their_tables(
    features: tuple[int, int, int],
    representation: int,
    convolved: list[tuple[int, int, int]],
    flat: int,
    concatenated: int,
) -> None:
    network = GlobalStatistics(features, representation)
    x = torch.zeros(2, *features)
    shapes, kinds = [], []
    for layer in network.convolutions:
        x = layer(x)
        kinds.append(type(layer))
        if isinstance(layer, nn.Conv2d):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == convolved
    assert kinds == [*[nn.Conv2d, nn.ReLU, nn.Conv2d][: 3 * bool(convolved)], nn.Flatten]
    assert x.shape[1:] == (flat,)
    assert network.first.feature.weight.shape == (512, flat)
    assert network.first.representation.weight.shape == (512, representation)
    assert flat + representation == concatenated
    _assert_dense_head(network.head)


@pytest.mark.parametrize(
    ("features", "representation", "stacked"),
    [
        ((256, 4, 4), 64, 320),  # Table 3
        ((512, 4, 4), 72, 584),  # Table 5
        ((512, 5, 5), 64, 576),  # Table 10
        ((1024, 5, 5), 128, 1152),  # Table 12
        ((512, 5, 29), 64, 576),  # Table 16
        ((1024, 5, 29), 128, 1152),  # Table 18
    ],
)
def test_local_statistics_networks_have_the_layers_of_their_tables(
    features: tuple[int, int, int], representation: int, stacked: int
) -> None:
    network = LocalStatistics(features, representation)
    channels, height, width = features
    assert network.first.feature.weight.shape == (512, channels)
    assert network.first.representation.weight.shape == (512, representation)
    assert channels + representation == stacked
    _assert_dense_head(network.head)
    side = network.feature_side(torch.zeros(2, *features))
    scores = network.score(side, network.representation_side(torch.zeros(2, representation)))
    assert scores.shape == (2, height * width)


@pytest.mark.parametrize(("exclusive", "concatenated"), [(8, 72), (64, 128)])
def test_discriminators_have_the_layers_of_tables_6_13_and_19(
    exclusive: int, concatenated: int
) -> None:
    network = Discriminator(64, exclusive)
    kinds = [type(layer) for layer in network.hidden]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if "weight" in name]
    assert shapes == [(1000, concatenated), (200, 1000), (1, 200)]
    s, e = torch.randn(5, 64), torch.randn(5, exclusive)
    assert network(s, e).shape == (5,)
    assert not torch.equal(network(s, e), network(s, e.flip(0)))


@pytest.mark.parametrize(
    ("image", "exclusive", "encoders", "millions"),
    [
        # Counted for a textbook's networks; ours have no bias before BatchNorm.
        ((28, 28), 0, 2, 7.5),
        ((28, 28), 8, 2, 12.1),
        ((64, 64), 0, 1, 4.8),
        ((64, 64), 64, 1, 5.7),
    ],
)
def test_a_stage_has_as_many_parameters_as_a_textbooks(
    image: tuple[int, int], exclusive: int, encoders: int, millions: float
) -> None:
    spec = EncoderSpec.for_images(3, image, exclusive or 64)
    channels, height, width = spec.feature_shape
    both = 2 if exclusive else 1
    parts: list[nn.Module] = [
        Encoder(spec),
        GlobalStatistics((both * channels, height, width), 64 + exclusive),
        LocalStatistics((both * channels, height, width), 64 + exclusive),
    ]
    if exclusive:
        parts.append(Discriminator(64, exclusive))
    count = encoders * sum(p.numel() for part in parts for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def _assert_dense_head(head: nn.Sequential) -> None:
    assert [type(layer) for layer in head] == [nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert head[1].weight.shape == (512, 512)
    assert head[3].weight.shape == (1, 512)


@pytest.mark.parametrize(
    ("features", "dimension"),
    [((512, 5, 5), 64), ((256, 4, 4), 64), ((512, 4, 4), 72)],  # Tables 9, 10; 2, 3; 4, 5
)
@pytest.mark.parametrize("kind", [GlobalStatistics, LocalStatistics])
def test_factored_networks_equal_tiled_and_concatenated_ones(
    kind: type[GlobalStatistics] | type[LocalStatistics],
    features: tuple[int, int, int],
    dimension: int,
) -> None:
    torch.manual_seed(5)
    network = kind(features, dimension).double()
    c = torch.randn(5, *features, dtype=torch.float64, requires_grad=True)
    z = torch.randn(5, dimension, dtype=torch.float64, requires_grad=True)
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
