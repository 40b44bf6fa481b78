"""The EuroSAT adapter against genuine multispectral originals and against its own promises."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from mimodel.data.eurosat import BANDS, CLASSES, EuroSatPairs, labelled_eurosat, read_eurosat
from mimodel.errors import DataError
from tests.mimodel.archives import write_archive

ALL_IMAGES = "eurosat_rgb/eurosat_rgb_13500.tar"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("eurosat") / "images.tar")


def _pairs(archive: Path, **changes: float) -> EuroSatPairs:
    still = {"gain": 1.0, "band_gain": 1.0, "haze": 0.0, "shift": 0, **changes}
    return EuroSatPairs(archive, seed=0, **still)  # type: ignore[arg-type]


@pytest.mark.realdata
def test_reflectance_is_that_of_the_multispectral_originals(
    crossmi_data: Path, tmp_path: Path
) -> None:
    originals = sorted((crossmi_data / "eurosat_ms_samples").glob("*.tif"))
    few = tmp_path / "few.tar"
    with tarfile.open(crossmi_data / ALL_IMAGES) as images, tarfile.open(few, "w") as chosen:
        for member in images:
            if member.isdir() or Path(member.name).stem in {file.stem for file in originals}:
                chosen.addfile(member, images.extractfile(member))
    data = read_eurosat(few)
    checked = 0
    for file in originals:
        name, number = file.stem.split("_")
        found = (data.label == CLASSES.index(name)) & (data.number == int(number))
        if not found.any():
            continue
        with rasterio.open(file) as original:
            truth = original.read([4, 3, 2]) * 1e-4
        # JPEG loses a little; 0.275 / 255 is one grey level.
        error = np.abs(data.reflectance[found][0] - np.clip(truth, 0, 0.275))
        assert error.mean() < 0.004
        checked += 1
    assert checked >= 2


@pytest.mark.slow
@pytest.mark.realdata
def test_all_the_images_are_read(crossmi_data: Path) -> None:
    assert len(read_eurosat(crossmi_data / ALL_IMAGES).label) == 13_500


@pytest.mark.slow
def test_classes_are_those_of_torchgeo() -> None:
    from torchgeo.datasets import EuroSAT

    ours = ("Highway", "Industrial", "River", "SeaLake")
    assert set(ours) < set(CLASSES)
    assert EuroSAT.rgb_bands == BANDS
    assert EuroSAT.all_band_names[-1] == "B8A"


def test_splits_are_by_blocks_of_file_numbers(archive: Path) -> None:
    data = labelled_eurosat(archive)
    assert data.reflectance.shape == (90, 3, 64, 64)
    test, train = (set(data.place[data.split == name].tolist()) for name in ("test", "train"))
    assert test
    assert not test & train
    assert abs((data.split == "test").mean() - 1 / 5) < 0.1


def test_without_changes_two_acquisitions_differ_by_orientation_and_noise_alone(
    archive: Path,
) -> None:
    source = _pairs(archive)
    batch = source.batch(0, 16)
    std = np.array(source.normalisation.std)[:, None, None]
    for x, y in zip(batch.x.numpy() * std, batch.y.numpy() * std, strict=True):
        turned = [np.rot90(flip, k, (1, 2)) for flip in (x, x[:, :, ::-1]) for k in range(4)]
        assert min(np.abs(t - y).mean() for t in turned) < 0.004  # noise of 0.002 on either side


def test_illumination_scales_all_bands_alike(archive: Path) -> None:
    source = _pairs(archive, gain=1.3)
    batch = source.batch(0, 32)
    mean, std = (
        np.array(v)[:, None, None] for v in (source.normalisation.mean, source.normalisation.std)
    )
    x, y = (side.numpy() * std + mean for side in (batch.x, batch.y))
    ratio = y.mean((2, 3)) / x.mean((2, 3))
    assert np.ptp(ratio, axis=1).max() < 0.05
    assert 1 / 1.3**2 - 0.02 < ratio.min() < 0.8
    assert 1.2 < ratio.max() < 1.3**2 + 0.02


def test_a_batch_is_a_function_of_seed_and_step(archive: Path) -> None:
    options = {"gain": 1.3, "band_gain": 1.1, "haze": 0.05, "shift": 8}
    first, again = (_pairs(archive, **options).batch(7, 8) for _ in range(2))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.y, again.y)
    part = _pairs(archive, **options).batch(7, 8, slice(2, 5))
    assert np.array_equal(part.y, first.y[2:5])
    other = _pairs(archive, **options).batch(8, 8)
    assert not np.array_equal(first.x, other.x)
    assert not np.array_equal(first.x, first.y)


def test_what_is_no_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"nothing of the kind")
    for name in ("bad.tar", "missing.tar"):
        with pytest.raises(DataError, match=name):
            read_eurosat(tmp_path / name)
