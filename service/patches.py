"""Patches as the model takes them: those that were sent, or a grid of them over an image."""

from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from service.decode import Declared, Expected, Reflectance, decode_image, decode_patches
from service.errors import UnfitError
from service.schemas import Grid


class Patches(Protocol):
    """Patches (N, band, size, size), made where a slice is asked for."""

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Reflectance: ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What came: patches, how much of each has data, and the grid that they make, if any."""

    patches: Patches
    valid_fraction: list[float]
    grid: Grid | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.patches.nbytes

    def arranged(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One row a patch, as (rows, cols, ...) if the patches make a grid."""
        if self.grid is None:
            return rows
        return rows.reshape(len(self.grid.rows), len(self.grid.cols), -1)


def see_patches(body: bytes, media_type: str, declared: Declared, expected: Expected) -> Seen:
    """The patches of a body; its faults are those of `decode_patches`."""
    return seen_patches(decode_patches(body, media_type, declared, expected))


def seen_patches(patches: Reflectance) -> Seen:
    """Patches (N, band, size, size) as they came."""
    fractions = np.isfinite(patches).all(axis=1).mean(axis=(1, 2))
    return Seen(patches, fractions.tolist())


def see_grid(
    body: bytes, media_type: str, declared: Declared, expected: Expected, *, stride: int, most: int
) -> Seen:
    """Patches of an image in steps of `stride` pixels, the last ones at its border.

    More than `most` are an `UnfitError`; other faults are those of `decode_image`.
    """
    image = decode_image(body, media_type, declared, expected)
    size = expected.patch_size
    tops, lefts = (
        np.unique(np.append(np.arange(0, extent - size, stride), extent - size))
        for extent in image.shape[1:]
    )
    if len(tops) * len(lefts) > most:
        raise UnfitError(
            f"a grid may have {most} patches, stride {stride} makes {len(tops) * len(lefts)}; take "
            "a larger stride or a smaller image"
        )
    windows = _Windows(image, size, tops, lefts)
    centres = Grid(rows=(tops + size // 2).tolist(), cols=(lefts + size // 2).tolist())
    return Seen(windows, windows.valid_fraction(), centres)


@final
class _Windows:
    """Overlapping patches of one image, which would take many times its memory if all were cut."""

    def __init__(
        self,
        image: Reflectance,
        size: int,
        tops: npt.NDArray[np.int64],
        lefts: npt.NDArray[np.int64],
    ) -> None:
        self._image = image
        self._size = size
        self._corners = [(top, left) for top in tops.tolist() for left in lefts.tolist()]

    @property
    def nbytes(self) -> int:
        return self._image.nbytes

    def __len__(self) -> int:
        return len(self._corners)

    def __getitem__(self, part: slice) -> Reflectance:
        return np.stack([self._cut(self._image, corner) for corner in self._corners[part]])

    def valid_fraction(self) -> list[float]:
        """Part of the pixels of each patch with data in every band."""
        valid = np.asarray(np.isfinite(self._image).all(axis=0))
        return [float(self._cut(valid, corner).mean()) for corner in self._corners]

    def _cut(self, image: npt.NDArray[Any], corner: tuple[int, int]) -> npt.NDArray[Any]:
        top, left = corner
        return image[..., top : top + self._size, left : left + self._size]
