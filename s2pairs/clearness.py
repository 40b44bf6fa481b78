"""How clear a scene is in each region, before any date is chosen."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from s2pairs.bands import stored_from_dn
from s2pairs.masks import Flags, complete, is_clear
from s2pairs.patches import Region
from s2pairs.scenes import Catalogue, PixelWindow, Scene

_TOGETHER = 64  # regions of 512 pixels: 17 MB of flags


def clear_shares(
    catalogue: Catalogue, scene: Scene, regions: Sequence[Region], bands: Sequence[str]
) -> list[float]:
    """The part of each region that the scene sees without cloud or shadow, 0 to 1.

    From the product's masks, which also know where no detector looked. Where it has none, from
    the bands by `masks.estimated`, which costs as much reading as the build itself.
    """
    shares: list[float] = []
    for first in range(0, len(regions), _TOGETHER):
        some = regions[first : first + _TOGETHER]
        windows = [PixelWindow(each.row, each.col, each.size, each.size) for each in some]
        flags = catalogue.masks(scene, windows)
        if flags is None:
            flags = _flags_of_pixels(catalogue, scene, windows, bands)
        shares += [float(is_clear(each).mean()) for each in flags]
    return shares


def _flags_of_pixels(
    catalogue: Catalogue, scene: Scene, windows: Sequence[PixelWindow], bands: Sequence[str]
) -> list[Flags]:
    layers = [_stored(catalogue, scene, band, windows) for band in bands]
    return [complete(None, np.stack(each), bands) for each in zip(*layers, strict=True)]


def _stored(
    catalogue: Catalogue, scene: Scene, band: str, windows: Sequence[PixelWindow]
) -> list[npt.NDArray[np.uint16]]:
    read = catalogue.read(scene, band, windows)
    return [stored_from_dn(dn, scene.add_offset[band], scene.quantification) for dn in read]
