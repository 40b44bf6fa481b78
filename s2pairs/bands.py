"""The bands of Sentinel-2 MSI and what a digital number means. The only place that knows them.

Names, identifiers, resolutions and central wavelengths (Sentinel-2A) are those of the
`Spectral_Information_List` in a product's `MTD_MSIL1C.xml`.

Reflectance and digital numbers. A product says reflectance = (DN + ADD_OFFSET) / QUANTIFICATION
(ADD_OFFSET is 0 before processing baseline 04.00 and -1000 from it on). A cube stores one
meaning for all baselines: reflectance = stored * SCALE + OFFSET, with OFFSET = -0.1. That leaves
room for the slightly negative reflectance of dark pixels, which a store without an offset would
have to clip or would mistake for no-data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2pairs.errors import S2PairsError


@dataclass(frozen=True, slots=True)
class Band:
    """One spectral band: name in file names, index in product XML, place in the spectrum."""

    name: str
    band_id: int
    wavelength_nm: float
    resolution_m: int


BANDS: tuple[Band, ...] = (
    Band("B01", 0, 442.7, 60),
    Band("B02", 1, 492.7, 10),
    Band("B03", 2, 559.8, 10),
    Band("B04", 3, 664.6, 10),
    Band("B05", 4, 704.1, 20),
    Band("B06", 5, 740.5, 20),
    Band("B07", 6, 782.8, 20),
    Band("B08", 7, 832.8, 10),
    Band("B8A", 8, 864.7, 20),
    Band("B09", 9, 945.1, 60),
    Band("B10", 10, 1373.5, 60),
    Band("B11", 11, 1613.7, 20),
    Band("B12", 12, 2202.4, 20),
)

DEFAULT_BANDS: tuple[str, ...] = ("B04", "B03", "B02", "B08")
"""Red, green, blue and near infrared: the 10 m bands, in the order of Sanchez et al. 2019."""

NO_DATA_DN = 0
SATURATED_DN = 65535
QUANTIFICATION = 10_000

STORED_NO_DATA = 0
STORED_SATURATED = 65535
SCALE = 1e-4
OFFSET = -0.1
_STORED_ZERO_REFLECTANCE = round(-OFFSET / SCALE)

_BY_NAME = {band.name: band for band in BANDS}


def band(name: str) -> Band:
    """The band of that name; an unknown name is an error that lists the known ones."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = " ".join(_BY_NAME)
        raise S2PairsError(f"unknown band {name!r}; Sentinel-2 has {known}") from None


def parse_bands(text: str) -> tuple[str, ...]:
    """Band names from a list such as `B04,B03,B02,B08`; unknown and repeated ones are errors."""
    names = tuple(part.strip().upper() for part in text.split(",") if part.strip())
    if not names:
        raise S2PairsError(
            f"no band in {text!r}; expected a list such as {','.join(DEFAULT_BANDS)}"
        )
    for name in names:
        band(name)
    if len(set(names)) < len(names):
        raise S2PairsError(f"a band is named twice in {text!r}")
    return names


def stored_from_dn(
    dn: npt.NDArray[np.uint16], add_offset: int, quantification: float = QUANTIFICATION
) -> npt.NDArray[np.uint16]:
    """Digital numbers of one band of a product, in the encoding of the cube.

    `add_offset` and `quantification` are the product's own. No-data stays no-data and saturated
    stays saturated; every other pixel is valid before and after, however dark.
    """
    # int64, because a 16-bit sum would wrap round.
    level = dn.astype(np.int64) + add_offset
    if quantification != QUANTIFICATION:
        level = np.rint(level * (QUANTIFICATION / quantification)).astype(np.int64)
    stored = np.clip(level + _STORED_ZERO_REFLECTANCE, STORED_NO_DATA + 1, STORED_SATURATED - 1)
    stored[dn == NO_DATA_DN] = STORED_NO_DATA
    stored[dn == SATURATED_DN] = STORED_SATURATED
    return stored.astype(np.uint16)


def reflectance_from_stored(stored: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Reflectance (unitless, float32, same shape) of stored values; no-data becomes NaN."""
    reflectance = stored.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
    reflectance[stored == STORED_NO_DATA] = np.nan
    return reflectance


def wavelengths_nm(names: Sequence[str]) -> list[float]:
    """Central wavelengths in nanometres, in the order of `names`."""
    return [band(name).wavelength_nm for name in names]
