"""Standardisation per band, by name."""

import numpy as np
import pytest
from pydantic import ValidationError

from mimodel.normalisation import Normalisation


def _patches() -> np.ndarray:
    rng = np.random.default_rng(0)
    patches = rng.normal([0.1, 0.3], [0.02, 0.08], (50, 16, 16, 2)).transpose(0, 3, 1, 2)
    patches[3:9, 1, :5] = np.nan
    return patches.astype(np.float32)


def test_fitted_patches_have_mean_zero_and_deviation_one_where_there_is_data() -> None:
    patches = _patches()
    standard = Normalisation.fit(("B04", "B08"), patches)(patches)
    valid = ~np.isnan(patches)
    for band in (0, 1):
        values = standard[:, band][valid[:, band]]
        assert abs(values.mean()) < 1e-4
        assert abs(values.std() - 1) < 1e-4
    assert (standard[~valid] == 0).all()


def test_it_survives_its_json() -> None:
    fitted = Normalisation.fit(("B04", "B08"), _patches())
    assert Normalisation.model_validate_json(fitted.model_dump_json()) == fitted


@pytest.mark.parametrize(
    "fields",
    [
        {"bands": ("B04",), "mean": (0.1, 0.2), "std": (1.0, 1.0)},
        {"bands": ("B04",), "mean": (0.1,), "std": (0.0,)},
    ],
)
def test_a_band_without_scale_is_refused(fields: dict[str, tuple[object, ...]]) -> None:
    with pytest.raises(ValidationError):
        Normalisation.model_validate(fields)
