"""Small made scenes whose every pixel is known."""

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import band
from s2pairs.safe_writer import L1CProduct, usual_offsets, write_l1c
from s2pairs.tiles import TileId

RGBN = ("B04", "B03", "B02", "B08")


def l1c(
    tile: str = "31TCJ",
    day: str = "2020-06-01",
    *,
    baseline: str = "02.09",
    cloud: float = 0.5,
    size: int = 256,
    hour: int = 10,
    generated_days_later: int = 1,
) -> L1CProduct:
    """Metadata of a product; the day and the hour make the datatake."""
    acquired = datetime.fromisoformat(day).replace(hour=hour, minute=56, second=1, tzinfo=UTC)
    return L1CProduct(
        tile=TileId.parse(tile),
        spacecraft="S2A",
        acquired=acquired,
        generated=acquired + timedelta(days=generated_days_later),
        baseline=baseline,
        relative_orbit=8,
        absolute_orbit=10_000 + acquired.toordinal() % 10_000 + hour,
        cloud_cover=cloud,
        sun_zenith=30.0,
        sun_azimuth=150.0,
        add_offset=usual_offsets(baseline),
        height=size,
        width=size,
    )


def dn_of_place(product: L1CProduct, name: str) -> npt.NDArray[np.uint16]:
    """Digital numbers 1..60,000 of a band that tell tile, day, band, row and column apart.

    They rise along a row by one and from row to row by 1,031, which JPEG 2000 packs fast.
    """
    rows, columns = product.shape(band(name).resolution_m)
    row, col = np.mgrid[:rows, :columns]
    mixed = (
        row * 1_031
        + col
        + band(name).band_id * 1_299_709
        + product.acquired.toordinal() * 15_485_863
        + zlib.crc32(product.tile.name.encode())
    )
    return np.asarray(1 + mixed % 60_000, dtype=np.uint16)


def write_places(
    folder: Path, products: Sequence[L1CProduct], bands: Sequence[str] = RGBN
) -> list[Path]:
    """Products whose pixels are `dn_of_place`; their folders, in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_l1c(folder, product, {name: dn_of_place(product, name) for name in bands})
        for product in products
    ]
