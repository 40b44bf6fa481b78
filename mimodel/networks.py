"""The networks of Sanchez et al. 2019, Tables 1 to 20 of the supplement, from one EncoderSpec.

Settled where the tables are silent: LeakyReLU has a slope of 0.2 (unless a spec says otherwise),
activations follow BatchNorm, and "the output of Conv k" is taken after both.

The first layer of a statistics network is linear in its two inputs, so
W [f; z] = W_f f + W_z z. The networks are written in this factored form: the feature side is worked
out once for the joint and the product term, and the tiled copy of z never exists.
"""

import math
from typing import Annotated, NamedTuple, final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import relu

from mimodel.parallel import BatchNorm

LEAKY_SLOPE = 0.2


class ConvSpec(BaseModel):
    """One convolution of an encoder; LeakyReLU follows, after BatchNorm where there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int
    kernel: int = 4
    stride: int = 2
    batch_norm: bool = True


class EncoderSpec(BaseModel):
    """What an encoder is built from, in training and in an artifact alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int
    image_size: tuple[int, int]
    convolutions: tuple[ConvSpec, ...]
    representation: int = 64
    leaky_slope: float = LEAKY_SLOPE
    levels: Annotated[int, Field(ge=2)] | None = None
    """How many values a dimension of the representation may take; None, as in the paper: any."""

    @classmethod
    def for_images(
        cls, in_channels: int, image_size: tuple[int, int] = (64, 64), representation: int = 64
    ) -> "EncoderSpec":
        """Tables 8 (64x64) and 14 (64x256); Table 1 for images of less than 64 pixels.

        For those of less than 13, which Table 1 has no room for, three 3x3 convolutions without a
        stride, ours: 9x9 pixels become 7x7x64, 5x5x128 and 3x3x256.
        """
        if min(image_size) < 13:
            return cls._without_stride(in_channels, image_size, representation)
        channels = (128, 256) if min(image_size) < 64 else (128, 256, 512)
        return cls(
            in_channels=in_channels,
            image_size=image_size,
            convolutions=(
                ConvSpec(channels=64, stride=1, batch_norm=False),
                *(ConvSpec(channels=count) for count in channels),
            ),
            representation=representation,
        )

    @classmethod
    def _without_stride(
        cls, in_channels: int, image_size: tuple[int, int], representation: int
    ) -> "EncoderSpec":
        return cls(
            in_channels=in_channels,
            image_size=image_size,
            convolutions=tuple(
                ConvSpec(channels=channels, kernel=3, stride=1, batch_norm=channels > 64)
                for channels in (64, 128, 256)
            ),
            representation=representation,
        )

    @property
    def dense(self) -> bool:
        """Whether the encoder has no stride: then the feature maps of all patches of an image are
        parts of that of the image."""
        return all(conv.stride == 1 for conv in self.convolutions)

    @property
    def feature_shape(self) -> "FeatureShape":
        """Shape of the last convolution's output."""
        height, width = self.image_size
        for conv in self.convolutions:
            height = (height - conv.kernel) // conv.stride + 1
            width = (width - conv.kernel) // conv.stride + 1
        return self.convolutions[-1].channels, height, width


class Encoded(NamedTuple):
    """An encoder's two outputs: C(x) of equation 4, and the representation."""

    feature_map: Float[Tensor, "batch channel row col"]
    representation: Float[Tensor, "batch dim"]


@final
class Levels(nn.Module):
    """Rounds a representation of deviation 1 to whole deviations: each dimension to one of `count`
    values that are 1 apart and lie evenly around 0 (finite scalar quantisation, Mentzer et al.
    2024, arXiv 2309.15505).

    Gradients pass the rounding as if it were not there (the straight-through estimator of Bengio
    et al. 2013, arXiv 1308.3432). BatchNorm before it, where that paper has a hyperbolic tangent,
    keeps each dimension in use: a tangent that is at its end has no gradient to come back by.

    While `rounding` is off, training goes on with the standardised values as they are; evaluation
    always rounds.
    """

    def __init__(self, count: int, representation: int) -> None:
        super().__init__()
        self.count = count
        self.norm = BatchNorm(representation, affine=False)
        self.rounding = True

    def forward(self, values: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        scaled: Tensor = self.norm(values[..., None, None])[..., 0, 0]
        if self.training and not self.rounding:
            return scaled
        end = (self.count - 1) / 2
        level = ((scaled - end).round() + end).clamp(-end, end)
        return scaled + (level - scaled).detach() if torch.is_grad_enabled() else level


@final
class Encoder(nn.Module):
    """Table 8: convolutions, then one dense layer without activation; `levels`, where the spec
    names them, are ours."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: list[nn.Module] = []
        channels = spec.in_channels
        for conv in spec.convolutions:
            # A bias before BatchNorm is subtracted again with the mean, so there is none.
            layers.append(
                nn.Conv2d(
                    channels, conv.channels, conv.kernel, conv.stride, bias=not conv.batch_norm
                )
            )
            if conv.batch_norm:
                layers.append(BatchNorm(conv.channels))
            layers.append(nn.LeakyReLU(spec.leaky_slope))
            channels = conv.channels
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(math.prod(spec.feature_shape), spec.representation)
        self.levels = Levels(spec.levels, spec.representation) if spec.levels else nn.Identity()

    def forward(self, image: Float[Tensor, "batch band row col"]) -> Encoded:
        feature_map = self.convolutions(image)
        return Encoded(feature_map, self.levels(_in_full(self.output, feature_map.flatten(1))))


def _in_full(layer: nn.Linear, values: Tensor) -> Tensor:
    """A layer in the precision of its weights, also where autocast is on.

    What leaves the networks (S and T) is compared, averaged and served; bfloat16 would leave eight
    bits of it, and these layers are a hundredth of the work.
    """
    with torch.autocast(values.device.type, enabled=False):
        full: Tensor = layer(values.to(layer.weight.dtype))
        return full


@final
class SplitLinear(nn.Module):
    """A dense layer on a concatenation [f; z], as two layers whose sum it is.

    Weights are drawn as those of the one layer would be. The bias is on the side of z.
    """

    def __init__(self, features: int, representation: int, out: int) -> None:
        super().__init__()
        self.feature = nn.Linear(features, out, bias=False)
        self.representation = nn.Linear(representation, out)
        bound = 1 / math.sqrt(features + representation)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)


@final
class _DenseHead(nn.Sequential):
    """From the sum of a first layer's two sides to T: the last two layers of Tables 9 and 10."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, sides: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        _, dense, _, output = self
        assert isinstance(output, nn.Linear)
        return _in_full(output, relu(dense(relu(sides)))).squeeze(-1)


FeatureShape = tuple[int, int, int]
"""(channels, height, width) of a feature map."""


@final
class GlobalStatistics(nn.Module):
    """T on a whole feature map and a representation.

    Tables 9, 11, 15 and 17: two convolutions, then dense layers. Tables 2 and 4: maps too small
    for the convolutions go into the dense layers as they are.

    `feature_side` and `representation_side` may be broadcast against each other before `score`, so
    that many pairs cost one evaluation of each side.
    """

    def __init__(self, features: FeatureShape, representation: int, width: int = 512) -> None:
        super().__init__()
        channels, height, width_px = features
        if min(height, width_px) < 5:
            self.convolutions = nn.Sequential(nn.Flatten())
            flat = math.prod(features)
        else:
            self.convolutions = nn.Sequential(
                nn.Conv2d(channels, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.Flatten()
            )
            flat = 32 * (height - 4) * (width_px - 4)
        self.first = SplitLinear(flat, representation, width)
        self.head = _DenseHead(width)

    def feature_side(
        self, feature_map: Float[Tensor, "batch channel row col"]
    ) -> Float[Tensor, "batch width"]:
        side: Tensor = self.first.feature(self.convolutions(feature_map))
        return side

    def representation_side(
        self, representation: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch width"]:
        side: Tensor = self.first.representation(representation)
        return side

    def score(
        self,
        feature: Float[Tensor, "*#batch width"],
        representation: Float[Tensor, "*#batch width"],
    ) -> Float[Tensor, "*batch"]:
        score: Tensor = self.head(feature + representation)
        return score


@final
class LocalStatistics(nn.Module):
    """Tables 3, 5, 10, 12, 16 and 18: T on each position of a feature map and a representation.

    The 1x1 convolutions are written as dense layers over channels-last positions.
    """

    def __init__(self, features: FeatureShape, representation: int, width: int = 512) -> None:
        super().__init__()
        self.first = SplitLinear(features[0], representation, width)
        self.head = _DenseHead(width)

    def feature_side(
        self, feature_map: Float[Tensor, "batch channel row col"]
    ) -> Float[Tensor, "batch position width"]:
        side: Tensor = self.first.feature(feature_map.permute(0, 2, 3, 1).flatten(1, 2))
        return side

    def representation_side(
        self, representation: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch 1 width"]:
        side: Tensor = self.first.representation(representation).unsqueeze(1)
        return side

    def score(
        self,
        feature: Float[Tensor, "*#batch position width"],
        representation: Float[Tensor, "*#batch 1 width"],
    ) -> Float[Tensor, "*batch position"]:
        score: Tensor = self.head(feature + representation)
        return score


StatisticsNetwork = GlobalStatistics | LocalStatistics


@final
class Discriminator(nn.Module):
    """Tables 6, 13 and 19: tells a shared and an exclusive representation of one image from those
    of two. Its output is a logit: the sigmoid is part of the cross-entropy."""

    def __init__(self, shared: int, exclusive: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(shared + exclusive, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU()
        )
        self.output = nn.Linear(200, 1)

    def forward(
        self, shared: Float[Tensor, "batch dim"], exclusive: Float[Tensor, "batch own"]
    ) -> Float[Tensor, " batch"]:
        hidden = self.hidden(torch.cat([shared, exclusive], 1))
        return _in_full(self.output, hidden).squeeze(-1)


@final
class Decoder(nn.Module):
    """Table 20: from a representation to the logits or means of an image's pixels.

    Its maps begin at an eighth of the image's sides. The table's last deconvolution, 4x4 at stride
    1, keeps the size; the row and column that an even kernel adds are cut off at the end.
    """

    def __init__(self, representation: int, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self._base = (512, image_size[0] // 8, image_size[1] // 8)
        self.dense = nn.Linear(representation, math.prod(self._base))
        self.deconvolutions = nn.Sequential(
            BatchNorm(512),
            nn.LeakyReLU(LEAKY_SLOPE),
            *self._doubling(512, 256),
            *self._doubling(256, 128),
            *self._doubling(128, 64),
            nn.ConvTranspose2d(64, channels, 4, 1, padding=1),
        )

    @staticmethod
    def _doubling(channels: int, out: int) -> tuple[nn.Module, ...]:
        deconvolution = nn.ConvTranspose2d(channels, out, 4, 2, padding=1, bias=False)
        return deconvolution, BatchNorm(out), nn.LeakyReLU(LEAKY_SLOPE)

    def forward(
        self, representation: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch band row col"]:
        maps = self.dense(representation).unflatten(1, self._base)
        image: Tensor = self.deconvolutions(maps)
        return image[:, :, :-1, :-1]


@final
class Classifier(nn.Module):
    """Table 7: the classifier that reads a frozen representation; its output are logits.

    The table's softmax is part of the cross-entropy (and of `Artifact.classify`), not of this.
    """

    def __init__(self, representation: int, classes: int, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(representation, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
            nn.BatchNorm1d(classes),
            nn.ReLU(),
            nn.Linear(classes, classes),
        )

    def forward(self, representation: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch class"]:
        logits: Tensor = self.layers(representation)
        return logits


def inference_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
