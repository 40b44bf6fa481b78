"""What can be told of a look from its pixels: its shift against another date, saturation, darkness.

The shift is measured by phase correlation (Kuglin and Hines 1975) on the mean of the bands, refined
below a pixel by evaluating the Fourier sum between the pixels (Guizar-Sicairos et al. 2008).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2pairs.bands import OFFSET, SCALE, STORED_NO_DATA, STORED_SATURATED

SHIFT_LIMIT_PX = 0.5
"""A look that is shifted further than this, in pixels of 10 m, is flagged."""
DARK_REFLECTANCE = 0.05
_USABLE = 0.9  # part of the pixels that must count for a shift to be measured
_LEAST_PEAK = 0.3  # of a correlation that is 1 for equal images and below 0.2 for unrelated ones
_LOW_PASS = 0.2  # cycles a pixel; above, noise and what moved differ more than the ground
_STEP = 0.1  # of the grid that the Fourier sum is evaluated on, pixels
_REACH = 11  # steps to each side of the highest whole pixel

_UNIT = 1 / 1024  # pixels; far coarser than what processors and libraries differ by in float64
_TOGETHER = 256  # looks whose spectra are in memory at a time: 34 kB each, a few times

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Spectra = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Quality:
    """Measures of looks (patch, date), each float32."""

    dy: Floats
    """How far south the ground lies compared with the first usable date, in pixels; NaN where no
    shift can be told: too few pixels, no texture, or a date that looks like another place."""
    dx: Floats
    """How far east."""
    saturated_fraction: Floats
    """Of the pixels with data, those with a saturated band; NaN without data."""
    dark_fraction: Floats
    """Of the pixels with data, those whose brightest band is below 0.05: deep shadow, low sun."""


def measure(pixels: npt.NDArray[np.uint16], clear: npt.NDArray[np.bool_]) -> Quality:
    """Quality of stored values (patch, date, band, y, x).

    `clear` (patch, date, y, x) says which pixels have data and no known cloud; the others do not
    count for the shift.
    """
    data = (pixels != STORED_NO_DATA).all(axis=2)
    dark = pixels.max(axis=2) < round((DARK_REFLECTANCE - OFFSET) / SCALE)
    shift = np.empty((*data.shape[:2], 2), dtype=np.float32)
    some = max(1, _TOGETHER // max(1, data.shape[1]))
    for first in range(0, len(pixels), some):
        part = slice(first, first + some)
        images = pixels[part].mean(axis=2, dtype=np.float64)
        shift[part] = _shifts_against_first(images, clear[part] & data[part])
    return Quality(
        dy=shift[..., 0],
        dx=shift[..., 1],
        saturated_fraction=_share((pixels == STORED_SATURATED).any(axis=2), data),
        dark_fraction=_share(dark, data),
    )


def _share(these: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Floats:
    """Part of the pixels `among` that are `these`, by look; NaN where there are none."""
    count = among.sum(axis=(2, 3))
    with np.errstate(invalid="ignore"):
        return np.asarray((these & among).sum(axis=(2, 3)) / count, dtype=np.float32)


def _shifts_against_first(images: Doubles, clear: npt.NDArray[np.bool_]) -> Doubles:
    """dy and dx (patch, date, 2) against the first date of each patch that is usable.

    To a 1024th of a pixel, so that the same pixels give the same numbers on another processor.
    """
    usable = clear.mean(axis=(2, 3)) >= _USABLE
    shifts = np.full((*usable.shape, 2), np.nan)
    if not usable.any():
        return shifts
    first = usable.argmax(axis=1)
    patch, date = np.nonzero(usable)
    spectra = _spectra(images[patch, date], clear[patch, date])
    row_of = np.full(usable.shape, -1)
    row_of[patch, date] = np.arange(len(patch))
    shifts[patch, date] = _between(spectra[row_of[patch, first[patch]]], spectra)
    return np.asarray(np.rint(shifts / _UNIT) * _UNIT + 0.0)  # no negative zero


def _spectra(images: Doubles, counts: npt.NDArray[np.bool_]) -> Spectra:
    """Fourier transforms (n, y, x // 2 + 1) of images without their mean, faded to the edges."""
    from scipy.fft import rfft2

    number = np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1)
    mean = np.where(counts, images, 0).sum(axis=(1, 2), keepdims=True) / number
    # pixels that do not count take the mean, so that they have no edge of their own
    level = np.where(counts, images - mean, 0)
    fade = np.outer(np.hanning(images.shape[1]), np.hanning(images.shape[2]))
    return np.asarray(rfft2(level * fade), dtype=np.complex128)


def _between(reference: Spectra, moved: Spectra) -> Doubles:
    """Shift (n, 2) of each spectrum of `moved` against its row of `reference`."""
    side = moved.shape[1]
    cross = moved * reference.conj()
    size = np.abs(cross)
    textured = size.sum(axis=(1, 2)) > 0
    weight = _weights(side)
    np.divide(cross, size, out=cross, where=size > 0)  # where the size is 0, so is the value
    cross *= weight
    whole = _highest_pixel(cross, side)
    shift, peak = _refined(cross, whole, side)
    peak /= _both_halves(weight).sum()
    told = textured & (peak >= _LEAST_PEAK) & (np.abs(shift).max(axis=1) <= side / 4)
    return np.asarray(np.where(told[:, None], shift, np.nan))


def _weights(side: int) -> Doubles:
    down, across = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    weight = np.exp(-(down**2 + across**2) / (2 * _LOW_PASS**2))
    weight[0, 0] = 0
    return np.asarray(weight)


def _both_halves(half: Doubles) -> Doubles:
    """The weight of a half spectrum in a sum over the whole one: inner columns count twice."""
    counted = half.copy()
    counted[..., 1:-1] *= 2
    return counted


def _highest_pixel(cross: Spectra, side: int) -> npt.NDArray[np.intp]:
    """(n, 2) whole-pixel shift with the highest correlation, from -side/2 on."""
    from scipy.fft import irfft2

    correlation = irfft2(cross, s=(side, side)).reshape(len(cross), -1)
    peak = np.stack(np.unravel_index(correlation.argmax(axis=1), (side, side)), axis=1)
    return np.asarray((peak + side // 2) % side - side // 2, dtype=np.intp)


def _refined(cross: Spectra, whole: npt.NDArray[np.intp], side: int) -> tuple[Doubles, Doubles]:
    """Shift (n, 2) and its correlation (n,), from the Fourier sum on a fine grid about `whole`."""
    steps = np.arange(-_REACH, _REACH + 1) * _STEP
    at = whole[:, :, None] + steps
    down = np.exp(2j * np.pi * at[:, 0, :, None] * np.fft.fftfreq(side))
    across = np.exp(2j * np.pi * at[:, 1, :, None] * np.fft.rfftfreq(side))
    across[..., 1:-1] *= 2
    fine = (down @ cross @ across.transpose(0, 2, 1)).real
    row, col = np.unravel_index(fine.reshape(len(fine), -1).argmax(axis=1), fine.shape[1:])
    # keep a neighbour on each side for the parabola
    row, col = (np.clip(each, 1, len(steps) - 2) for each in (row, col))
    number = np.arange(len(fine))
    best = fine[number, row, col]
    dy = _vertex(fine[number, row - 1, col], best, fine[number, row + 1, col])
    dx = _vertex(fine[number, row, col - 1], best, fine[number, row, col + 1])
    shift = np.stack([at[number, 0, row] + dy * _STEP, at[number, 1, col] + dx * _STEP], axis=1)
    return shift, best


def _vertex(before: Doubles, here: Doubles, after: Doubles) -> Doubles:
    """Where a parabola through three points one step apart is highest, in steps from the middle."""
    bend = before - 2 * here + after
    offset = np.divide(before - after, 2 * bend, out=np.zeros_like(here), where=bend < 0)
    return np.asarray(np.clip(offset, -1, 1))
