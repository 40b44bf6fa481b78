"""Mutual information as a likeness of pixels: section 5.4 of Sanchez et al. 2019, figure 6.

Equation 5 without its expectation over places: for the patches X and Y around two pixels

    alpha (g(X, S_Y) + g(Y, S_X)) + beta mean_positions(l(X, S_Y) + l(Y, S_X)),

where g and l are the joint term -softplus(-T) of the global and the local statistics network.
It is symmetric in X and Y and at most 0; higher is more alike.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mimodel.artifact import Artifact
from mimodel.errors import InputError
from mimodel.likeness import Comparison, Places, Terms
from mimodel.normalisation import select_bands

Pixel = tuple[int, int]
"""(row, column) of an image, from 0 at the top left."""

_PATCHES = 64
"""Patches that are encoded at a time where each is encoded by itself."""
_STRIP = 1 << 15
"""Pixels of the strips in which an image is encoded whole."""
_STEP = 1 << 15
"""Scores that are worked out in one go."""
_USUAL_STRIDE = 8
_USUAL_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class SimilarityMap:
    """Likeness of the patches on a regular grid to those around query pixels."""

    scores: npt.NDArray[np.float32]
    """(rows, columns) of the grid, at most 0, higher is more alike; the mean over the queries."""
    row_centres: npt.NDArray[np.int64]
    """Pixel rows of the image on which the grid's patches are centred."""
    col_centres: npt.NDArray[np.int64]
    queries: tuple[Pixel, ...]
    valid: npt.NDArray[np.bool_]
    """(H, W): the image's pixels with data in every band."""

    def to_image(self) -> npt.NDArray[np.float32]:
        """The scores at each pixel of the image (H, W), linear between the grid's centres.

        Outside the outermost centres, where no whole patch fits, the nearest one counts. NaN where
        the image has no data.
        """
        height, width = self.valid.shape
        rows = np.interp(np.arange(height), self.row_centres, np.arange(len(self.row_centres)))
        cols = np.interp(np.arange(width), self.col_centres, np.arange(len(self.col_centres)))
        whole = _bilinear(_bilinear(self.scores, rows).T, cols).T.astype(np.float32)
        return np.where(self.valid, whole, np.float32(np.nan))


def similarity_map(
    artifact: Artifact,
    image: npt.NDArray[np.floating],
    query: Pixel,
    *,
    stride: int | None = None,
    bands: Sequence[str] | None = None,
) -> SimilarityMap:
    """How alike each place of `image` is to the place around the pixel `query`.

    One query of a `PreparedImage`, which see for the parameters; prepare the image where there are
    several.
    """
    prepared = PreparedImage(artifact, image, stride=stride, bands=bands, keep=lambda _: False)
    return prepared.mean_map([query])


@final
class PreparedImage:
    """An image that is asked about pixels; its features are kept from the first query on.

    `image` is reflectance (band, H, W), NaN where there is no data, H and W at least the artifact's
    patch size; `bands` names its bands, None says they are the artifact's. Patches stand on a grid
    of `stride` pixels that covers the image; none given: 1 where the encoder can be run over the
    image as a whole (`EncoderSpec.dense`), else 8. Pixels without data count as the mean of their
    band in the patches that hold them.

    `keep` is asked before so many bytes of features are kept, by whichever thread works; those that
    it has no room for are made anew for each query. None given: a gibibyte. `comparison` is that of
    the artifact where several images share one. What cannot be mapped is an `InputError`.
    """

    def __init__(
        self,
        artifact: Artifact,
        image: npt.NDArray[np.floating],
        *,
        stride: int | None = None,
        bands: Sequence[str] | None = None,
        keep: Callable[[int], bool] | None = None,
        comparison: Comparison | None = None,
    ) -> None:
        self._size = artifact.spec.patch_size
        _, rows, cols = artifact.spec.encoder.feature_shape
        self._positions = rows * cols
        stride = usual_stride(artifact) if stride is None else stride
        pixels = _checked(artifact, image, bands, stride)
        self.valid: npt.NDArray[np.bool_] = np.asarray(np.isfinite(pixels).all(0))
        self._pixels = torch.from_numpy(artifact.spec.normalisation(pixels))
        self._comparison = comparison or Comparison(artifact)
        self._tops, self._lefts = (
            _origins(extent, self._size, stride) for extent in self.valid.shape
        )
        self._whole = artifact.spec.encoder.dense and stride == 1
        self._pieces = self._strips() if self._whole else self._batches()
        self._keep = keep
        self._kept: dict[int, Places] = {}

    @property
    def places(self) -> int:
        """Patches that a query is compared with."""
        return len(self._tops) * len(self._lefts)

    def products(self, terms: Terms) -> int:
        """Hidden layers to work out for the score of one place and query: what it costs."""
        of_image = 1 + (1 if self._whole else self._positions)
        return of_image + (1 + self._positions if terms is Terms.ALL else 0)

    @property
    def nbytes(self) -> int:
        """Memory that the image and its features hold by now; not the comparison."""
        return self._pixels.nbytes + self.valid.nbytes + self._feature_bytes

    def maps(self, queries: Sequence[Pixel], *, terms: Terms = Terms.ALL) -> list[SimilarityMap]:
        """The map of each query pixel. Its patch is centred on it, or as near as the border allows.

        A query outside the image, or without data, is an `InputError`.
        """
        return self.joined(queries, list(self.scores(queries, terms=terms)))

    def mean_map(self, queries: Sequence[Pixel], *, terms: Terms = Terms.ALL) -> SimilarityMap:
        """The mean of the queries' maps: likeness to all of them, such as the pixels of a field."""
        return mean_of(self.maps(queries, terms=terms))

    def scores(self, queries: Sequence[Pixel], *, terms: Terms = Terms.ALL) -> Iterator[Tensor]:
        """What `maps` does, in steps of some 30,000 scores at most, for who has other work between
        them: `joined` makes the maps of what all steps give."""
        if not queries:
            raise InputError("name at least one query pixel")
        for query in queries:
            self._check_query(query)
        return self._steps([self._corner(query) for query in queries], terms)

    def _steps(self, corners: Sequence[Pixel], terms: Terms) -> Iterator[Tensor]:
        """Scores (query, place) of some queries and one piece: of all queries, then the next."""
        piece = _STRIP if self._whole else _PATCHES
        count = min(max(_STEP // min(piece, self.places), 1), _PATCHES)
        groups = [corners[at : at + count] for at in range(0, len(corners), count)]
        asked: list[Places] = []
        for at in range(len(self._pieces)):
            places = self._places(at)
            for index, group in enumerate(groups):
                if index == len(asked):
                    asked.append(self._patches(group))
                yield self._comparison.scores(asked[index], places, terms)

    def joined(self, queries: Sequence[Pixel], scores: Sequence[Tensor]) -> list[SimilarityMap]:
        """The maps of the queries whose `scores` these are."""
        middle, grid = self._size // 2, (len(self._tops), len(self._lefts))
        centres = np.asarray(self._tops) + middle, np.asarray(self._lefts) + middle
        groups = len(scores) // len(self._pieces)
        pieces = [torch.cat(list(scores[at : at + groups])) for at in range(0, len(scores), groups)]
        whole = torch.cat(pieces, 1).float().unflatten(1, grid).numpy()
        return [
            SimilarityMap(one, *centres, (query,), self.valid)
            for one, query in zip(whole, queries, strict=True)
        ]

    def _places(self, piece: int) -> Places:
        """All places of a piece of the grid, kept if there is room."""
        if piece in self._kept:
            return self._kept[piece]
        corners = self._pieces[piece]
        if isinstance(corners, slice):
            places = self._comparison.places(self._pixels[None, :, corners])
        else:
            places = self._patches(corners)
        if self._has_room(places.nbytes):
            self._kept[piece] = places
        return places

    def _has_room(self, count: int) -> bool:
        if self._keep is not None:
            return self._keep(count)
        return self._feature_bytes + count <= _USUAL_BYTES

    @property
    def _feature_bytes(self) -> int:
        # A copy, since another thread may add to it.
        return sum(places.nbytes for places in list(self._kept.values()))

    def _strips(self) -> list[slice | list[Pixel]]:
        """Rows of the image that hold the patches of a piece of the grid, where all are wanted."""
        height, width = self.valid.shape
        rows = max(1, _STRIP // width)
        last = height - self._size
        return [slice(top, min(top + rows - 1, last) + self._size) for top in self._tops[::rows]]

    def _batches(self) -> list[slice | list[Pixel]]:
        """Corners of patches, where each is encoded by itself."""
        corners = list(product(self._tops, self._lefts))
        return [corners[at : at + _PATCHES] for at in range(0, len(corners), _PATCHES)]

    def _patches(self, corners: Sequence[Pixel]) -> Places:
        size = self._size
        patches = [self._pixels[:, t : t + size, left : left + size] for t, left in corners]
        return self._comparison.places(torch.stack(patches))

    def _corner(self, query: Pixel) -> Pixel:
        height, width = self.valid.shape
        row, col = (pixel - self._size // 2 for pixel in query)
        return min(max(row, 0), height - self._size), min(max(col, 0), width - self._size)

    def _check_query(self, query: Pixel) -> None:
        (row, col), (height, width) = query, self.valid.shape
        if not (0 <= row < height and 0 <= col < width):
            raise InputError(
                f"the query pixel (row {row}, column {col}) lies outside the image of "
                f"{height} x {width} pixels"
            )
        if not self.valid[row, col]:
            raise InputError(
                f"the query pixel (row {row}, column {col}) has no data; choose another"
            )


def mean_of(maps: Sequence[SimilarityMap]) -> SimilarityMap:
    """The mean of maps of one image, as the map of all their queries."""
    scores = np.stack([one.scores for one in maps])
    mean = np.asarray(scores.mean(0, dtype=np.float64), np.float32)
    return replace(maps[0], scores=mean, queries=tuple(q for one in maps for q in one.queries))


def usual_stride(artifact: Artifact) -> int:
    """The stride of a map where none is asked for: 1 where the encoder runs over a whole image."""
    return 1 if artifact.spec.encoder.dense else _USUAL_STRIDE


def _checked(
    artifact: Artifact,
    image: npt.NDArray[np.floating],
    bands: Sequence[str] | None,
    stride: int,
) -> npt.NDArray[np.floating]:
    size = artifact.spec.patch_size
    if image.ndim != 3 or min(image.shape[1:]) < size:
        raise InputError(
            f"expected an image (band, H, W) of at least {size} x {size} pixels, got {image.shape}"
        )
    if stride < 1:
        raise InputError(f"the stride is a number of pixels, at least 1; got {stride}")
    pixels = select_bands(artifact.spec.bands, bands, image, axis=0)
    if np.isinf(pixels).any():
        raise InputError("reflectance is infinite somewhere; mark missing pixels as NaN")
    return pixels  # type: ignore[return-value]


def polygon_mask(
    corners: Sequence[tuple[float, float]], shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Which pixels of an image (H, W) have their centre in a polygon or on its line.

    A pixel's centre is its (row, column), and so are the corners; the last is joined to the first.
    Where the line crosses itself, the even-odd rule holds. No corner at all is an `InputError`.
    """
    if not len(corners):
        raise InputError("a polygon has at least one corner, a row and a column")
    height, width = shape
    crossings, on_line = np.zeros((height, width + 1), np.int64), np.zeros(shape, np.bool_)
    for (row, col), (next_row, next_col) in zip(corners, [*corners[1:], corners[0]], strict=True):
        low, high = sorted((row, next_row))
        rows = np.arange(max(math.ceil(low), 0), min(math.floor(high), height - 1) + 1)
        if low == high:
            left, right = sorted((col, next_col))
            on_line[rows, max(math.ceil(left), 0) : max(math.floor(right) + 1, 0)] = True
            continue
        at = col + (rows - row) * ((next_col - col) / (next_row - row))
        near = np.rint(at).astype(np.int64)
        hit = (np.abs(at - near) < 1e-9) & (near >= 0) & (near < width)
        on_line[rows[hit], near[hit]] = True
        # A corner belongs to the edge below it alone, or it would be crossed twice.
        once = rows < high
        beyond = np.clip(np.floor(at[once]) + 1, 0, width).astype(np.int64)
        np.add.at(crossings, (rows[once], beyond), 1)
    inside: npt.NDArray[np.bool_] = on_line | (crossings[:, :width].cumsum(1) % 2 == 1)
    return inside


def spread_over(area: npt.NDArray[np.bool_], count: int) -> list[Pixel]:
    """At most `count` of the pixels of `area` (H, W), spread evenly over it.

    Equal steps along a curve that fills the plane (Morton 1966): steps along rows would fall on one
    column where they are as long as a row.
    """
    inside = np.argwhere(area)
    if len(inside) > count:
        row, col = (_spaced(each) for each in inside.T)
        along = np.argsort(row << np.uint64(1) | col)
        middles = (np.arange(count) + 0.5) * (len(inside) / count)
        inside = inside[np.sort(along[middles.astype(int)])]
    return [(row, col) for row, col in inside.tolist()]


def _spaced(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """With a zero before each of their lowest 32 bits."""
    bits = values.astype(np.uint64)
    for shift in (16, 8, 4, 2, 1):
        kept = np.uint64(0xFFFFFFFFFFFFFFFF // ((1 << shift) + 1))
        bits = (bits | bits << np.uint64(shift)) & kept
    return bits


def _origins(extent: int, size: int, stride: int) -> list[int]:
    """First pixels of the patches on one axis: every `stride`, and one that ends at the border."""
    last = extent - size
    return sorted({*range(0, last + 1, stride), last})


def _bilinear(
    values: npt.NDArray[np.floating], at: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Linear interpolation along the first axis at fractional indices."""
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    part = (at - low)[:, None]
    between: npt.NDArray[np.floating] = values[low] * (1 - part) + values[high] * part
    return between
