"""Shifts that were made, and images that have none to tell."""

import numpy as np
import numpy.typing as npt
import pytest

from s2pairs.bands import STORED_SATURATED
from s2pairs.quality import measure


def ground(seed: int, size: int = 160) -> npt.NDArray[np.complex128]:
    """Fourier coefficients of a made ground: power falls with frequency, as it does outdoors."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(draw.normal(size=(size, size))) / frequency**1.2
    spectrum[0, 0] = 0
    return np.asarray(spectrum)


def seen(
    spectrum: npt.NDArray[np.complex128], dy: float = 0.0, dx: float = 0.0
) -> npt.NDArray[np.float64]:
    """64 x 64 pixels out of the ground, which lies (dy, dx) further south and east: exactly."""
    size = len(spectrum)
    down, across = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]
    moved = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (down * dy + across * dx))).real
    return np.asarray(moved[48:112, 48:112] / moved.std())


def phase_shift(reference: npt.ArrayLike, moved: npt.ArrayLike) -> tuple[float, float]:
    """What is measured of the second image (y, x) against the first."""
    images = np.stack([np.asarray(each) for each in (reference, moved)])
    pixels = np.rint(5000 + 300 * images).astype(np.uint16)[None, :, None]
    found = measure(pixels, np.ones((1, 2, 64, 64), dtype=bool))
    return float(found.dy[0, 1]), float(found.dx[0, 1])


@pytest.mark.parametrize(
    ("dy", "dx"), [(0, 0), (1, -2), (0.25, 0), (-0.5, 0.5), (0.13, -0.37), (3.4, 5.8), (-9.6, 2.1)]
)
def test_a_made_shift_is_found_below_a_pixel(dy: float, dx: float) -> None:
    for seed in range(3):
        spectrum = ground(seed)
        found = phase_shift(seen(spectrum), seen(spectrum, dy, dx))
        np.testing.assert_allclose(found, (dy, dx), atol=0.06)


def test_brightness_noise_and_what_changed_do_not_move_it() -> None:
    spectrum, draw = ground(1), np.random.default_rng(2)
    other = 0.4 * seen(spectrum, 0.6, -0.3) + 3 + draw.normal(0, 0.1, (64, 64))
    other[10:26, 30:46] = other.mean()  # a field was cut
    np.testing.assert_allclose(phase_shift(seen(spectrum), other), (0.6, -0.3), atol=0.1)


def test_what_has_no_shift_says_so() -> None:
    assert np.isnan(phase_shift(seen(ground(1)), seen(ground(2)))).all()  # another place
    assert np.isnan(phase_shift(seen(ground(1)), np.ones((64, 64)))).all()  # nothing to see
    noise = np.random.default_rng(0).normal(size=(2, 64, 64))
    assert np.isnan(phase_shift(*noise)).all()


def looks() -> npt.NDArray[np.uint16]:
    """Stored values (1, 5, 2, 64, 64): clouded, as it is, shifted, half empty, empty."""
    spectrum = ground(3)
    images = np.stack([seen(spectrum), seen(spectrum), seen(spectrum, 1.5, -0.75)])
    values = (3000 + 300 * images[[2, 0, 2, 1, 1], None]).astype(np.uint16)
    pixels = np.repeat(values, 2, axis=1)[None]
    pixels[0, 3, 1, :40] = 0
    pixels[0, 4] = 0
    return pixels


def test_the_first_clear_date_is_the_one_to_compare_with() -> None:
    clear = np.ones((1, 5, 64, 64), dtype=bool)
    clear[0, 0, :20] = False
    found = measure(looks(), clear)
    assert found.dy[0, 1] == found.dx[0, 1] == 0
    np.testing.assert_allclose((found.dy[0, 2], found.dx[0, 2]), (1.5, -0.75), atol=0.06)
    assert np.isnan(found.dy[0, [0, 3, 4]]).all()
    assert np.isnan(measure(np.zeros_like(looks()), clear).dx).all()


def test_saturated_and_dark_pixels_are_counted_among_those_with_data() -> None:
    pixels = looks()
    pixels[0, 1, 0, :16] = STORED_SATURATED  # in one band
    pixels[0, 3, :, 40:52] = 1400  # reflectance 0.04 in both; 24 rows have data
    pixels[0, 3, 0, 46:52] = 1600  # 0.06 in one
    found = measure(pixels, np.ones((1, 5, 64, 64), dtype=bool))
    np.testing.assert_array_equal(found.saturated_fraction[0, :4], [0, 0.25, 0, 0])
    np.testing.assert_array_equal(found.dark_fraction[0, :4], [0, 0, 0, 0.25])
    assert np.isnan([found.saturated_fraction[0, 4], found.dark_fraction[0, 4]]).all()


def test_what_processors_differ_by_does_not_reach_the_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Fourier transform whose last bits are other ones, as of another library or processor."""
    import scipy.fft

    spectrum = ground(5)
    moves = np.random.default_rng(6).uniform(-2, 2, (40, 2))
    images = [seen(spectrum), *(seen(spectrum, dy, dx) for dy, dx in moves)]
    pixels = np.rint(3000 + 300 * np.stack(images)).astype(np.uint16)[None, :, None]
    clear = np.ones((1, len(images), 64, 64), dtype=bool)
    here = measure(pixels, clear)
    usual, draw = scipy.fft.rfft2, np.random.default_rng(7)

    def otherwise(values: npt.NDArray[np.floating]) -> npt.NDArray[np.complexfloating]:
        found = usual(values)
        eps = np.finfo(found.dtype).eps
        return np.asarray(found * (1 + 4 * eps * draw.uniform(-1, 1, found.shape)), found.dtype)

    monkeypatch.setattr(scipy.fft, "rfft2", otherwise)
    there = measure(pixels, clear)
    assert np.isfinite(here.dy).all()
    assert (here.dy.tobytes(), here.dx.tobytes()) == (there.dy.tobytes(), there.dx.tobytes())
