"""Reflectance to network input: per-band standardisation, keyed by band name.

The only place where pixels are divided by a standard deviation. No data (NaN) becomes 0, the mean
of its band, in training as in serving.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from mimodel.errors import InputError


class Normalisation(BaseModel):
    """Mean and standard deviation of reflectance by band, fitted on a training split alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _lengths_agree(self) -> "Normalisation":
        if not len(self.bands) == len(self.mean) == len(self.std):
            raise ValueError(
                f"{len(self.bands)} bands, {len(self.mean)} means, {len(self.std)} stds"
            )
        if not all(std > 0 for std in self.std):
            raise ValueError("a band without variation cannot be standardised")
        return self

    @classmethod
    def fit(cls, bands: Sequence[str], reflectance: npt.NDArray[np.float32]) -> "Normalisation":
        """Fit on patches (N, band, H, W), NaN where there is no data.

        A band that has one value everywhere, or none, is an `InputError`.
        """
        by_band = np.moveaxis(reflectance, 1, 0)
        level = [
            name
            for name, values in zip(bands, by_band, strict=True)
            if np.isnan(values).all() or np.nanmin(values) == np.nanmax(values)
        ]
        if level:
            raise InputError(
                f"band {', '.join(level)} has the same value in every pixel, or none, so there is "
                "nothing to learn from it; leave it out, or look at the data"
            )
        # float64, because a mean over 10^8 float32 values drifts.
        mean = np.asarray(np.nanmean(reflectance, (0, 2, 3), np.float64)).tolist()
        std = np.asarray(np.nanstd(reflectance, (0, 2, 3), np.float64)).tolist()
        return cls(bands=tuple(bands), mean=tuple(mean), std=tuple(std))

    def __call__(self, reflectance: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Standardise (..., band, H, W) whose bands stand in the order of `self.bands`."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        standard = (reflectance.astype(np.float32) - mean) / std
        filled: npt.NDArray[np.float32] = np.nan_to_num(standard, copy=False, nan=0.0)
        return filled

    def of_tensor(self, values: Float[Tensor, "*batch band row col"]) -> Tensor:
        """The same of a tensor in which nothing is missing, on the device where it is."""
        mean, std = (values.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (values - mean) / std


def select_bands(
    wanted: Sequence[str], given: Sequence[str] | None, pixels: npt.NDArray[np.generic], axis: int
) -> npt.NDArray[np.generic]:
    """`pixels` with the `wanted` bands in order along `axis`, from one whose bands are `given`.

    None says that the bands are the wanted ones already. Extra bands are left out; a missing one, a
    repeated one, or a number of names that is not the array's is an `InputError`.
    """
    names = tuple(wanted if given is None else given)
    if pixels.shape[axis] != len(names):
        raise InputError(
            f"expected {len(names)} bands ({', '.join(names)}), got {pixels.shape[axis]}; "
            "say which bands you send, in their order"
        )
    if len(set(names)) < len(names):
        raise InputError(f"a band is named twice in {', '.join(names)}")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            f"band {', '.join(missing)} is missing; this model reads {', '.join(wanted)}"
        )
    if names == tuple(wanted):
        return pixels
    return np.take(pixels, [names.index(name) for name in wanted], axis=axis)
