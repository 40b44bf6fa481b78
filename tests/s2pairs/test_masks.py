"""Flags of pixels: by definition, by brute force, and the band test on real scenes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s2pairs import masks
from s2pairs.masks import complete, estimated, from_cloud_classes, from_scene_classes, is_clear

# The classes of Sen2Cor, with what each says here.
SCENE_CLASSES = {
    "no data": masks.NO_DATA,
    "saturated or defective": masks.SATURATED,
    "dark area": 0,
    "cloud shadow": masks.SHADOW,
    "vegetation": 0,
    "not vegetated": 0,
    "water": 0,
    "unclassified": 0,
    "cloud, medium probability": masks.CLOUD,
    "cloud, high probability": masks.CLOUD,
    "thin cirrus": masks.CIRRUS,
    "snow or ice": masks.SNOW,
}


def test_each_scene_class_has_its_flag() -> None:
    every = np.arange(256, dtype=np.uint8)
    expected = [*SCENE_CLASSES.values(), *(256 - len(SCENE_CLASSES)) * [0]]
    assert from_scene_classes(every).tolist() == expected


def test_layers_of_clouds_add_up() -> None:
    layers = np.array([[0, 1, 0, 0, 1, 255], [0, 0, 1, 0, 1, 0], [0, 0, 0, 7, 1, 0]])
    assert from_cloud_classes(*layers).tolist() == [0, 4, 8, 32, 44, 4]


def test_clear_is_data_without_cloud_cirrus_or_shadow() -> None:
    every = np.arange(256, dtype=np.uint8)
    bad = {0, 2, 3, 4}  # the bits, by their meanings
    assert [masks.MEANINGS[bit] for bit in sorted(bad)] == [
        *("no_data", "cloud", "thin_cirrus", "cloud_shadow")
    ]
    assert is_clear(every).tolist() == [
        not any(value >> bit & 1 for bit in bad) for value in range(256)
    ]


@settings(deadline=None, max_examples=30)
@given(
    stored=hnp.arrays(np.uint16, (2, 3, 4, 4), elements=st.sampled_from([0, 1, 2000, 65535])),
    known=hnp.arrays(np.uint8, (2, 4, 4)),
)
def test_the_pixels_say_what_has_data_and_the_source_the_rest(
    stored: np.ndarray, known: np.ndarray
) -> None:
    before = known.copy()
    flags = complete(known, stored, ("B04", "B03", "B08"))
    for patch, row, col in np.ndindex(2, 4, 4):
        values = stored[patch, :, row, col]
        expected = int(known[patch, row, col]) & ~masks.NO_DATA
        expected |= masks.NO_DATA * bool((values == 0).any())
        expected |= masks.SATURATED * bool((values == 65535).any())
        assert flags[patch, row, col] == expected
    np.testing.assert_array_equal(known, before)


# Reflectances at the top of the atmosphere: B02, B03, B04, B08, B11.
SPECTRA = {
    "thick cloud": ((0.62, 0.60, 0.61, 0.64, 0.45), masks.CLOUD),
    "cloud over land": ((0.31, 0.29, 0.28, 0.40, 0.33), masks.CLOUD),
    "snow": ((0.80, 0.78, 0.76, 0.70, 0.08), masks.SNOW),
    "forest": ((0.09, 0.07, 0.045, 0.28, 0.12), 0),
    "water": ((0.10, 0.07, 0.045, 0.02, 0.01), 0),
    "bare soil": ((0.13, 0.14, 0.18, 0.26, 0.32), 0),
    "bright desert": ((0.20, 0.26, 0.36, 0.45, 0.52), 0),
    "hazy crop": ((0.14, 0.12, 0.09, 0.35, 0.18), 0),
}
FIVE = ("B02", "B03", "B04", "B08", "B11")


@pytest.mark.parametrize("name", SPECTRA)
def test_the_band_test_on_known_spectra(name: str) -> None:
    reflectance, expected = SPECTRA[name]
    stored = np.round((np.array(reflectance) + 0.1) * 10_000).astype(np.uint16)[:, None, None]
    assert estimated(stored, FIVE).tolist() == [[expected | masks.ESTIMATED]]
    order = [3, 2, 0, 1]  # without B11, and in another order: snow cannot be told from cloud
    flags = estimated(stored[order], [FIVE[index] for index in order])
    bright = masks.CLOUD if expected == masks.SNOW else expected
    assert flags.tolist() == [[bright | masks.ESTIMATED]]


def test_without_blue_and_red_nothing_is_known_and_so_it_is_said() -> None:
    stored = np.full((3, 2, 8, 8), 9000, dtype=np.uint16)
    flags = estimated(stored, ("B8A", "B02"))
    assert flags.shape == (3, 8, 8)
    assert set(flags.ravel().tolist()) == {masks.UNKNOWN}
    assert is_clear(flags).all()


@pytest.mark.realdata
def test_the_band_test_against_scene_classes_of_real_scenes(crossmi_data: Path) -> None:
    """118 and 72 real dates with the provider's classes: how much cloud is found, and what else."""
    h5py = pytest.importorskip("h5py")
    folder = crossmi_data / "s2" / "worldcereal_timeseries"
    found = missed = wrong = clear = 0
    for path in sorted(folder.glob("S2_L2A_10m_*.nc")):
        with h5py.File(path) as fine, h5py.File(str(path).replace("_10m_", "_20m_")) as coarse:
            assert (fine["timestamp"][...] == coarse["timestamp"][...]).all()
            dn = np.stack([fine[name][...] for name in ("B02", "B03", "B04", "B08")], axis=1)
            classes = coarse["SCL"][...]
        stored = np.where(dn == 0, 0, np.clip(dn.astype(int) + 1000, 1, 65534)).astype(np.uint16)
        truth = from_scene_classes(classes).repeat(2, axis=1).repeat(2, axis=2)
        guess = complete(None, stored, ("B02", "B03", "B04", "B08"))
        seen = ((truth | guess) & masks.NO_DATA) == 0
        cloud, guessed = (truth & masks.CLOUD) > 0, (guess & masks.CLOUD) > 0
        found += int((cloud & guessed & seen).sum())
        missed += int((cloud & ~guessed & seen).sum())
        wrong += int((is_clear(truth) & guessed & seen).sum())
        clear += int((is_clear(truth) & seen).sum())
    print(f"found {found / (found + missed):.1%} of clouds, {wrong / clear:.2%} of clear wrong")
    assert found / (found + missed) > 0.8
    assert wrong / clear < 0.05
