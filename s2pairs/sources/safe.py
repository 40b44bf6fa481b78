"""Products on disk in the layout of the provider: `*.SAFE` folders, Level-1C and Level-2A.

Metadata are read by element names without namespaces, since those changed with product versions.
Each band is opened by its own path: GDAL's SENTINEL2 driver answers zeros for a missing file.
"""

import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from s2pairs.bands import BANDS, band
from s2pairs.errors import SceneError, SourceError, TileError
from s2pairs.scenes import Grid, LeftOut, Listing, PixelWindow, Scene, utc
from s2pairs.tiles import PIXEL_SIZE_M, TileId

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_TILE_IN_NAME = re.compile(r"_T([0-9]{2}[A-Z]{3})_", re.ASCII)
_OLD_NAME = re.compile(r"S2[A-Z]_[A-Z]{4}_PRD_", re.ASCII)
_BASELINE_OF_DATATAKE = re.compile(r"_N\d\d\.\d\d$", re.ASCII)
# Where a genuine tile id names the processing centre, such as _TL_SGS__
_SIMULATION_CENTRE = "_TL_SIM__"
_FIRST_BASELINE_WITH_OFFSET = 4.0
_LEVELS = {"Level-1C": "L1C", "Level-2A": "L2A"}


class SafeCatalogue:
    """The products below one folder, for the bands that a cube wants."""

    def __init__(self, folder: Path, bands: Sequence[str]) -> None:
        if not folder.is_dir():
            raise SourceError(f"{folder} is not a folder of .SAFE products")
        self._bands = tuple(bands)
        self._folders: dict[str, list[Path]] = {}
        self._unnamed: list[Path] = []
        for path in _safe_folders(folder):
            match = _TILE_IN_NAME.search(path.name)
            if match:
                self._folders.setdefault(match[1], []).append(path)
            else:
                self._unnamed.append(path)
        if not self._folders and not self._unnamed:
            raise SourceError(
                f"{folder} holds no .SAFE product; expected folders such as "
                "S2A_MSIL1C_20200717T221941_N0209_R029_T01LAC_20200717T234135.SAFE"
            )

    def scenes(self, tile: TileId) -> Listing:
        """The usable products of a tile; a broken or incomplete one is left out with its reason."""
        scenes: list[Scene] = []
        left_out: list[LeftOut] = []
        for folder in self._folders.get(tile.name, []):
            try:
                scenes.append(self._scene(folder, tile))
            except SceneError as error:
                left_out.append(LeftOut(folder.name.removesuffix(".SAFE"), f"unusable: {error}"))
        left_out += [
            LeftOut(folder.name.removesuffix(".SAFE"), _why_unnamed(folder))
            for folder in self._unnamed
            if any(folder.glob(f"GRANULE/*_T{tile}_*"))
        ]
        return Listing(tuple(scenes), tuple(left_out))

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Digital numbers (height, width) of a band in each window; see `read_band`."""
        return read_band(Path(scene.assets[band]), windows)

    def _scene(self, folder: Path, tile: TileId) -> Scene:
        scene = read_scene(folder, self._bands)
        if scene.tile != tile:
            raise SceneError(f"its metadata are of tile {scene.tile}")
        for path in map(Path, scene.assets.values()):
            check_complete(path)
            _check_grid(path, scene.grid)
        return scene


def _safe_folders(folder: Path) -> list[Path]:
    """Every `*.SAFE` folder at or below `folder`, sorted by name; none is looked into."""
    if folder.name.endswith(".SAFE"):
        return [folder]
    found = []
    for root, names, _ in os.walk(folder):
        found += [Path(root, name) for name in names if name.endswith(".SAFE")]
        names[:] = [name for name in names if not name.endswith(".SAFE")]
    return sorted(found, key=lambda path: (path.name, path))


def _why_unnamed(folder: Path) -> str:
    if _OLD_NAME.match(folder.name):
        return "old format: products from before December 2016 hold several tiles and are not read"
    return "no tile in its name: give the folder the name that the provider gave it"


def read_scene(folder: Path, bands: Sequence[str]) -> Scene:
    """What a product's metadata say; `SceneError` where they are broken or a band file is missing.

    The offsets come from the metadata alone, never from date or baseline: an old scene that was
    reprocessed carries them too.
    """
    product = _Xml(_only(folder, "MTD_MSIL*.xml"))
    granule = _Xml(_only(folder, "GRANULE/*/MTD_TL.xml"))
    level = _LEVELS.get(product.text("PROCESSING_LEVEL"))
    if level is None:
        raise SceneError(f"processing level {product.text('PROCESSING_LEVEL')!r} is not L1C or L2A")
    quantity = "QUANTIFICATION_VALUE" if level == "L1C" else "BOA_QUANTIFICATION_VALUE"
    images = granule.path.parent / "IMG_DATA"
    quantification = product.number(quantity)
    if quantification <= 0:
        raise SceneError(f"{product.path.name}: {quantity} is {quantification:g}, not above 0")
    grid = _grid(granule)
    return Scene(
        product=folder.name.removesuffix(".SAFE"),
        tile=_tile(granule),
        level=level,
        acquired=product.moment("DATATAKE_SENSING_START"),
        generated=product.moment("GENERATION_TIME"),
        datatake=_BASELINE_OF_DATATAKE.sub("", product.attribute("Datatake", "datatakeIdentifier")),
        baseline=f"{product.number('PROCESSING_BASELINE'):05.2f}",
        cloud_cover=product.number("Cloud_Coverage_Assessment"),
        quantification=quantification,
        add_offset=_offsets(
            product, "RADIO_ADD_OFFSET" if level == "L1C" else "BOA_ADD_OFFSET", bands
        ),
        grid=grid,
        assets={name: str(_band_file(images, name, level)) for name in bands},
        simulated=_SIMULATION_CENTRE in granule.text("TILE_ID"),
        coverage=_coverage(product, granule, grid),
    )


class _Xml:
    """An XML file, asked by element names without namespace; `SceneError` on all that is amiss."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._elements = list(ET.parse(path).iter())
        except (ET.ParseError, OSError, ValueError, LookupError) as error:
            raise SceneError(f"{path.name} cannot be read: {error}") from error

    def all(self, name: str) -> Iterator[ET.Element]:
        return (each for each in self._elements if each.tag.rpartition("}")[2] == name)

    def first(self, name: str) -> ET.Element:
        element = next(self.all(name), None)
        if element is None:
            raise SceneError(f"{self.path.name} has no element {name}")
        return element

    def text(self, name: str) -> str:
        return (self.first(name).text or "").strip()

    def number(self, name: str) -> float:
        try:
            value = float(self.text(name))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SceneError(f"{self.path.name}: {name} is {self.text(name)!r}, not a number")
        return value

    def moment(self, name: str) -> datetime:
        try:
            return utc(self.text(name))
        except ValueError as error:
            raise SceneError(f"{self.path.name}: {name} is no moment: {error}") from error

    def attribute(self, name: str, key: str) -> str:
        value = self.first(name).get(key)
        if value is None:
            raise SceneError(f"{self.path.name}: {name} has no attribute {key}")
        return value


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SceneError(f"holds {len(found)} files {pattern}, expected one")
    return found[0]


def _tile(granule: _Xml) -> TileId:
    """The tile of `S2A_OPER_MSI_L1C_TL_SGS__20200717T234135_A026481_T01LAC_N02.09`."""
    parts = granule.text("TILE_ID").split("_")
    try:
        return TileId.parse(parts[-2] if len(parts) > 1 else "")
    except TileError as error:
        raise SceneError(f"{granule.path.name}: TILE_ID: {error}") from error


def _offsets(product: _Xml, name: str, bands: Sequence[str]) -> Mapping[str, int]:
    """Offset in digital numbers by band; products before baseline 04.00 have none, that is 0.

    From it on, or once one band has an offset, each of `bands` must have one: 0 in its place would
    add 0.1 to the reflectance without a word.
    """
    named = set()
    offsets = {each.name: 0 for each in BANDS}
    by_id = {str(each.band_id): each.name for each in BANDS}
    for element in product.all(name):
        key = by_id.get(element.get("band_id", ""))
        try:
            offsets[key or ""] = int(element.text or "")
        except ValueError:
            key = None
        if key is None:
            raise SceneError(f"{product.path.name}: cannot read {ET.tostring(element)!r}")
        named.add(key)
    missing = [each for each in bands if each not in named]
    if missing and (named or product.number("PROCESSING_BASELINE") >= _FIRST_BASELINE_WITH_OFFSET):
        raise SceneError(f"{product.path.name} has no {name} for {', '.join(missing)}")
    return offsets


def _coverage(product: _Xml, granule: _Xml, grid: Grid) -> float:
    """The part of the grid with data, 0 to 1: from the share of no-data, else from the footprint.

    Level-1C metadata have no such share before it came into use; all have a footprint, latitudes
    and longitudes in turn. 1 where neither can be read: it only serves to compare.
    """
    from rasterio.warp import transform

    for xml in (granule, product):
        with suppress(SceneError):
            return 1 - xml.number("NODATA_PIXEL_PERCENTAGE") / 100
    try:
        numbers = np.array(product.text("EXT_POS_LIST").split(), dtype=np.float64)
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
        raise SceneError(f"{granule.path.name}: {code!r} is not a UTM zone such as EPSG:32631")
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
        raise SceneError(f"{granule.path.name}: broken Tile_Geocoding: {error!r}") from error


def _at_10_m(granule: _Xml, name: str) -> dict[str, str]:
    """Texts of the children of the element `name` whose resolution is 10 m."""
    for element in granule.all(name):
        if element.get("resolution") == "10":
            return {child.tag.rpartition("}")[2]: child.text or "" for child in element}
    raise SceneError(f"{granule.path.name} has no element {name} for 10 m")


def _band_file(images: Path, name: str, level: str) -> Path:
    """L1C: `…_B02.jp2`. L2A: the finest of `R10m/…_B02_10m.jp2`, `R20m/…`, `R60m/…`."""
    band(name)
    patterns = (
        [f"*_{name}.jp2"]
        if level == "L1C"
        else [f"R{metres}m/*_{name}_{metres}m.jp2" for metres in (10, 20, 60)]
    )
    for pattern in patterns:
        found = sorted(images.glob(pattern))
        if len(found) == 1:
            return found[0]
    raise SceneError(f"band {name} is missing (no single {' or '.join(patterns)})")


def check_complete(path: Path) -> None:
    """Raise `SceneError` if a JP2 file was cut short, without decoding it.

    A JP2 file is a row of boxes (ISO/IEC 15444-1, annex I): four bytes of length, four of type;
    length 1 means that eight more bytes hold it, 0 that the box reaches the end of the file. The
    codestream in box `jp2c` ends with the marker FF D9.
    """
    try:
        whole = _codestream_ends(path)
    except OSError as error:
        raise SceneError(f"{path.name} cannot be read: {error.strerror}") from error
    if not whole:
        size = path.stat().st_size
        raise SceneError(f"{path.name} is cut short or no JPEG 2000 file ({size} bytes)")


def _codestream_ends(path: Path) -> bool:
    size = path.stat().st_size
    start = 0
    with path.open("rb") as file:
        while start + 8 <= size:
            file.seek(start)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4]), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16])
            end = start + length if length else size
            if end > size or end < start + 8:
                break
            if kind == b"jp2c":
                file.seek(end - 2)
                return file.read(2) == b"\xff\xd9"
            start = end
    return False


def _check_grid(path: Path, grid: Grid) -> None:
    """Raise `SceneError` unless a band file covers exactly the ground that the metadata say."""
    import rasterio

    try:
        with rasterio.open(path) as file:
            step, pixels = file.transform.a, (file.height, file.width)
            corner = (file.transform.c, file.transform.f)
            epsg, kinds = file.crs.to_epsg() if file.crs else None, file.dtypes
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path.name} cannot be opened: {error}") from error
    if kinds != ("uint16",):
        raise SceneError(f"{path.name} holds {kinds}, expected one layer of uint16")
    if step % PIXEL_SIZE_M or not step:
        raise SceneError(f"{path.name} has pixels of {step:g} m, expected 10, 20 or 60")
    factor = round(step) // PIXEL_SIZE_M
    covers = tuple(math.ceil(length / factor) for length in (grid.height, grid.width))
    if (epsg, corner, pixels) != (grid.epsg, (grid.left, grid.top), covers):
        raise SceneError(
            f"{path.name} lies at {epsg} {corner} with {pixels} pixels of {step:g} m; its "
            f"metadata say {grid.epsg} {(grid.left, grid.top)} with {covers}"
        )


def read_band(path: Path, windows: Sequence[PixelWindow]) -> list[npt.NDArray[np.uint16]]:
    """Digital numbers (height, width) of one band file in each window of 10 m pixels.

    Coarser bands are repeated, not interpolated: each 10 m pixel has the number of the coarse
    pixel that it lies in, and no-data spreads to no neighbour. The file is opened once, so that
    windows in one block of it cost one decoding. `SceneError` if the file is broken or ends
    before a window does.
    """
    import rasterio

    try:
        with rasterio.open(path) as file:
            return [_read_window(file, window) for window in windows]
    except rasterio.errors.RasterioError as error:
        raise SceneError(f"{path} cannot be read: {error}") from error


def _read_window(file: "DatasetReader", window: PixelWindow) -> npt.NDArray[np.uint16]:
    from rasterio.windows import Window

    factor = round(file.transform.a) // PIXEL_SIZE_M
    top, left = window.row // factor, window.col // factor
    bottom = math.ceil((window.row + window.height) / factor)
    right = math.ceil((window.col + window.width) / factor)
    if bottom > file.height or right > file.width:
        raise SceneError(f"{file.name} has no pixels at {window}")
    coarse = file.read(1, window=Window(left, top, right - left, bottom - top))
    fine = coarse.repeat(factor, axis=0).repeat(factor, axis=1)
    row, col = window.row - top * factor, window.col - left * factor
    return np.ascontiguousarray(fine[row : row + window.height, col : col + window.width])
