"""Small made scenes whose every pixel is known."""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS, band
from s2pairs.masks import Flags
from s2pairs.safe_writer import L1CProduct, usual_offsets, write_l1c
from s2pairs.scenes import Grid, Listing, PixelWindow, Scene
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


def as_l2a(folder: Path, target: Path, product: L1CProduct, classes: npt.NDArray[np.uint8]) -> Path:
    """A Level-2A product from a Level-1C one: its layout and names, its pixels as they are.

    `classes` is the scene classification at 20 m. What genuine Level-2A metadata say besides is
    left out.
    """
    import rasterio
    from affine import Affine

    made = target / folder.name.replace("MSIL1C", "MSIL2A")
    (granule,) = (folder / "GRANULE").iterdir()
    below = made / "GRANULE" / granule.name.replace("L1C_", "L2A_")
    shutil.copytree(granule / "QI_DATA", below / "QI_DATA")
    shutil.copy(granule / "MTD_TL.xml", below / "MTD_TL.xml")
    for image in (granule / "IMG_DATA").iterdir():
        metres = band(image.stem.rpartition("_")[2]).resolution_m
        place = below / "IMG_DATA" / f"R{metres}m" / f"{image.stem}_{metres}m.jp2"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    text = (folder / "MTD_MSIL1C.xml").read_text()
    for before, after in (
        ("Level-1C</PROCESSING_LEVEL", "Level-2A</PROCESSING_LEVEL"),
        ("QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE"),
        ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET"),
    ):
        text = text.replace(before, after)
    (made / "MTD_MSIL2A.xml").write_text(text)
    left, top = product.tile.upper_left()
    place = below / "IMG_DATA" / "R20m" / f"T{product.tile}_{product.acquired:%Y%m%dT%H%M%S}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        place.with_name(f"{place.name}_SCL_20m.jp2"),
        "w",
        driver="JP2OpenJPEG",
        height=classes.shape[0],
        width=classes.shape[1],
        count=1,
        dtype="uint8",
        crs=f"EPSG:{product.tile.epsg}",
        transform=Affine(20, 0, left, 0, -20, top),
        QUALITY=100,
        REVERSIBLE="YES",
    ) as file:
        file.write(classes, 1)
    return made


@dataclass(frozen=True)
class Places:
    """A source without files: its products' pixels are `dn_of_place`, of 10 m bands. It can be
    sent to other processes."""

    products: tuple[L1CProduct, ...]

    def scenes(self, tile: TileId) -> Listing:
        return Listing(tuple(map(scene_of, filter(lambda p: p.tile == tile, self.products))), ())

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        (product,) = (p for p in self.products if scene_of(p).product == scene.product)
        dn = dn_of_place(product, band)
        return [dn[w.row : w.row + w.height, w.col : w.col + w.width] for w in windows]

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """A strip of cloud that is further down at each day of the month."""
        top = scene.acquired.day
        masks = []
        for window in windows:
            mask = np.zeros((window.height, window.width), dtype=np.uint8)
            mask[top : top + 5] = 4
            masks.append(mask)
        return masks


def scene_of(product: L1CProduct) -> Scene:
    """What a source says of a product."""
    return Scene(
        product=product.name.removesuffix(".SAFE"),
        tile=product.tile,
        level="L1C",
        acquired=product.acquired,
        generated=product.generated,
        datatake=product.name[:26],
        baseline=product.baseline,
        cloud_cover=product.cloud_cover,
        quantification=10_000,
        add_offset={each.name: product.add_offset.get(each.name, 0) for each in BANDS},
        grid=Grid(product.tile.epsg, *product.tile.upper_left(), product.height, product.width),
        assets={},
        simulated=True,
    )
