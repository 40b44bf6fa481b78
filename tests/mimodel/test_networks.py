"""Layer by layer against the tables of the supplement, and factored against tiled networks."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mimodel.networks import (
    Classifier,
    Decoder,
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


# Weights and biases of each table, product by product; a convolution before BatchNorm has no bias,
# BatchNorm a scale and a shift for each channel. Encoders: their image's channels, z_dim.
_SMALL_CONVOLUTIONS = 3 * 16 * 64 + 64 + 64 * 16 * 128 + 2 * 128 + 128 * 16 * 256 + 2 * 256
_PATCH_CONVOLUTIONS = (
    4 * 16 * 64 + 64
    + 64 * 16 * 128 + 2 * 128
    + 128 * 16 * 256 + 2 * 256
    + 256 * 16 * 512 + 2 * 512
)  # fmt: skip
_COLOUR_CONVOLUTIONS = _PATCH_CONVOLUTIONS - 1 * 16 * 64
_WORD_CONVOLUTIONS = _PATCH_CONVOLUTIONS - 3 * 16 * 64
_HEAD = 512 * 512 + 512 + 512 * 1 + 1
_SHARED_MAPS = 512 * 9 * 64 + 64 + 64 * 9 * 32 + 32
_BOTH_MAPS = 1024 * 9 * 64 + 64 + 64 * 9 * 32 + 32


@pytest.mark.parametrize(
    ("table", "build", "products", "count"),
    [
        ("1", lambda: _encoder(3, (28, 28), 64), _SMALL_CONVOLUTIONS + 4096 * 64 + 64, 921_472),
        ("1, z 8", lambda: _encoder(3, (28, 28), 8), _SMALL_CONVOLUTIONS + 4096 * 8 + 8, 692_040),
        ("2", lambda: GlobalStatistics((256, 4, 4), 64), 4160 * 512 + 512 + _HEAD, 2_393_601),
        ("3", lambda: LocalStatistics((256, 4, 4), 64), 320 * 512 + 512 + _HEAD, 427_521),
        ("4", lambda: GlobalStatistics((512, 4, 4), 72), 8264 * 512 + 512 + _HEAD, 4_494_849),
        ("5", lambda: LocalStatistics((512, 4, 4), 72), 584 * 512 + 512 + _HEAD, 562_689),
        ("6", lambda: Discriminator(64, 8),
         72 * 1000 + 1000 + 1000 * 200 + 200 + 200 * 1 + 1, 273_401),
        ("7", lambda: Classifier(64, 10),
         64 * 32 + 32 + 2 * 32 + 32 * 10 + 10 + 2 * 10 + 10 * 10 + 10, 2_604),
        ("7, IAM's words", lambda: Classifier(64, 100, hidden=64),
         64 * 64 + 64 + 2 * 64 + 64 * 100 + 100 + 2 * 100 + 100 * 100 + 100, 21_088),
        ("8", lambda: _encoder(3, (64, 64), 64), _COLOUR_CONVOLUTIONS + 12800 * 64 + 64, 3_576_704),
        ("8, four bands", lambda: _encoder(4, (64, 64), 64),
         _PATCH_CONVOLUTIONS + 12800 * 64 + 64, 3_577_728),
        ("9", lambda: GlobalStatistics((512, 5, 5), 64),
         _SHARED_MAPS + 96 * 512 + 512 + _HEAD, 626_273),
        ("10", lambda: LocalStatistics((512, 5, 5), 64), 576 * 512 + 512 + _HEAD, 558_593),
        ("11", lambda: GlobalStatistics((1024, 5, 5), 128),
         _BOTH_MAPS + 160 * 512 + 512 + _HEAD, 953_953),
        ("12", lambda: LocalStatistics((1024, 5, 5), 128), 1152 * 512 + 512 + _HEAD, 853_505),
        ("13 and 19", lambda: Discriminator(64, 64),
         128 * 1000 + 1000 + 1000 * 200 + 200 + 200 * 1 + 1, 329_401),
        ("14", lambda: _encoder(1, (64, 256), 64), _WORD_CONVOLUTIONS + 74240 * 64 + 64, 7_506_816),
        ("15", lambda: GlobalStatistics((512, 5, 29), 64),
         _SHARED_MAPS + 864 * 512 + 512 + _HEAD, 1_019_489),
        ("16", lambda: LocalStatistics((512, 5, 29), 64), 576 * 512 + 512 + _HEAD, 558_593),
        ("17", lambda: GlobalStatistics((1024, 5, 29), 128),
         _BOTH_MAPS + 928 * 512 + 512 + _HEAD, 1_347_169),
        ("18", lambda: LocalStatistics((1024, 5, 29), 128), 1152 * 512 + 512 + _HEAD, 853_505),
        ("20", lambda: Decoder(128, 1, (64, 256)),
         128 * 131072 + 131072 + 2 * 512
         + 512 * 16 * 256 + 2 * 256 + 256 * 16 * 128 + 2 * 128 + 128 * 16 * 64 + 2 * 64
         + 64 * 16 * 1 + 1, 19_663_745),
    ],
)  # fmt: skip
def test_each_table_has_the_parameters_of_its_layers(
    table: str, build: Callable[[], nn.Module], products: int, count: int
) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(p.numel() for p in network.parameters()) == products == count


def _encoder(channels: int, image: tuple[int, int], size: int) -> Encoder:
    return Encoder(EncoderSpec.for_images(channels, image, size))
