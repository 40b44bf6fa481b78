"""What training and probing ask of a data set: batches of pairs by step, and labelled patches."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mimodel.normalisation import Normalisation

Domain = Literal["x", "y"]
"""Of the first or of the second image of a pair, where these are of two kinds."""
DOMAINS: tuple[Domain, ...] = ("x", "y")


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Two images of each of some places, normalised; row i of x and of y show the same place."""

    x: Float[Tensor, "batch band row col"]
    y: Float[Tensor, "batch band row col"]


class PairSource(Protocol):
    """A data set of pairs.

    `batch` is a function of the step alone (and of the seed the source was made with): a resumed
    run sees the very batches that an uninterrupted one would have seen. Of these `size` pairs it
    makes those that `rows` names: each of several processes needs its own.
    """

    @property
    def normalisation(self) -> Normalisation: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def description(self) -> dict[str, str]:
        """What the pairs are, for the artifact's provenance."""
        ...

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch: ...


ORIENTATIONS = 8
"""Turns by a right angle and their mirror images."""


def turned(
    images: Float[Tensor, "batch band row row"], turns: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch band row row"]:
    """Each image in the orientation that its entry of `turns`, 0 (as it is) to 7, names."""
    out = torch.empty_like(images)
    for turn in range(ORIENTATIONS):
        chosen = turns == turn
        part = torch.rot90(images[chosen], turn % 4, (2, 3))
        out[chosen] = part.flip(3) if turn >= 4 else part
    return out


def prefetched(
    source: PairSource, steps: range, size: int, rows: slice = slice(None), *, readers: int = 1
) -> Iterator[PairBatch]:
    """The batches of `steps` in order, made by `readers` threads while earlier ones are used.

    Each is a function of its step, so the number of readers changes nothing. At most `readers`
    batches wait or are being made beside the one in use.
    """
    with ThreadPoolExecutor(max_workers=readers, thread_name_prefix="pairs") as pool:
        upcoming: deque[Future[PairBatch]] = deque()
        try:
            for step in steps:
                ahead = range(step + len(upcoming), min(step + readers + 1, steps.stop))
                upcoming += [pool.submit(source.batch, each, size, rows) for each in ahead]
                yield upcoming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class LabelledPatches:
    """Patches with a class each, and the place that repeated looks at the same ground share."""

    reflectance: npt.NDArray[np.float32]
    """(sample, band, row, col), NaN where there is no data."""
    label: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    date: npt.NDArray[np.int64]
    split: npt.NDArray[np.str_]
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one domain with all factors that made them, for the benchmarks where truth is
    known."""

    images: npt.NDArray[np.float32]
    """(sample, band, row, col), as an artifact reads them."""
    factors: Mapping[str, npt.NDArray[np.int64]]
    shared: tuple[str, ...]
    """The factors that the two images of a pair have in common; the others are their own."""
    split: npt.NDArray[np.str_]
    classifier_width: int = 32
    """C of the classifier of Table 7; the supplement has 64 for IAM."""
    digest: str = ""
    """As the `data_digest` of the pairs that come from the same data and split."""
    group: npt.NDArray[np.int64] | None = None
    """Images that are not independent have one number; none given: all are."""
