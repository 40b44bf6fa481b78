"""What a user wants to know of a cube, in a few lines."""

import numpy as np
import numpy.typing as npt

from s2pairs.cube import Cube
from s2pairs.ledger import shard_key
from s2pairs.patches import PATCH_PX, SPLITS
from s2pairs.quality import SHIFT_LIMIT_PX


def describe(cube: Cube) -> dict[str, str]:
    """Lines of name and text."""
    days = cube.acquired.astype("datetime64[D]")
    valid, clear = cube.valid_fraction, cube.clear_fraction
    names, counts = np.unique(cube.tile, return_counts=True)
    return {
        "patches": f"{len(cube)} of {PATCH_PX} x {PATCH_PX} pixels of 10 m",
        "tiles": ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True)),
        "splits": ", ".join(f"{name} {(cube.split == name).sum()}" for name in SPLITS),
        "dates": f"{cube.dates} a patch, {days.min()} to {days.max()}",
        "bands": ", ".join(cube.bands),
        "level": str(cube.attributes["level"]),
        "valid pixels": f"{valid.mean():.1%} on average; {(valid < 1).mean():.1%} of the "
        f"images have some no-data, {(valid == 0).mean():.1%} nothing else",
        "clear pixels": f"{clear.mean():.1%} on average, as far as the source knows; "
        f"{(clear < 0.5).mean():.1%} of the images are clear in less than half",
        "shifts": _shifts(cube),
        "saturated, dark": _extremes(cube),
        "products": f"{len(cube.attributes['products'])} used, "
        f"{len(cube.attributes['products_left_out'])} left out",
        "on disk": _sizes(cube),
        "digest": cube.digest,
    }


def _shifts(cube: Cube) -> str:
    """Against the first clear date, whose own shift is 0 and does not count."""
    others = np.where(_is_reference(cube.shift), np.nan, cube.shift)
    told = others[~np.isnan(others)]
    if not len(told):
        return "none could be told"
    over = others > SHIFT_LIMIT_PX
    worst = f"; most in patch {np.nanargmax(others) // cube.dates}" if over.any() else ""
    return (
        f"{np.median(told):.2f} pixels in the middle, 95 % below {np.quantile(told, 0.95):.2f}; "
        f"over {SHIFT_LIMIT_PX} in {over.sum()} images of {over.any(axis=1).sum()} patches{worst}; "
        f"not to be told in {np.isnan(cube.shift).mean():.1%} of the images"
    )


def _is_reference(shift: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The date of each patch that the others are compared with: the first that has a shift."""
    first = (~np.isnan(shift)).argmax(axis=1)
    reference: npt.NDArray[np.bool_] = np.arange(shift.shape[1]) == first[:, None]
    return reference


def _extremes(cube: Cube) -> str:
    saturated, dark = (
        np.nan_to_num(cube.measures[f"{name}_fraction"]) for name in ("saturated", "dark")
    )
    return (
        f"{saturated.mean():.2%} and {dark.mean():.2%} of the pixels; over a tenth of it in "
        f"{(saturated > 0.1).mean():.1%} and {(dark > 0.1).mean():.1%} of the images"
    )


def _sizes(cube: Cube) -> str:
    sizes = cube.store.sizes()
    pixels = sum(sizes[shard_key(shard)] for shard in range(cube.shards))
    raw = len(cube) * cube.dates * cube.layout.chunk_bytes
    return (
        f"{sum(sizes.values()) / 1e6:.1f} MB in {cube.shards} shards; pixels compressed "
        f"{raw / pixels:.2f} times"
    )
