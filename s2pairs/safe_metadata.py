"""The metadata of Level-1C products, shaped like those of genuine ones (specification PSD-14).

Names, nesting, attributes and namespaces are the provider's, as far as readers look. What belongs
to the ground segment alone (GIPP lists, detector masks, quality reports, viewing angles,
previews) is left out.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from s2pairs.bands import BANDS, NO_DATA_DN, QUANTIFICATION, SATURATED_DN, Band, band
from s2pairs.errors import S2PairsError
from s2pairs.tiles import PIXEL_SIZE_M, TILE_SIZE_PX, TileId

FIRST_BASELINE_WITH_OFFSET = "04.00"
_PSD = "https://psd-14.sentinel2.eo.esa.int/PSD"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_CENTRE = "SIM_"  # no processing centre of the provider is called so
_MIME = {
    ".xml": "text/xml",
    ".gml": "application/xml",
    ".jp2": "application/octet-stream",
}

# By band: solar irradiance in W/m2/um, and minimal, maximal and central wavelength in nm, as the
# products of each satellite state them.
_INSTRUMENTS: dict[str, tuple[tuple[float, int, int, float], ...]] = {
    "S2A": (
        (1884.69, 412, 456, 442.7),
        (1959.66, 456, 533, 492.7),
        (1823.24, 538, 583, 559.8),
        (1512.06, 646, 684, 664.6),
        (1424.64, 695, 714, 704.1),
        (1287.61, 731, 749, 740.5),
        (1162.08, 769, 797, 782.8),
        (1041.63, 760, 907, 832.8),
        (955.32, 837, 881, 864.7),
        (812.92, 932, 958, 945.1),
        (367.15, 1337, 1412, 1373.5),
        (245.59, 1539, 1682, 1613.7),
        (85.25, 2078, 2320, 2202.4),
    ),
    "S2B": (
        (1874.3, 411, 456, 442.3),
        (1959.75, 456, 532, 492.3),
        (1824.93, 536, 582, 559),
        (1512.79, 646, 685, 665),
        (1425.78, 694, 714, 703.8),
        (1291.13, 730, 748, 739.1),
        (1175.57, 766, 794, 779.7),
        (1041.28, 774, 907, 833),
        (953.93, 848, 880, 864),
        (817.58, 930, 957, 943.2),
        (365.41, 1339, 1415, 1376.9),
        (247.08, 1538, 1679, 1610.4),
        (87.75, 2065, 2303, 2185.7),
    ),
}


@dataclass(frozen=True, slots=True)
class L1CProduct:
    """What the metadata of one Level-1C product say.

    `acquired` is the start of the datatake and `generated` the time of processing, both UTC.
    `add_offset` names all 13 bands from baseline 04.00 on and is empty before. `cloud_cover` is
    in percent, angles are in degrees (azimuth clockwise from north). `height` and `width` are in
    10 m pixels from the tile's upper left corner: a small product is a crop of its tile.
    """

    tile: TileId
    spacecraft: str
    acquired: datetime
    generated: datetime
    baseline: str
    relative_orbit: int
    absolute_orbit: int
    cloud_cover: float
    sun_zenith: float
    sun_azimuth: float
    add_offset: Mapping[str, int]
    height: int = TILE_SIZE_PX
    width: int = TILE_SIZE_PX
    quantification: int = QUANTIFICATION

    def __post_init__(self) -> None:
        _check_product(self)

    @property
    def name(self) -> str:
        """The product's name, which is its folder's: `S2A_MSIL1C_..._T31TCJ_....SAFE`."""
        baseline = self.baseline.replace(".", "")
        return (
            f"{self.spacecraft}_MSIL1C_{_compact(self.acquired)}_N{baseline}"
            f"_R{self.relative_orbit:03d}_T{self.tile}_{_compact(self.generated)}.SAFE"
        )

    @property
    def granule(self) -> str:
        return f"L1C_T{self.tile}_A{self.absolute_orbit:06d}_{_compact(self.acquired)}"

    def image(self, name: str) -> str:
        """Path of a band's image inside the product."""
        file = f"T{self.tile}_{_compact(self.acquired)}_{name}.jp2"
        return f"GRANULE/{self.granule}/IMG_DATA/{file}"

    def shape(self, resolution_m: int) -> tuple[int, int]:
        """(rows, columns) of a band of that resolution."""
        step = resolution_m // PIXEL_SIZE_M
        return math.ceil(self.height / step), math.ceil(self.width / step)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of a product: its path inside, its size in bytes and its MD5 sum."""

    path: str
    size: int
    md5: str


def usual_offsets(baseline: str) -> dict[str, int]:
    """The radiometric offsets of a baseline: -1000 in each band from 04.00 on, none before."""
    if baseline < FIRST_BASELINE_WITH_OFFSET:
        return {}
    return {each.name: -1000 for each in BANDS}


def product_metadata(product: L1CProduct, names: Iterable[str]) -> bytes:
    """`MTD_MSIL1C.xml` of a product that holds the bands of these names."""
    root = _root("Level-1C_User_Product", "User_Product_Level-1C.xsd")
    general = _add(root, "n1:General_Info")
    _product_info(_add(general, "Product_Info"), product, names)
    _image_characteristics(_add(general, "Product_Image_Characteristics"), product)
    geometric = _add(root, "n1:Geometric_Info")
    footprint = _add(geometric, "Product_Footprint")
    outline = _add(_add(footprint, "Product_Footprint"), "Global_Footprint")
    _add(outline, "EXT_POS_LIST", _footprint(product))
    _add(footprint, "RASTER_CS_TYPE", "POINT")
    _add(footprint, "PIXEL_ORIGIN", "1")
    reference = _add(geometric, "Coordinate_Reference_System")
    _add(reference, "GEO_TABLES", "EPSG", version="1")
    _add(reference, "HORIZONTAL_CS_TYPE", "GEOGRAPHIC")
    quality = _add(root, "n1:Quality_Indicators_Info")
    _add(quality, "Cloud_Coverage_Assessment", f"{product.cloud_cover:.4f}")
    technical = _add(quality, "Technical_Quality_Assessment")
    _add(technical, "DEGRADED_ANC_DATA_PERCENTAGE", "0.0")
    _add(technical, "DEGRADED_MSI_DATA_PERCENTAGE", "0")
    return _xml(root)


def _product_info(info: ET.Element, product: L1CProduct, names: Iterable[str]) -> None:
    start, generated = _milliseconds(product.acquired), _microseconds(product.generated)
    _add(info, "PRODUCT_START_TIME", start)
    _add(info, "PRODUCT_STOP_TIME", start)
    _add(info, "PRODUCT_URI", product.name)
    _add(info, "PROCESSING_LEVEL", "Level-1C")
    _add(info, "PRODUCT_TYPE", "S2MSI1C")
    _add(info, "PROCESSING_BASELINE", product.baseline)
    _add(info, "GENERATION_TIME", generated)
    _add(info, "PREVIEW_IMAGE_URL", "Not applicable")
    _add(info, "PREVIEW_GEO_INFO", "Not applicable")
    compact = _compact(product.acquired)
    identifier = f"G{product.spacecraft}_{compact}_{product.absolute_orbit:06d}_N{product.baseline}"
    datatake = _add(info, "Datatake", datatakeIdentifier=identifier)
    _add(datatake, "SPACECRAFT_NAME", _spacecraft(product))
    _add(datatake, "DATATAKE_TYPE", "INS-NOBS")
    _add(datatake, "DATATAKE_SENSING_START", start)
    _add(datatake, "SENSING_ORBIT_NUMBER", str(product.relative_orbit))
    _add(datatake, "SENSING_ORBIT_DIRECTION", "DESCENDING")
    options = _add(info, "Query_Options", completeSingleTile="true")
    _add(options, "PRODUCT_FORMAT", "SAFE_COMPACT")
    granule = _add(
        _add(_add(info, "Product_Organisation"), "Granule_List"),
        "Granule",
        datastripIdentifier=_datastrip_id(product),
        granuleIdentifier=_granule_id(product),
        imageFormat="JPEG2000",
    )
    for name in names:
        _add(granule, "IMAGE_FILE", product.image(name).removesuffix(".jp2"))


def _image_characteristics(image: ET.Element, product: L1CProduct) -> None:
    for text, index in (("NODATA", NO_DATA_DN), ("SATURATED", SATURATED_DN)):
        special = _add(image, "Special_Values")
        _add(special, "SPECIAL_VALUE_TEXT", text)
        _add(special, "SPECIAL_VALUE_INDEX", str(index))
    display = _add(image, "Image_Display_Order")
    for channel, name in (("RED", "B04"), ("GREEN", "B03"), ("BLUE", "B02")):
        _add(display, f"{channel}_CHANNEL", str(band(name).band_id))
    _add(image, "QUANTIFICATION_VALUE", str(product.quantification), unit="none")
    if product.add_offset:
        offsets = _add(image, "Radiometric_Offset_List")
        for each in BANDS:
            offset = str(product.add_offset[each.name])
            _add(offsets, "RADIO_ADD_OFFSET", offset, band_id=str(each.band_id))
    conversion = _add(image, "Reflectance_Conversion")
    _add(conversion, "U", repr(sun_distance_correction(product.acquired)))
    irradiances = _add(conversion, "Solar_Irradiance_List")
    spectral = _add(image, "Spectral_Information_List")
    for each, (irradiance, *wavelengths) in zip(
        BANDS, _INSTRUMENTS[product.spacecraft], strict=True
    ):
        row = {"bandId": str(each.band_id), "unit": "W/m²/µm"}
        _add(irradiances, "SOLAR_IRRADIANCE", str(irradiance), **row)
        _spectral_information(spectral, each, wavelengths)
    _add(image, "REFERENCE_BAND", str(band("B04").band_id))


def _spectral_information(parent: ET.Element, each: Band, wavelengths: list[float]) -> None:
    physical = each.name.replace("B0", "B")
    info = _add(parent, "Spectral_Information", bandId=str(each.band_id), physicalBand=physical)
    _add(info, "RESOLUTION", str(each.resolution_m))
    wavelength = _add(info, "Wavelength")
    for key, value in zip(("MIN", "MAX", "CENTRAL"), wavelengths, strict=True):
        _add(wavelength, key, f"{value:g}", unit="nm")


def sun_distance_correction(when: datetime) -> float:
    """U, the inverse square of the distance to the sun in astronomical units.

    d = (1 - 0.01673 cos(0.0172 (t - 2))), t in days since 1950, and U = 1 / d^2 as the products
    define it.
    """
    days = (when.replace(tzinfo=None) - datetime(1950, 1, 1)).total_seconds() / 86400
    return float((1 - 0.01673 * math.cos(0.0172 * (days - 2))) ** -2)


def granule_metadata(product: L1CProduct, masks: Iterable[str] = ()) -> bytes:
    """`MTD_TL.xml`: sensing time, grid, sun angles and masks (their paths) of the granule."""
    root = _root("Level-1C_Tile_ID", "S2_PDI_Level-1C_Tile_Metadata.xsd")
    general = _add(root, "n1:General_Info")
    _add(general, "TILE_ID", _granule_id(product), metadataLevel="Brief")
    _add(general, "DATASTRIP_ID", _datastrip_id(product), metadataLevel="Standard")
    _add(general, "DOWNLINK_PRIORITY", "NOMINAL", metadataLevel="Standard")
    _add(general, "SENSING_TIME", _microseconds(product.acquired), metadataLevel="Standard")
    archiving = _add(general, "Archiving_Info", metadataLevel="Expertise")
    _add(archiving, "ARCHIVING_CENTRE", _CENTRE)
    _add(archiving, "ARCHIVING_TIME", _microseconds(product.generated))
    geometric = _add(root, "n1:Geometric_Info")
    _tile_geocoding(_add(geometric, "Tile_Geocoding", metadataLevel="Brief"), product)
    angles = _add(geometric, "Tile_Angles", metadataLevel="Standard")
    sun = _add(angles, "Mean_Sun_Angle")
    _add(sun, "ZENITH_ANGLE", f"{product.sun_zenith:.10g}", unit="deg")
    _add(sun, "AZIMUTH_ANGLE", f"{product.sun_azimuth:.10g}", unit="deg")
    quality = _add(root, "n1:Quality_Indicators_Info", metadataLevel="Standard")
    content = _add(quality, "Image_Content_QI")
    _add(content, "CLOUDY_PIXEL_PERCENTAGE", f"{product.cloud_cover:.4f}")
    _add(content, "DEGRADED_MSI_DATA_PERCENTAGE", "0")
    _mask_names(quality, masks)
    return _xml(root)


def _mask_names(quality: ET.Element, masks: Iterable[str]) -> None:
    """Type and band of each mask, as its file name says: `MSK_DETFOO_B01.jp2`."""
    paths = list(masks)
    if not paths:
        return
    pixels = _add(quality, "Pixel_Level_QI", geometry="FULL_RESOLUTION")
    for path in paths:
        kind, _, name = PurePosixPath(path).stem.rpartition("_")
        of_band = {} if name == "B00" else {"bandId": str(band(name).band_id)}
        _add(pixels, "MASK_FILENAME", path, **of_band, type=kind)


def _tile_geocoding(parent: ET.Element, product: L1CProduct) -> None:
    hemisphere = "S" if product.tile.southern else "N"
    name = f"WGS84 / UTM zone {product.tile.zone:02d}{hemisphere}"
    _add(parent, "HORIZONTAL_CS_NAME", name)
    _add(parent, "HORIZONTAL_CS_CODE", f"EPSG:{product.tile.epsg}")
    for resolution in (10, 20, 60):
        size = _add(parent, "Size", resolution=str(resolution))
        for key, count in zip(("NROWS", "NCOLS"), product.shape(resolution), strict=True):
            _add(size, key, str(count))
    easting, northing = product.tile.upper_left()
    for resolution in (10, 20, 60):
        position = _add(parent, "Geoposition", resolution=str(resolution))
        _add(position, "ULX", str(easting))
        _add(position, "ULY", str(northing))
        _add(position, "XDIM", str(resolution))
        _add(position, "YDIM", str(-resolution))


def _footprint(product: L1CProduct) -> str:
    """The outline as latitude and longitude of its corners, closed."""
    from rasterio.warp import transform

    left, top = product.tile.upper_left()
    right, bottom = left + product.width * PIXEL_SIZE_M, top - product.height * PIXEL_SIZE_M
    corners_x, corners_y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    longitudes, latitudes = transform(
        f"EPSG:{product.tile.epsg}", "EPSG:4326", corners_x, corners_y
    )
    pairs = zip(latitudes, longitudes, strict=True)
    return " ".join(f"{latitude:.9f} {longitude:.9f}" for latitude, longitude in pairs)


def manifest(product: L1CProduct, files: Sequence[ManifestFile]) -> bytes:
    """`manifest.safe`: the list of the product's files with their sizes and MD5 sums."""
    root = ET.Element(
        "xfdu:XFDU",
        {
            "xmlns:gml": "http://www.opengis.net/gml",
            "xmlns:safe": "http://www.esa.int/safe/sentinel/1.1",
            "xmlns:xfdu": "urn:ccsds:schema:xfdu:1",
            "version": "esa/safe/sentinel/1.1/sentinel-2/msi/archive_l1c_user_product",
        },
    )
    package = _add(
        _add(root, "informationPackageMap"),
        "xfdu:contentUnit",
        textInfo="SENTINEL-2 MSI Level-1C User Product",
        unitType="Product_Level-1C",
    )
    for file in files:
        unit = _add(package, "xfdu:contentUnit", ID=f"{_file_id(file)}_Unit")
        _add(unit, "dataObjectPointer", dataObjectID=_file_id(file))
    _manifest_metadata(_add(root, "metadataSection"), product)
    objects = _add(root, "dataObjectSection")
    for file in files:
        mime = _MIME[PurePosixPath(file.path).suffix]
        data = _add(objects, "dataObject", ID=_file_id(file))
        stream = _add(data, "byteStream", mimeType=mime, size=str(file.size))
        _add(stream, "fileLocation", href=f"./{file.path}", locatorType="URL")
        _add(stream, "checksum", file.md5, checksumName="MD5")
    return _xml(root)


def _manifest_metadata(section: ET.Element, product: L1CProduct) -> None:
    period = _metadata_object(section, "acquisitionPeriod", "Acquisition Period")
    _add(_add(period, "safe:acquisitionPeriod"), "safe:startTime", _milliseconds(product.acquired))
    orbit = _metadata_object(section, "measurementOrbitReference", "Orbit Reference")
    orbit = _add(orbit, "safe:orbitReference")
    absolute = _add(orbit, "safe:orbitNumber", f"{product.absolute_orbit:06d}")
    absolute.attrib |= {"groundTrackDirection": "descending", "type": "start"}
    _add(orbit, "safe:relativeOrbitNumber", f"{product.relative_orbit:03d}", type="start")
    platform = _metadata_object(section, "platform", "Platform Description")
    platform = _add(platform, "safe:platform")
    _add(platform, "safe:familyName", "SENTINEL")
    _add(platform, "safe:number", product.spacecraft.removeprefix("S"))
    frames = _add(_metadata_object(section, "measurementFrameSet", "Frame Set"), "safe:frameSet")
    place = _add(frames, "safe:footPrint", srsName="http://www.opengis.net/gml/srs/epsg.xml#4326")
    _add(place, "gml:coordinates", _footprint(product))


def _metadata_object(section: ET.Element, name: str, text: str) -> ET.Element:
    entry = _add(section, "metadataObject", ID=name, category="DMD", classification="DESCRIPTION")
    wrap = _add(entry, "metadataWrap", mimeType="text/xml", textInfo=text)
    return _add(wrap, "xmlData")


def _check_product(product: L1CProduct) -> None:
    if product.spacecraft not in _INSTRUMENTS:
        raise S2PairsError(f"spacecraft is S2A or S2B, not {product.spacecraft!r}")
    if not re.fullmatch(r"\d\d\.\d\d", product.baseline, re.ASCII):
        raise S2PairsError(f"a baseline looks like 02.09, not {product.baseline!r}")
    for moment in (product.acquired, product.generated):
        if moment.utcoffset() != timedelta(0):
            raise S2PairsError(f"{moment} is not in UTC; give a datetime with tzinfo=UTC")
    if not all(1 <= side <= TILE_SIZE_PX for side in (product.height, product.width)):
        raise S2PairsError(f"{product.height} x {product.width} pixels are no part of a tile")
    if not 0 <= product.cloud_cover <= 100:
        raise S2PairsError(f"cloud cover is in percent, not {product.cloud_cover}")
    expected = set(usual_offsets(product.baseline))
    if set(product.add_offset) != expected:
        raise S2PairsError(
            f"a product of baseline {product.baseline} has offsets for {len(expected)} bands, "
            f"got {len(product.add_offset)}; usual_offsets() gives them"
        )


def _granule_id(product: L1CProduct) -> str:
    return (
        f"{product.spacecraft}_OPER_MSI_L1C_TL_{_CENTRE}_{_compact(product.generated)}"
        f"_A{product.absolute_orbit:06d}_T{product.tile}_N{product.baseline}"
    )


def _datastrip_id(product: L1CProduct) -> str:
    return (
        f"{product.spacecraft}_OPER_MSI_L1C_DS_{_CENTRE}_{_compact(product.generated)}"
        f"_S{_compact(product.acquired)}_N{product.baseline}"
    )


def _spacecraft(product: L1CProduct) -> str:
    return product.spacecraft.replace("S2", "Sentinel-2")


def _file_id(file: ManifestFile) -> str:
    return re.sub(r"\W", "_", PurePosixPath(file.path).name)


def _compact(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%S")


def _milliseconds(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _microseconds(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def _root(name: str, schema: str) -> ET.Element:
    # Prefixes are written out: ElementTree's own table of prefixes is one for the whole process,
    # and the files use n1 for two namespaces.
    space = f"{_PSD}/{schema}"
    attributes = {"xmlns:n1": space, "xmlns:xsi": _XSI, "xsi:schemaLocation": f"{space} {space}"}
    return ET.Element(f"n1:{name}", attributes)


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _xml(root: ET.Element) -> bytes:
    ET.indent(root, "  ")
    return bytes(ET.tostring(root, encoding="UTF-8", xml_declaration=True))
