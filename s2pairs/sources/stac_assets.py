"""Which asset of an item is which band, and what the item says of its numbers."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s2pairs.bands import QUANTIFICATION
from s2pairs.errors import SceneError
from s2pairs.sources.items import Described
from s2pairs.sources.offsets import ADDED, Offsets
from s2pairs.sources.reach import shown

if TYPE_CHECKING:
    from pystac import Asset, Item

# Names by the STAC extension eo; the red edges and the narrow bands as Earth Search has them.
_COMMON_NAMES = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}
_RESOLUTIONS = ("", "_10m", "_20m", "_60m")
_CLASSES = ("scl", "SCL", "SCL_20m", "SCL_60m")
_METADATA = ("product_metadata", "product-metadata", "metadata")
_METADATA_FILE = re.compile(r"MTD_MSIL(1C|2A)\.xml$", re.ASCII)
_OTHER_LEVEL = {"L1C": re.compile(r"l2a", re.IGNORECASE), "L2A": re.compile(r"l1c", re.IGNORECASE)}
_FIRST_BASELINE_WITH_OFFSET = "04.00"
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")


def band_asset(item: "Item", name: str) -> "Asset":
    """The asset of a band: by key, `B04`, `B04_10m` or `red`, else by the band it says it holds.

    `SceneError` where there is none.
    """
    common = _COMMON_NAMES[name]
    short = name.replace("B0", "B")
    for base in (name, short, common):
        for resolution in _RESOLUTIONS:
            if f"{base}{resolution}" in item.assets:
                return item.assets[f"{base}{resolution}"]
    for asset in item.assets.values():
        if _band_names(asset) & {name, short, common}:
            return asset
    raise SceneError(f"band {name} is missing: no asset {name} or {common}")


def class_asset(item: "Item") -> "Asset | None":
    """The asset of the scene classification of Level-2A."""
    return next((item.assets[key] for key in _CLASSES if key in item.assets), None)


def metadata_asset(item: "Item") -> "Asset | None":
    """The provider's own metadata of the product, `MTD_MSIL1C.xml` or `MTD_MSIL2A.xml`."""
    named = (item.assets[key] for key in _METADATA if key in item.assets)
    return next((asset for asset in named if _METADATA_FILE.search(asset.href)), None)


def check_level(level: str, hrefs: Mapping[str, str]) -> None:
    """`SceneError` if a file's address names the other level: some items of Level-1C do so."""
    for name, href in hrefs.items():
        if _OTHER_LEVEL[level].search(href) and level.lower() not in href.lower():
            raise SceneError(f"the item is {level}, but its {name} is {shown(href)}")


def radiometry(
    item: "Item", said: Described, bands: Sequence[str]
) -> tuple[dict[str, Offsets], float]:
    """Who says what of the offset, by band, and the quantification that goes with it.

    The scaling of an asset is one voice (`raster:bands` of STAC 1.0, `raster:offset` of 1.1), the
    processing baseline another. Offsets are in digital numbers.
    """
    scalings = {name: _scaling(band_asset(item, name)) for name in bands}
    scales = {scale for scale, _ in scalings.values() if scale}
    if len(scales) > 1:
        raise SceneError(f"its bands differ in scale: {sorted(scales)}")
    quantification = float(round(1 / scales.pop())) if scales else float(QUANTIFICATION)
    claims: dict[str, Offsets] = {}
    if all(offset is not None for _, offset in scalings.values()):
        claims["the scaling of its assets"] = {
            name: round((offset or 0.0) * quantification) for name, (_, offset) in scalings.items()
        }
    applied = next((key for key in _APPLIED if item.properties.get(key) is True), None)
    if applied:
        claims[applied] = dict.fromkeys(bands, 0)
    elif said.baseline:
        expected = ADDED if said.baseline >= _FIRST_BASELINE_WITH_OFFSET else 0
        claims[f"baseline {said.baseline}"] = dict.fromkeys(bands, expected)
    return claims, quantification


def _band_names(asset: "Asset") -> set[str]:
    """Names of the one band that an asset holds; nothing for a picture of several."""
    listed = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
    if len(listed) != 1 or "visual" in (asset.roles or []) or "thumbnail" in (asset.roles or []):
        return set()
    keys = ("name", "common_name", "eo:common_name")
    return {str(listed[0][key]) for key in keys if key in listed[0]}


def _scaling(asset: "Asset") -> tuple[float | None, float | None]:
    """Scale and offset to reflectance, None where the asset does not say it."""
    fields: dict[str, Any] = {
        key.removeprefix("raster:"): value for key, value in asset.extra_fields.items()
    }
    for kind in ("raster:bands", "bands"):
        for band in asset.extra_fields.get(kind, [])[:1]:
            fields |= {key.removeprefix("raster:"): value for key, value in band.items()}
    try:
        scale = float(fields["scale"]) if fields.get("scale") is not None else None
        offset = float(fields["offset"]) if fields.get("offset") is not None else None
    except (TypeError, ValueError) as error:
        raise SceneError(f"the scaling of an asset is no number: {error}") from error
    if offset is not None and not abs(offset) < 1:
        raise SceneError(f"an asset has the offset {offset}, expected one such as -0.1")
    if scale is not None and not 1e-9 < scale < 1:
        raise SceneError(f"an asset has the scale {scale}, expected one such as 0.0001")
    return scale, offset
