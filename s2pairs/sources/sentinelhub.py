"""Scenes of Sentinel Hub: its Catalog says what there is, its Process API gives the pixels.

Requests are made by the package `sentinelhub`, with its own configuration; they are sent by our
session, for the package waits for ever on a 429, gives up on a token that died, and misreads dates.
Pixels come corrected for the offset of baseline 04.00 (`harmonizeValues`).
"""

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from s2pairs.bands import STORED_NO_DATA, STORED_SATURATED
from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError, SourceError
from s2pairs.masks import Flags, from_scene_classes
from s2pairs.scenes import Grid, LeftOut, Listing, PixelWindow, Scene, Wanted, utc
from s2pairs.sources import items
from s2pairs.sources.offsets import ADDED
from s2pairs.sources.web import Patience, Reach, Web
from s2pairs.tiles import PIXEL_SIZE_M, TileId

if TYPE_CHECKING:
    from sentinelhub import SHConfig

LONGEST_SIDE_PX = 2500
_CDSE_BASE = "https://sh.dataspace.copernicus.eu"
_CDSE_TOKEN = (
    "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
)
_PLACES = ("", "cdse")
_LEVELS = ("L1C", "L2A")
_KEPT_BYTES = 256 * 2**20
_PAGE = 100
_MARGIN = timedelta(seconds=1)  # items are dated to the second
_UNIT_PX, _UNIT_BANDS, _LEAST_AREA, _LEAST_UNITS = 512 * 512, 3, 0.01, 0.001


@dataclass(frozen=True)
class Cost:
    """What a reading takes of a quota."""

    requests: int
    processing_units: float


def cost_of(windows: Sequence[PixelWindow], bands: Sequence[str], dates: int, level: str) -> Cost:
    """Of reading windows at a number of dates; no request is made.

    A processing unit is 512 x 512 pixels of 3 bands in up to 16 bits; the data mask is free.
    Level-2A has one band more, the scene classification. Source: Sentinel Hub, "Definition of a
    processing unit".
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
        self._config = _configured(service)
        self._service = _Service(self._config, patience)
        self._pixels = _Kept()

    def scenes(self, tile: TileId) -> Listing:
        """The products of a tile that the Catalog lists, by name."""
        scenes: dict[str, Scene] = {}
        left_out: list[LeftOut] = []
        for item in self._search(tile):
            properties = item.get("properties", {})
            if items.tile_of(item["id"], properties) != tile.name:
                continue
            try:
                scene = self._scene(item, tile)
                scenes[scene.product] = scene
            except SceneError as error:
                left_out.append(LeftOut(str(item["id"]), f"unusable: {error}"))
        return Listing(
            tuple(scenes[name] for name in sorted(scenes)),
            tuple(sorted(left_out, key=lambda entry: entry.product)),
        )

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Numbers (height, width) of a band in each window, with 1000 added as by baseline 04.00.

        All bands of a window come with one request and are kept until they have been read.
        """
        index = self._bands.index(band)
        return [self._window(scene, window)[index] for window in windows]

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What the scene classification says; Level-1C has none here."""
        if self._level != "L2A":
            return None
        read = [self._window(scene, window)[len(self._bands)] for window in windows]
        return [from_scene_classes(each.astype(np.uint8)) for each in read]

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

    def _search(self, tile: TileId) -> list[Mapping[str, Any]]:
        from sentinelhub import CRS, BBox, SentinelHubCatalog

        catalog = SentinelHubCatalog(config=self._config)
        # a stand-in with the one method that a search calls
        catalog.client = self._service  # type: ignore[assignment]
        wanted = self._wanted
        start = wanted.start if wanted and wanted.start else _FIRST_DAY
        end = wanted.end if wanted and wanted.end else datetime.now(start.tzinfo)
        found = catalog.search(
            _collection(self._level, self._config.sh_base_url),
            bbox=BBox(items.bounds(tile), CRS.WGS84),
            time=(start, end + _LONGEST_PASS),
            limit=_PAGE,
        )
        try:
            return [item for item in found if isinstance(item.get("id"), str)]
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"the Catalog answers what is no search result: {error!r}") from error

    def _scene(self, item: Mapping[str, Any], tile: TileId) -> Scene:
        properties = item.get("properties", {})
        said = items.describe(item["id"], properties)
        if said.level != self._level:
            raise SceneError(f"it is {said.level}, not {self._level}")
        grid = _grid_of(properties, tile)
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

    def _window(self, scene: Scene, window: PixelWindow) -> npt.NDArray[np.uint16]:
        """All layers (band, height, width) of a window, and the classes last for Level-2A."""
        key = scene.product, window
        kept = self._pixels.get(key)
        if kept is None:
            layers = len(self._bands) + (self._level == "L2A")
            kept = np.empty((layers, window.height, window.width), dtype=np.uint16)
            for part in _parts(window):
                top, left = part.row - window.row, part.col - window.col
                kept[:, top : top + part.height, left : left + part.width] = self._request(
                    scene, part, layers
                )
            self._pixels.put(key, kept)
        return kept

    def _request(self, scene: Scene, part: PixelWindow, layers: int) -> npt.NDArray[np.uint16]:
        from sentinelhub import CRS, BBox, MimeType, SentinelHubRequest

        names = [*self._bands, *(["SCL"] if self._level == "L2A" else [])]
        sensed = utc(scene.assets[self._bands[0]])
        request = SentinelHubRequest(
            evalscript=_evalscript(names, scene),
            input_data=[
                SentinelHubRequest.input_data(
                    _collection(self._level, self._config.sh_base_url),
                    time_interval=(sensed - _MARGIN, sensed + _MARGIN),
                    other_args={"processing": {"harmonizeValues": True}},
                )
            ],
            responses=[SentinelHubRequest.output_response("default", MimeType.TIFF)],
            bbox=BBox(_corners(scene.grid, part), CRS(scene.grid.epsg)),
            size=(part.width, part.height),
            config=self._config,
        )
        (prepared,) = request.download_list
        content = self._service.process(str(prepared.url), prepared.post_values)
        return _layers(content, layers, part, len(self._bands), scene)


_FIRST_DAY = utc("2015-06-23")
_LONGEST_PASS = timedelta(hours=1)


def _configured(service: str) -> "SHConfig":
    from sentinelhub import SHConfig

    try:
        config = SHConfig()
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"the configuration of sentinelhub cannot be read: {error}") from error
    if service == "cdse":
        config.sh_base_url, config.sh_token_url = _CDSE_BASE, _CDSE_TOKEN
    if not config.sh_client_id or not config.sh_client_secret:
        raise SourceError(
            "Sentinel Hub needs the credentials of an OAuth client: set SH_CLIENT_ID and "
            "SH_CLIENT_SECRET, or run sentinelhub.config --sh_client_id … --sh_client_secret …"
        )
    return config


@cache
def _collection(level: str, base_url: str) -> Any:
    """The collection at this end point; a process may define it but once."""
    from sentinelhub import DataCollection

    usual = DataCollection.SENTINEL2_L1C if level == "L1C" else DataCollection.SENTINEL2_L2A
    if usual.service_url == base_url:
        return usual
    name = re.sub(r"\W", "_", f"{usual.name}_{base_url}").upper()
    return usual.define_from(name, service_url=base_url)


class _Service:
    """Sends what the package prepared, with a token; also stands in for its download client."""

    def __init__(self, config: "SHConfig", patience: Patience) -> None:
        self._config = config
        self._web = Web(Reach.of(config.sh_base_url, config.sh_token_url), patience)
        self._token = ""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Service"], tuple["SHConfig", Patience]]:
        # another process asks for a token of its own
        return _Service, (self._config, self._web.patience)

    def get_json_dict(
        self, url: str, *, post_values: Any, use_session: bool = True
    ) -> Mapping[str, Any]:
        """As the package's own client has it, for its Catalog."""
        response = self._post(url, post_values, "application/json")
        try:
            found = response.json()
        except ValueError as error:
            raise SourceError(f"{url} answers no JSON: {error}") from error
        if not isinstance(found, dict):
            raise SourceError(f"{url} answers no JSON object")
        return found

    def process(self, url: str, payload: Any) -> bytes:
        """The image; `SceneError` if the service finds fault with the request."""
        return bytes(self._post(url, payload, "image/tiff").content)

    def _post(self, url: str, payload: Any, accept: str) -> Any:
        """With one new token where the one at hand has died, and none where the quota is spent."""
        token = ""
        for _ in range(2):
            token = self._current_token(dead=token)
            headers = {"Authorization": f"Bearer {token}", "Accept": accept}
            response = self._web.ask("POST", url, headers=headers, json=payload)
            if response.status_code != 401:
                break
        if response.status_code == 401:
            raise SourceError(
                f"{url} takes no token of this client; check SH_CLIENT_ID and SH_CLIENT_SECRET"
            )
        if response.status_code == 403:
            raise SourceError(
                f"{url} refuses: {_said(response)}; if the quota is spent, what is built is kept "
                "and the same command goes on when there is quota again"
            )
        if not response.ok:
            raise SceneError(f"{url}: {response.status_code} {_said(response)}")
        return response

    def _current_token(self, *, dead: str) -> str:
        """The token at hand, unless it is the one that was found dead."""
        with self._lock:
            if self._token == dead:
                self._token = self._new_token()
            return self._token

    def _new_token(self) -> str:
        url = self._config.sh_token_url
        form = {
            "grant_type": "client_credentials",
            "client_id": self._config.sh_client_id,
            "client_secret": self._config.sh_client_secret,
        }
        response = self._web.ask("POST", url, form=form)
        try:
            return str(response.json()["access_token"])
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{url} gives no token ({response.status_code} {_said(response)}); check "
                "SH_CLIENT_ID and SH_CLIENT_SECRET"
            ) from error


def _said(response: Any) -> str:
    """What the service says of an error, short."""
    try:
        said = response.json()
        error = said.get("error", said)
        return str(error.get("message") or error.get("reason") or error)[:300]
    except (ValueError, AttributeError):
        return str(response.text).strip()[:300] or str(response.reason)


class _Kept:
    """The windows that were read last, up to 256 MiB; a build reads them band by band."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, PixelWindow], npt.NDArray[np.uint16]] = OrderedDict()

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        # another process reads its own windows
        return _Kept, ()

    def get(self, key: tuple[str, PixelWindow]) -> npt.NDArray[np.uint16] | None:
        with self._lock:
            return self._windows.get(key)

    def put(self, key: tuple[str, PixelWindow], layers: npt.NDArray[np.uint16]) -> None:
        with self._lock:
            self._windows[key] = layers
            while sum(each.nbytes for each in self._windows.values()) > _KEPT_BYTES:
                self._windows.popitem(last=False)


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


def _grid_of(properties: Mapping[str, Any], tile: TileId) -> Grid:
    """The grid by `proj:bbox`, which is the product's; the whole tile's where it is not said."""
    usual = items.usual_grid(tile)
    if "proj:bbox" not in properties:
        return usual
    try:
        west, south, east, north = (float(each) for each in properties["proj:bbox"])
        sides = (north - south) / PIXEL_SIZE_M, (east - west) / PIXEL_SIZE_M
        grid = Grid(int(properties["proj:epsg"]), west, north, round(sides[0]), round(sides[1]))
    except (KeyError, TypeError, ValueError) as error:
        raise SceneError(f"proj:bbox and proj:epsg say no grid: {error!r}") from error
    placed = (grid.epsg, grid.left, grid.top) == (usual.epsg, usual.left, usual.top)
    if not placed or sides != (grid.height, grid.width) or grid.height > usual.height:
        raise SceneError(f"it lies at {grid}, the tile at {usual}")
    return grid


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
  collections.scenes.tiles = named.length ? named : here.length ? here : all;
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
