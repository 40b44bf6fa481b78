"""A picture of a few patches, their dates side by side."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube
from s2pairs.errors import S2PairsError

_TRUE_COLOUR = ("B04", "B03", "B02")
_NO_DATA_GREY = 0.5


def draw_dates(cube: Cube, out: Path, *, count: int, seed: int) -> int:
    """Draw up to `count` patches, one a row, all dates in order; returns how many.

    True colour if the cube has red, green and blue, else its first band in grey. Each patch is
    stretched between the 2nd and 98th percentile of all its dates, so that dates compare.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw = np.random.default_rng(seed)
    places = np.sort(draw.permutation(len(cube))[:count])
    figure = Figure(figsize=(1.3 * cube.dates + 0.4, 1.6 * len(places)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(places), cube.dates, squeeze=False)
    for row, place in zip(axes, places, strict=True):
        for axis, image, day in zip(
            row, _colours(cube, int(place)), cube.acquired[place], strict=True
        ):
            axis.imshow(image)
            axis.set_title(str(day.astype("datetime64[D]")), fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{cube.tile[place]}\n{cube.row[place]}, {cube.col[place]}", fontsize=7)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise S2PairsError(f"cannot write {out}: {error}") from error
    return len(places)


def _colours(cube: Cube, place: int) -> npt.NDArray[np.float64]:
    """(date, 64, 64, 3) between 0 and 1."""
    names = _TRUE_COLOUR if set(_TRUE_COLOUR) <= set(cube.bands) else (cube.bands[0],) * 3
    chosen = [cube.bands.index(name) for name in names]
    reflectance = reflectance_from_stored(cube.read([place])[0][:, chosen]).astype(np.float64)
    if np.isnan(reflectance).all():
        return np.full((cube.dates, *reflectance.shape[2:], 3), _NO_DATA_GREY)
    low, high = np.nanpercentile(reflectance, (2, 98))
    stretched = np.clip((reflectance - low) / max(high - low, 1e-6), 0, 1)
    return np.moveaxis(np.nan_to_num(stretched, nan=_NO_DATA_GREY), 1, -1)
