"""What the metadata of one product in the layout of the provider say.

They are read by element names without namespaces, since those changed with product versions. Each
band is found by its own file name: GDAL's SENTINEL2 driver answers zeros for a missing file.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from s2pairs.bands import BANDS, band
from s2pairs.errors import SceneError, TileError
from s2pairs.scenes import Grid, Scene, utc
from s2pairs.sources.archive import Archive, read_bytes
from s2pairs.tiles import PIXEL_SIZE_M, TileId

_TILE_OF_GRANULE = re.compile(r"GRANULE/[^/]*_T([0-9]{2}[A-Z]{3})(?:_[^/]*)?", re.ASCII)
_BASELINE_OF_DATATAKE = re.compile(r"_N\d\d\.\d\d$", re.ASCII)
# Where a genuine tile id names the processing centre, such as _TL_SGS__
_SIMULATION_CENTRE = "_TL_SIM__"
_FIRST_BASELINE_WITH_OFFSET = 4.0
_LEVELS = {"Level-1C": "L1C", "Level-2A": "L2A"}
_OLD_METADATA = "S2?_OPER_MTD_*.xml"

# Of each kind of mask the first pattern that matches one file; products of before December 2016
# have longer names. Of the outlines of detectors, those of the coarsest band.
_MASKS = {
    "SCL": ("IMG_DATA/R20m/*_SCL_20m.jp2", "IMG_DATA/R60m/*_SCL_60m.jp2"),
    "MSK_CLASSI": ("QI_DATA/MSK_CLASSI_B00.jp2",),
    "MSK_CLOUDS": ("QI_DATA/*MSK_CLOUDS*B00*.gml",),
    "MSK_CLDPRB": ("QI_DATA/MSK_CLDPRB_20m.jp2", "QI_DATA/MSK_CLDPRB_60m.jp2"),
    "MSK_DETFOO": tuple(
        f"QI_DATA/*MSK_DETFOO*{each.name}*.{suffix}"
        for each in sorted(BANDS, key=lambda each: -each.resolution_m)
        for suffix in ("jp2", "gml")
    ),
}


@dataclass(frozen=True)
class Radiometry:
    """What a product's numbers mean: reflectance = (DN + add_offset) / quantification, by band."""

    level: str
    quantification: float
    add_offset: Mapping[str, int]


def read_radiometry(content: bytes, name: str, bands: Sequence[str]) -> Radiometry:
    """From `MTD_MSIL1C.xml` or `MTD_MSIL2A.xml`; `SceneError` where it is broken."""
    return _radiometry(_Xml(content, name), bands)


def tiles_inside(product: Archive) -> list[str]:
    """Names of the tiles whose granules a product holds; `SceneError` if it holds none."""
    matches = map(_TILE_OF_GRANULE.fullmatch, product.names)
    found = sorted({match[1] for match in matches if match})
    if not found:
        raise SceneError("holds no granule of a tile")
    return found


def read_scene(product: Archive, tile: TileId, bands: Sequence[str]) -> Scene:
    """What a product's metadata say of one of its tiles.

    `SceneError` where they are broken or a band file is missing. The offsets come from the
    metadata alone, never from date or baseline: an old scene that was reprocessed carries them too.
    """
    general, granule = _metadata(product, tile)
    radiometry = _radiometry(general, bands)
    grid = _grid(granule)
    several = len(tiles_inside(product)) > 1
    cloud_cover = (
        granule.number("CLOUDY_PIXEL_PERCENTAGE")
        if several
        else general.number("Cloud_Coverage_Assessment")
    )
    below = granule.path.rpartition("/")[0]
    return Scene(
        product=product.name,
        tile=_tile(granule),
        level=radiometry.level,
        acquired=general.moment("DATATAKE_SENSING_START"),
        generated=general.moment("GENERATION_TIME"),
        datatake=_BASELINE_OF_DATATAKE.sub("", general.attribute("Datatake", "datatakeIdentifier")),
        baseline=f"{general.number('PROCESSING_BASELINE'):05.2f}",
        cloud_cover=cloud_cover,
        quantification=radiometry.quantification,
        add_offset=radiometry.add_offset,
        grid=grid,
        assets={name: _band_file(product, below, name, radiometry.level) for name in bands},
        simulated=_SIMULATION_CENTRE in granule.text("TILE_ID"),
        # the footprint of a product of several tiles is that of all of them
        coverage=1.0 if several else _coverage(general, granule, grid),
        masks=_mask_files(product, below),
    )


def _radiometry(general: "_Xml", bands: Sequence[str]) -> Radiometry:
    level = _LEVELS.get(general.text("PROCESSING_LEVEL"))
    if level is None:
        raise SceneError(f"processing level {general.text('PROCESSING_LEVEL')!r} is not L1C or L2A")
    quantity = "QUANTIFICATION_VALUE" if level == "L1C" else "BOA_QUANTIFICATION_VALUE"
    quantification = general.number(quantity)
    if quantification <= 0:
        raise SceneError(f"{general.name}: {quantity} is {quantification:g}, not above 0")
    offset = "RADIO_ADD_OFFSET" if level == "L1C" else "BOA_ADD_OFFSET"
    return Radiometry(level, quantification, _offsets(general, offset, bands))


def _metadata(product: Archive, tile: TileId) -> tuple["_Xml", "_Xml"]:
    """The files of the product and of the tile's granule."""
    if product.matching(_OLD_METADATA):
        names = _OLD_METADATA, f"GRANULE/*_T{tile}_*/{_OLD_METADATA}"
    else:
        names = "MTD_MSIL*.xml", "GRANULE/*/MTD_TL.xml"
    paths = [product.only(name) for name in names]
    general, granule = (_Xml(read_bytes(product.location(path)), path) for path in paths)
    return general, granule


class _Xml:
    """An XML file, asked by element names without namespace; `SceneError` on all that is amiss."""

    def __init__(self, content: bytes, path: str) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        try:
            self._elements = list(ET.fromstring(content).iter())
        except (ET.ParseError, ValueError, LookupError) as error:
            raise SceneError(f"{self.name} cannot be read: {error}") from error

    def all(self, name: str) -> Iterator[ET.Element]:
        return (each for each in self._elements if each.tag.rpartition("}")[2] == name)

    def first(self, name: str) -> ET.Element:
        element = next(self.all(name), None)
        if element is None:
            raise SceneError(f"{self.name} has no element {name}")
        return element

    def text(self, name: str) -> str:
        return (self.first(name).text or "").strip()

    def number(self, name: str) -> float:
        try:
            value = float(self.text(name))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SceneError(f"{self.name}: {name} is {self.text(name)!r}, not a number")
        return value

    def moment(self, name: str) -> datetime:
        try:
            return utc(self.text(name))
        except ValueError as error:
            raise SceneError(f"{self.name}: {name} is no moment: {error}") from error

    def attribute(self, name: str, key: str) -> str:
        value = self.first(name).get(key)
        if value is None:
            raise SceneError(f"{self.name}: {name} has no attribute {key}")
        return value


def _tile(granule: _Xml) -> TileId:
    """The tile of `S2A_OPER_MSI_L1C_TL_SGS__20200717T234135_A026481_T01LAC_N02.09`."""
    parts = granule.text("TILE_ID").split("_")
    try:
        return TileId.parse(parts[-2] if len(parts) > 1 else "")
    except TileError as error:
        raise SceneError(f"{granule.name}: TILE_ID: {error}") from error


def _offsets(general: _Xml, name: str, bands: Sequence[str]) -> Mapping[str, int]:
    """Offset in digital numbers by band; products before baseline 04.00 have none, that is 0.

    From it on, or once one band has an offset, each of `bands` must have one: 0 in its place would
    add 0.1 to the reflectance without a word.
    """
    named = set()
    offsets = {each.name: 0 for each in BANDS}
    by_id = {str(each.band_id): each.name for each in BANDS}
    for element in general.all(name):
        key = by_id.get(element.get("band_id", ""))
        try:
            offsets[key or ""] = int(element.text or "")
        except ValueError:
            key = None
        if key is None:
            raise SceneError(f"{general.name}: cannot read {ET.tostring(element)!r}")
        named.add(key)
    missing = [each for each in bands if each not in named]
    if missing and (named or general.number("PROCESSING_BASELINE") >= _FIRST_BASELINE_WITH_OFFSET):
        raise SceneError(f"{general.name} has no {name} for {', '.join(missing)}")
    return offsets


def _coverage(general: _Xml, granule: _Xml, grid: Grid) -> float:
    """The part of the grid with data, 0 to 1: from the share of no-data, else from the footprint.

    Level-1C metadata have no such share before it came into use; all have a footprint, latitudes
    and longitudes in turn. 1 where neither can be read: it only serves to compare.
    """
    from rasterio.warp import transform

    for xml in (granule, general):
        with suppress(SceneError):
            return 1 - xml.number("NODATA_PIXEL_PERCENTAGE") / 100
    try:
        numbers = np.array(general.text("EXT_POS_LIST").split(), dtype=np.float64)
        latitude, longitude = numbers.reshape(-1, 2).T
    except (SceneError, ValueError):
        return 1.0
    points = transform("EPSG:4326", f"EPSG:{grid.epsg}", longitude, latitude)
    x, y = np.array(points) - np.array([[grid.left], [grid.top]])
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    share = float(area) / (grid.height * grid.width * PIXEL_SIZE_M**2)
    return min(1.0, share) if math.isfinite(share) else 1.0


def _grid(granule: _Xml) -> Grid:
    code = granule.text("HORIZONTAL_CS_CODE")
    if not re.fullmatch(r"EPSG:32[67]\d\d", code, re.ASCII):
        raise SceneError(f"{granule.name}: {code!r} is not a UTM zone such as EPSG:32631")
    size = _at_10_m(granule, "Size")
    position = _at_10_m(granule, "Geoposition")
    try:
        return Grid(
            epsg=int(code.removeprefix("EPSG:")),
            left=float(position["ULX"]),
            top=float(position["ULY"]),
            height=int(size["NROWS"]),
            width=int(size["NCOLS"]),
        )
    except (KeyError, ValueError) as error:
        raise SceneError(f"{granule.name}: broken Tile_Geocoding: {error!r}") from error


def _at_10_m(granule: _Xml, name: str) -> dict[str, str]:
    """Texts of the children of the element `name` whose resolution is 10 m."""
    for element in granule.all(name):
        if element.get("resolution") == "10":
            return {child.tag.rpartition("}")[2]: child.text or "" for child in element}
    raise SceneError(f"{granule.name} has no element {name} for 10 m")


def _band_file(product: Archive, below: str, name: str, level: str) -> str:
    """L1C: `…_B02.jp2`. L2A: the finest of `R10m/…_B02_10m.jp2`, `R20m/…`, `R60m/…`."""
    band(name)
    patterns = (
        [f"*_{name}.jp2"]
        if level == "L1C"
        else [f"R{metres}m/*_{name}_{metres}m.jp2" for metres in (10, 20, 60)]
    )
    for pattern in patterns:
        found = product.matching(f"{below}/IMG_DATA/{pattern}")
        if len(found) == 1:
            return product.location(found[0])
    raise SceneError(f"band {name} is missing (no single {' or '.join(patterns)})")


def _mask_files(product: Archive, below: str) -> dict[str, str]:
    """Locations of the masks that the granule `below` holds, by kind."""
    found = {}
    for kind, patterns in _MASKS.items():
        for pattern in patterns:
            names = product.matching(f"{below}/{pattern}")
            if len(names) == 1:
                found[kind] = product.location(names[0])
                break
    return found
