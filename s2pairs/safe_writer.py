"""Writes Sentinel-2 Level-1C products in the layout of the provider: the `.SAFE` folder.

A product appears whole or not at all: it is written beside its place and then renamed. The same
input makes the same bytes.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from s2pairs.bands import Band, band
from s2pairs.errors import S2PairsError
from s2pairs.safe_mask_files import L1CMasks, mask_files
from s2pairs.safe_metadata import (
    L1CProduct,
    ManifestFile,
    granule_metadata,
    manifest,
    product_metadata,
    usual_offsets,
)

__all__ = ["L1CMasks", "L1CProduct", "usual_offsets", "write_l1c"]


def write_l1c(
    folder: Path,
    product: L1CProduct,
    bands: Mapping[str, npt.NDArray[np.uint16]],
    masks: L1CMasks | None = None,
) -> Path:
    """Write one product into `folder` and return its path.

    `bands` are digital numbers by band name, each of `product.shape` at the band's own
    resolution. Images are lossless JPEG 2000. Without `masks` the product has no mask, which
    genuine ones always have. A product that is there already is an error, and so is, as `OSError`,
    a disk without room.
    """
    _check_bands(product, bands)
    target = folder / product.name
    if target.exists():
        raise S2PairsError(f"{target} exists already; remove it or write to another folder")
    partial = folder / f".{product.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    qualities = mask_files(product, masks) if masks else {}
    files = {
        "MTD_MSIL1C.xml": product_metadata(product, bands),
        f"GRANULE/{product.granule}/MTD_TL.xml": granule_metadata(product, qualities),
        **qualities,
    }
    for name in (product.image("B02"), *files):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    for name, numbers in bands.items():
        with _refusals_of_gdal(partial / product.image(name)) as path:
            _write_jp2(path, product, band(name), numbers)
    images = [product.image(name) for name in bands]
    listed = [_manifest_file(partial, name) for name in (*files, *images)]
    (partial / "manifest.safe").write_bytes(manifest(product, listed))
    partial.rename(target)
    return target


def _manifest_file(folder: Path, name: str) -> ManifestFile:
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return ManifestFile(name, (folder / name).stat().st_size, digest.hexdigest())


@contextmanager
def _refusals_of_gdal(path: Path) -> Iterator[Path]:
    """What GDAL says when it cannot write `path`, to a full disk for one, becomes an `OSError`."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    try:
        yield path
    except (CPLE_BaseError, RasterioError) as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def _write_jp2(path: Path, product: L1CProduct, which: Band, dn: npt.NDArray[np.uint16]) -> None:
    import rasterio
    from affine import Affine

    left, top = product.tile.upper_left()
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        height=dn.shape[0],
        width=dn.shape[1],
        count=1,
        dtype="uint16",
        crs=f"EPSG:{product.tile.epsg}",
        transform=Affine(which.resolution_m, 0, left, 0, -which.resolution_m, top),
        QUALITY=100,
        REVERSIBLE="YES",
        blockxsize=1024,
        blockysize=1024,
        # Low bit planes are mostly noise: storing them raw is as small and a third faster to read.
        CODEBLOCK_STYLE="BYPASS",
    ) as image:
        image.write(dn, 1)


def _check_bands(product: L1CProduct, bands: Mapping[str, npt.NDArray[np.uint16]]) -> None:
    if not bands:
        raise S2PairsError("a product without any band; give at least one of the 13")
    for name, numbers in bands.items():
        expected = product.shape(band(name).resolution_m)
        if numbers.shape != expected or numbers.dtype != np.uint16:
            raise S2PairsError(
                f"{name} must be uint16 of shape {expected}, "
                f"got {numbers.dtype} of shape {numbers.shape}"
            )
