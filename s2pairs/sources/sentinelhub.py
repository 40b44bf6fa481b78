"""Scenes of Sentinel Hub: its Catalog says what there is, its Process API gives the pixels.

Requests are made by the package `sentinelhub` and sent by `sentinelhub_service.py`. Pixels come
corrected for the offset of baseline 04.00 (`harmonizeValues`).
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from s2pairs.bands import STORED_NO_DATA, STORED_SATURATED
from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError, SourceError
from s2pairs.masks import Flags, from_scene_classes
from s2pairs.scenes import Grid, LeftOut, Listing, PixelWindow, Scene, Wanted, utc
from s2pairs.sources import items
from s2pairs.sources.offsets import ADDED
from s2pairs.sources.sentinelhub_service import Pages, Sender, collection, end_points, keyless
from s2pairs.sources.web import Patience
from s2pairs.tiles import PIXEL_SIZE_M, TileId

LONGEST_SIDE_PX = 2500
_PLACES = ("", "cdse")
_LEVELS = ("L1C", "L2A")
_PAGE = 100
_MARGIN = timedelta(seconds=1)  # items are dated to the second
_UNIT_PX, _UNIT_BANDS, _LEAST_AREA, _LEAST_UNITS = 512 * 512, 3, 0.01, 0.005


@dataclass(frozen=True)
class Cost:
    """What a reading takes of a quota."""

    requests: int
    processing_units: float


def cost_of(windows: Sequence[PixelWindow], bands: Sequence[str], dates: int, level: str) -> Cost:
    """Of reading windows at a number of dates; no request is made.

    A processing unit is 512 x 512 pixels of 3 bands in up to 16 bits; the data mask is free.
    Level-2A has one band more, the scene classification. The least is a hundredth of the area and
    0.005 units a request. Source: Sentinel Hub, "Processing Unit definition".
    """
    parts = [part for window in windows for part in _parts(window)]
    count = len(bands) + (level == "L2A")
    units = sum(
        max(
            _LEAST_UNITS,
            max(_LEAST_AREA, part.height * part.width / _UNIT_PX) * count / _UNIT_BANDS,
        )
        for part in parts
    )
    return Cost(requests=len(parts) * dates, processing_units=units * dates)


class SentinelHubCatalogue:
    """The products of one collection, for the bands that a cube wants.

    `place` is empty for the end points of the package's configuration (Sentinel Hub unless it
    says otherwise) or `cdse`; behind `#` stands the level, L1C unless said. Credentials are those
    of the package's configuration, or SH_CLIENT_ID and SH_CLIENT_SECRET.
    """

    def __init__(
        self,
        place: str,
        bands: Sequence[str],
        *,
        wanted: Wanted | None,
        patience: Patience,
    ) -> None:
        service, _, level = place.partition("#")
        if service not in _PLACES or (level or "L1C") not in _LEVELS:
            raise SourceError(
                f"unknown source sentinelhub:{place}; expected sentinelhub or sentinelhub:cdse, "
                "with #L2A behind it for surface reflectance"
            )
        self._bands = tuple(bands)
        self._level = level or "L1C"
        self._wanted = wanted
        self._ends = end_points(service)
        self._service = Sender(self._ends, patience)
        self._kept = _Kept()

    def scenes(self, tile: TileId) -> Listing:
        """The products of a tile that the Catalog lists, by name."""
        scenes: dict[str, Scene] = {}
        left_out: list[LeftOut] = []
        for name, item in self._search(tile).items():
            try:
                if items.tile_of(name, item["properties"]) == tile.name:
                    scene = self._scene(item, tile)
                    scenes[scene.product] = scene
            except SceneError as error:
                left_out.append(LeftOut(name, f"unusable: {error}"))
            except items.MALFORMED as error:
                why = f"unusable: its item cannot be understood: {error!r}"
                left_out.append(LeftOut(name, why))
        return Listing(
            tuple(scenes[name] for name in sorted(scenes)),
            tuple(sorted(left_out, key=lambda entry: entry.product)),
        )

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Numbers (height, width) of a band in each window, with 1000 added as by baseline 04.00.

        All bands of a window come with one request, and are kept until this thread reads other
        windows or another scene.
        """
        index = self._bands.index(band)
        return [layers[index] for layers in self._layers(scene, windows)]

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What the scene classification says; Level-1C has none here."""
        if self._level != "L2A":
            return None
        classes = [layers[-1] for layers in self._layers(scene, windows)]
        return [from_scene_classes(each.astype(np.uint8)) for each in classes]

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """Of reading these windows; all bands of the catalogue come at once, uncompressed."""
        taken = cost_of(windows, self._bands, 1, scene.level)
        pixels = sum(window.height * window.width for window in windows)
        layers = len(self._bands) + 1 + (scene.level == "L2A")
        return ReadCost(
            bytes=2 * layers * pixels,
            pixels=len(bands) * pixels,
            requests=taken.requests,
            processing_units=taken.processing_units,
        )

    def cost_of_listing(self, tile: TileId, wanted: Wanted) -> ReadCost:
        """Nothing: the Catalog says what there is, and no pixel is looked at."""
        return ReadCost(0, 0)

    def _search(self, tile: TileId) -> dict[str, Mapping[str, Any]]:
        """Items by name."""
        from sentinelhub import CRS, BBox, SentinelHubCatalog

        catalog = SentinelHubCatalog(config=keyless(self._ends))
        # a stand-in with the one method that a search calls
        catalog.client = Pages(self._service)  # type: ignore[assignment]
        wanted = self._wanted
        start = wanted.start if wanted and wanted.start else _FIRST_DAY
        end = wanted.end if wanted and wanted.end else datetime.now(start.tzinfo)
        found: dict[str, Mapping[str, Any]] = {}
        for box in items.boxes(tile):
            pages = catalog.search(
                collection(self._level, self._ends.base_url),
                bbox=BBox(box, CRS.WGS84),
                time=(start, end + _LONGEST_PASS),
                limit=_PAGE,
            )
            try:
                found |= {item["id"]: item for item in pages if isinstance(item.get("id"), str)}
            except items.MALFORMED as error:
                raise SourceError(
                    f"the Catalog answers what is no search result: {error!r}"
                ) from error
        return found

    def _scene(self, item: Mapping[str, Any], tile: TileId) -> Scene:
        properties = item["properties"]
        said = items.describe(item["id"], properties)
        if said.level != self._level:
            raise SceneError(f"it is {said.level}, not {self._level}")
        grid = items.stated_grid(properties, tile)
        sensed = utc(str(properties.get("datetime")))
        return Scene(
            product=said.product,
            tile=tile,
            level=said.level,
            acquired=said.acquired,
            generated=said.generated,
            datatake=said.datatake,
            baseline=said.baseline or "00.00",
            cloud_cover=items.cloud_cover(properties),
            quantification=10_000,
            add_offset=dict.fromkeys(self._bands, ADDED),
            grid=grid,
            assets=dict.fromkeys(self._bands, f"{sensed:%Y-%m-%dT%H:%M:%SZ}"),
            simulated=False,
            coverage=items.coverage(properties, item.get("geometry"), grid),
        )

    def _layers(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[npt.NDArray[np.uint16]]:
        """All layers (band, height, width) of each window, and the classes last for Level-2A."""
        if self._wanted is None:
            raise SourceError(
                "choosing dates by region reads every scene from Sentinel Hub, which takes "
                "processing units, so a plan cannot do it; plan with --choice tile"
            )
        kept = self._kept.only(scene, windows)
        for window in windows:
            if window not in kept:
                kept[window] = self._whole(scene, window)
        return [kept[window] for window in windows]

    def _whole(self, scene: Scene, window: PixelWindow) -> npt.NDArray[np.uint16]:
        """All layers of a window, with as many requests as its size takes."""
        count = len(self._bands) + (self._level == "L2A")
        layers = np.empty((count, window.height, window.width), dtype=np.uint16)
        for part in _parts(window):
            top, left = part.row - window.row, part.col - window.col
            layers[:, top : top + part.height, left : left + part.width] = self._request(
                scene, part, count
            )
        return layers

    def _request(self, scene: Scene, part: PixelWindow, layers: int) -> npt.NDArray[np.uint16]:
        from sentinelhub import CRS, BBox, MimeType, SentinelHubRequest

        names = [*self._bands, *(["SCL"] if self._level == "L2A" else [])]
        sensed = utc(scene.assets[self._bands[0]])
        request = SentinelHubRequest(
            evalscript=_evalscript(names, scene),
            input_data=[
                SentinelHubRequest.input_data(
                    collection(self._level, self._ends.base_url),
                    time_interval=(sensed - _MARGIN, sensed + _MARGIN),
                    other_args={"processing": {"harmonizeValues": True}},
                )
            ],
            responses=[SentinelHubRequest.output_response("default", MimeType.TIFF)],
            bbox=BBox(_corners(scene.grid, part), CRS(scene.grid.epsg)),
            size=(part.width, part.height),
            config=keyless(self._ends),
        )
        (prepared,) = request.download_list
        limit = _LARGEST_HEAD + 2 * 2 * (layers + 1) * part.height * part.width
        content = self._service.process(str(prepared.url), prepared.post_values, limit)
        return _layers(content, layers, part, len(self._bands), scene)


_FIRST_DAY = utc("2015-06-23")
_LONGEST_PASS = timedelta(hours=1)
_LARGEST_HEAD = 2**20  # bytes of a GeoTIFF beside its pixels


class _Kept(threading.local):
    """The windows that a thread read last, all of one scene; a build reads them band by band.

    As many as one task reads at a time, so that none is asked for twice, and no more.
    """

    def __init__(self) -> None:
        self._scene = "", ""
        self._windows: dict[PixelWindow, npt.NDArray[np.uint16]] = {}

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        # another process reads its own windows
        return _Kept, ()

    def only(
        self, scene: Scene, windows: Sequence[PixelWindow]
    ) -> dict[PixelWindow, npt.NDArray[np.uint16]]:
        """Forget all but these windows of this scene. Returns those that are there, to add to."""
        key = scene.tile.name, scene.product
        before = self._windows if key == self._scene else {}
        self._scene = key
        self._windows = {window: before[window] for window in windows if window in before}
        return self._windows


def _parts(window: PixelWindow) -> list[PixelWindow]:
    """The window in pieces of at most 2500 pixels a side, about equal."""
    rows, columns = _cuts(window.height), _cuts(window.width)
    return [
        PixelWindow(window.row + top, window.col + left, bottom - top, right - left)
        for top, bottom in rows
        for left, right in columns
    ]


def _cuts(length: int) -> list[tuple[int, int]]:
    count = math.ceil(length / LONGEST_SIDE_PX)
    ends = [round(length * number / count) for number in range(count + 1)]
    return list(pairwise(ends))


def _corners(grid: Grid, window: PixelWindow) -> tuple[float, float, float, float]:
    """West, south, east, north of a window in metres."""
    west = grid.left + window.col * PIXEL_SIZE_M
    north = grid.top - window.row * PIXEL_SIZE_M
    east, south = west + window.width * PIXEL_SIZE_M, north - window.height * PIXEL_SIZE_M
    return west, south, east, north


def _evalscript(names: Sequence[str], scene: Scene) -> str:
    """Digital numbers and the data mask of one product alone.

    At one moment the satellite sees several tiles, which overlap; a pixel is to come from the one
    tile that was asked for, and where the service knows products by name, from that product.
    """
    tile = scene.tile.name
    path = f"/{int(tile[:2])}/{tile[2]}/{tile[3:]}/"
    samples = ", ".join(f"s.{name}" for name in (*names, "dataMask"))
    return f"""//VERSION=3
const PRODUCT = "{scene.product}";
const TILE = "T{tile}";
const PATH = "{path}";
function setup() {{
  return {{
    input: [{{ bands: {[*names, "dataMask"]!r}, units: "DN" }}],
    output: {{ bands: {len(names) + 1}, sampleType: "UINT16" }},
    mosaicking: "TILE",
  }};
}}
function preProcessScenes(collections) {{
  const all = collections.scenes.tiles;
  const text = (tile) => `${{tile.dataPath}} ${{tile.tileOriginalId}}`;
  const named = all.filter((tile) => text(tile).includes(PRODUCT));
  const here = all.filter((tile) => text(tile).includes(TILE) || text(tile).includes(PATH));
  collections.scenes.tiles = named.length ? named : here;
  return collections;
}}
function evaluatePixel(samples) {{
  const s = samples.find((sample) => sample.dataMask);
  return s ? [{samples}] : Array({len(names) + 1}).fill(0);
}}
"""


def _layers(
    content: bytes, layers: int, part: PixelWindow, bands: int, scene: Scene
) -> npt.NDArray[np.uint16]:
    """The layers of an answer, with 1000 added to bands, 0 where there is no data."""
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    if not content:
        raise SceneError(f"{scene.product}: the service gave no GeoTIFF, but nothing")
    try:
        with MemoryFile(content) as file, file.open(driver="GTiff") as image:
            shape, kinds = (image.count, image.height, image.width), set(image.dtypes)
            if shape != (layers + 1, part.height, part.width) or kinds != {"uint16"}:
                raise SceneError(
                    f"{scene.product}: the service gave {shape} of {kinds}, expected "
                    f"{(layers + 1, part.height, part.width)} of uint16"
                )
            read = image.read()
    except RasterioError as error:
        raise SceneError(f"{scene.product}: the service gave no GeoTIFF: {error}") from error
    numbers = np.minimum(read[:bands].astype(np.int32) - ADDED, STORED_SATURATED)
    numbers[:, read[-1] == 0] = STORED_NO_DATA
    return np.concatenate([numbers.astype(np.uint16), read[bands:-1]])
