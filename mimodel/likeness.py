"""Equation 5 without its expectation, between a few places and many, as fast as the processor may.

A place is a patch. What its likeness to others needs are its two sides of both statistics networks
(`networks.py`: their first layer is linear), worked out once. The numbers are those of the networks
taken patch by patch, but for rounding; what makes them cheap:

- Where the encoder has no stride, the feature maps of all patches are parts of the image's, their
  representations a convolution of it, and a position's local term serves the nine patches it is in.
- relu(a + b) = max(a, -b) + b, one pass over `a`, and `b` goes through the next layer beforehand.
- |w| relu(z) = relu(|w| z), so the last layer is folded into the one before: a sum of what is
  weighed positively, less one of the rest.
- BatchNorm is folded into the convolution before it.
"""

import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, linear

from mimodel.artifact import Artifact
from mimodel.backends import fold_batch_norm
from mimodel.errors import InputError
from mimodel.networks import Encoder, GlobalStatistics, LocalStatistics, inference_dtype
from mimodel.objectives import joint_term

_ROWS = 1024
"""Places whose hidden layers are in work at a time: more of them fall out of the cache."""


class Terms(StrEnum):
    """Which terms of equation 5 count."""

    ALL = "all"
    IMAGE = "image"
    """Those of the image's features and the query's representation, twice; the others need the
    networks once for each position of the query's feature map."""


@dataclass(frozen=True, eq=False)
class Places:
    """What the likeness of some places needs. They lie in rows, as patches of images do."""

    global_feature: Float[Tensor, "place width"]
    local_feature: Float[Tensor, "image row col width"]
    """Over the positions of the images' feature maps."""
    representation: Float[Tensor, "place dim"]
    window: tuple[int, int]
    """Rows and columns of positions that one place has."""

    def __len__(self) -> int:
        return len(self.representation)

    @property
    def nbytes(self) -> int:
        parts = (self.global_feature, self.local_feature, self.representation)
        return sum(part.nbytes for part in parts)


@final
class Comparison:
    """The networks of an artifact, folded and packed to compare places.

    `dtype` is that of the arithmetic; none given: bfloat16 where the processor multiplies it, else
    float32. Sums and what comes out are float32 at least. An artifact without statistics networks
    is an `InputError`.
    """

    def __init__(self, artifact: Artifact, dtype: torch.dtype | None = None) -> None:
        networks, spec = artifact.networks, artifact.spec
        if networks.global_statistics is None or networks.local_statistics is None:
            raise InputError(
                "this model has no statistics networks and so no similarity; load one of the "
                "shared stage"
            )
        self.dtype = dtype or inference_dtype(torch.device("cpu"))
        assert spec.alpha is not None
        assert spec.beta is not None
        self._alpha, self._beta = spec.alpha, spec.beta
        self._encoder = _FoldedEncoder(networks.encoder, self.dtype)
        self._global = _FoldedStatistics(networks.global_statistics, self.dtype)
        self._local = _FoldedStatistics(networks.local_statistics, self.dtype)

    @torch.inference_mode()
    def places(self, images: Float[Tensor, "image band row col"]) -> Places:
        """Every patch inside normalised images: one each, where they are as large as a patch.

        Larger images need an encoder without strides.
        """
        features = self._encoder.features(images.to(self.dtype))
        return Places(
            _by_place(self._global.feature_sides(features, self._encoder.window)),
            self._local.feature_sides(features, (1, 1)).permute(0, 2, 3, 1),
            _by_place(self._encoder.representations(features)),
            self._encoder.window,
        )

    @torch.inference_mode()
    def scores(self, query: Places, image: Places, terms: Terms = Terms.ALL) -> Tensor:
        """Likeness (query, place) of single patches to places: at most 0, higher is more alike."""
        g, t = self._global, self._local
        asked = query.representation
        image_terms = self._alpha * joint_term(
            g.scores(image.global_feature, g.representation_sides(asked))
        )
        positions = image.local_feature
        local = joint_term(t.scores(positions.flatten(0, 2), t.representation_sides(asked)))
        maps = local.view(len(asked) * len(positions), 1, *positions.shape[1:3])
        means = avg_pool2d(maps, image.window, stride=1).view(len(asked), len(image))
        image_terms += self._beta * means
        if terms is Terms.IMAGE:
            return 2 * image_terms
        return image_terms + self._query_terms(query, image.representation)

    def _query_terms(self, query: Places, representation: Tensor) -> Tensor:
        """Of the query's features and each place's representation."""
        g, t = self._global, self._local
        own = query.local_feature.flatten(0, 2)
        parts = []
        for rows in representation.split(_ROWS):
            local = joint_term(t.scores(t.representation_sides(rows), own))
            parts.append(
                self._alpha
                * joint_term(g.scores(g.representation_sides(rows), query.global_feature))
                + self._beta * local.view(len(query), -1, len(rows)).mean(1)
            )
        return torch.cat(parts, 1)


@final
class _FoldedEncoder:
    """An encoder in eval mode, its BatchNorm folded, its dense layer as a convolution."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        self.window = encoder.spec.feature_shape[1:]
        self._convolutions = fold_batch_norm(copy.deepcopy(encoder).double())
        self._convolutions.to(dtype).to(memory_format=torch.channels_last)
        weight = encoder.output.weight.unflatten(1, encoder.spec.feature_shape)
        self._weight = weight.to(dtype, memory_format=torch.channels_last)
        self._bias = encoder.output.bias.to(dtype)

    def features(self, images: Tensor) -> Tensor:
        """Feature maps (image, channel, row, col) of all that the images hold."""
        features: Tensor = self._convolutions(images.contiguous(memory_format=torch.channels_last))
        return features

    def representations(self, features: Tensor) -> Tensor:
        """Of every window of the feature maps (image, dim, row, col)."""
        return conv2d(features, self._weight, self._bias)


@final
class _FoldedStatistics:
    """A statistics network: its first layer as a convolution, its others folded into one."""

    def __init__(self, network: GlobalStatistics | LocalStatistics, dtype: torch.dtype) -> None:
        layers = nn.Sequential()
        if isinstance(network, GlobalStatistics):
            layers = network.convolutions[:-1]  # all but Flatten
        self._convolutions = copy.deepcopy(layers).to(dtype).requires_grad_(False)
        self._feature = network.first.feature.weight.to(dtype)
        self._representation = network.first.representation.weight.to(dtype)
        self._bias = network.first.representation.bias.to(dtype)
        _, dense, _, output = network.head
        assert isinstance(dense, nn.Linear)
        assert isinstance(output, nn.Linear)
        weight = output.weight[0].double()
        order = torch.argsort((weight < 0).int(), stable=True)
        self._positive = int((weight >= 0).sum())
        self._head = (weight.abs()[:, None] * dense.weight.double())[order].to(dtype)
        full = torch.promote_types(dtype, torch.float32)
        self._head_bias = (weight.abs() * dense.bias.double())[order].to(full)
        self._last = float(output.bias)

    def feature_sides(self, features: Tensor, window: tuple[int, int]) -> Tensor:
        """The feature side (image, width, row, col) of every window of feature maps."""
        for layer in self._convolutions:
            features = layer(features)
            if isinstance(layer, nn.Conv2d):
                rows, cols = layer.kernel_size
                window = (window[0] - rows + 1, window[1] - cols + 1)
        weight = self._feature.unflatten(1, (features.shape[1], *window))
        return conv2d(features, weight.contiguous(memory_format=torch.channels_last))

    def representation_sides(self, representations: Tensor) -> Tensor:
        """(item, width)."""
        return linear(representations, self._representation, self._bias)

    def scores(self, sides: Tensor, others: Tensor) -> Tensor:
        """T (other, side) of every pair of two sides; `sides` are the many."""
        scores = torch.empty(len(others), len(sides), dtype=self._head_bias.dtype)
        # As `others` are, rounded: what max() adds to a unit that is off is taken away exactly.
        weight = self._head.to(scores.dtype)
        biases = (self._head_bias + others.to(scores.dtype) @ weight.T).to(self._head.dtype)
        for start in range(0, len(sides), _ROWS):
            rows = sides[start : start + _ROWS]
            for index, (other, bias) in enumerate(zip(others, biases, strict=True)):
                hidden = linear(torch.maximum(rows, -other), self._head, bias).relu_()
                gain = hidden[:, : self._positive].sum(1, dtype=scores.dtype)
                loss = hidden[:, self._positive :].sum(1, dtype=scores.dtype)
                scores[index, start : start + _ROWS] = gain - loss
        return scores.add_(self._last)


def _by_place(maps: Tensor) -> Tensor:
    """(image, channel, row, col), channels last, as (place, channel)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
