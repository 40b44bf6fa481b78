"""Sentinel Hub over the made world: OAuth, Catalog and Process, each as its documentation has it.

Pixels are harmonised: 1000 is taken from those of baseline 04.00 on, and what then is less than
nothing becomes 0, as the service does it. It holds the newest version of each product.
"""

import json
import re
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.io import MemoryFile

from s2pairs.scenes import PixelWindow
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Answer, Asked
from tests.s2pairs.made_world import SIZE, World
from tests.s2pairs.stac_world import items_of

CLIENT = {"client_id": "a client", "client_secret": "its secret"}
PAGE = 3
TOKEN_PATH, SEARCH_PATH = "/token", "/api/v1/catalog/1.0.0/search"
PROCESS_PATH = "/api/v1/process"


class SentinelHub:
    """Answers requests; `tokens` are those that live."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tokens: set[str] = set()
        self.given = 0
        self.processed: list[dict[str, Any]] = []
        self._items = [_catalog_item(item) for item in items_of(world, str)]

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == TOKEN_PATH:
            return self._token(asked)
        if asked.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _error(401, "token is not valid")
        payload = json.loads(asked.body)
        if asked.path == SEARCH_PATH:
            return self._search(payload)
        if asked.path == PROCESS_PATH:
            return self._process(payload)
        return _error(404, "no such thing")

    def _token(self, asked: Asked) -> Answer:
        form = {key: values[0] for key, values in parse_qs(asked.body.decode()).items()}
        if form != {"grant_type": "client_credentials", **CLIENT}:
            return Answer(b'{"error": "invalid_client"}', 401)
        self.given += 1
        self.tokens.add(f"token {self.given}")
        return _json({"access_token": f"token {self.given}", "expires_in": 600})

    def _search(self, wanted: dict[str, Any]) -> Answer:
        west, south, east, north = wanted["bbox"]
        start, _, end = wanted["datetime"].partition("/")
        found = [
            item
            for item in self._items
            if wanted["collections"] == ["sentinel-2-l1c"]
            if start <= item["properties"]["datetime"] <= end
            if item["bbox"][0] <= east and item["bbox"][2] >= west
            if item["bbox"][1] <= north and item["bbox"][3] >= south
        ]
        first = wanted.get("next", 0)
        context: dict[str, int] = {"limit": PAGE}
        if first + PAGE < len(found):
            context["next"] = first + PAGE
        features = found[first : first + PAGE]
        return _json({"type": "FeatureCollection", "features": features, "context": context})

    def _process(self, payload: dict[str, Any]) -> Answer:
        self.processed.append(payload)
        (data,) = payload["input"]["data"]
        output, bounds = payload["output"], payload["input"]["bounds"]
        if max(output["width"], output["height"]) > 2500:
            return _error(400, "width and height must be at most 2500")
        if data["type"] != "sentinel-2-l1c" or not data["processing"]["harmonizeValues"]:
            return _error(400, "not what was expected")
        script = payload["evalscript"]
        names = json.loads(re.findall(r"bands: (\[.*?\])", script)[0].replace("'", '"'))
        product = self._of(data["dataFilter"]["timeRange"], script)
        layers = np.zeros((len(names), output["height"], output["width"]), dtype=np.uint16)
        if product is not None:
            tile = TileId.parse(re.findall(r"_T(\w{5})_", product)[0])
            window = _window(tile, bounds, output)
            numbers = {name: self.world.numbers(product, name) for name in names[:-1]}
            layers = _harmonised(numbers, product, window)
        return Answer(_tiff(layers, bounds), headers={"Content-Type": "image/tiff"})

    def _of(self, period: dict[str, str], script: str) -> str | None:
        """The product that its filter of scenes lets through."""
        product, tile = (re.findall(rf'{key} = "(.*)"', script)[0] for key in ("PRODUCT", "TILE"))
        found = [
            item["id"]
            for item in self._items
            if period["from"] <= item["properties"]["datetime"] <= period["to"]
        ]
        named = [each for each in found if product in each]
        here = [each for each in found if f"_{tile}_" in each]
        return next(iter(named or here), None)


def _window(tile: TileId, bounds: dict[str, Any], output: dict[str, Any]) -> PixelWindow:
    west, south, east, north = bounds["bbox"]
    assert bounds["properties"]["crs"].endswith(f"/{tile.epsg}")
    assert (east - west, north - south) == (output["width"] * 10, output["height"] * 10)
    left, top = tile.upper_left()
    row, col = (top - north) / 10, (west - left) / 10
    assert row % 1 == col % 1 == 0
    return PixelWindow(int(row), int(col), output["height"], output["width"])


def _harmonised(
    numbers: dict[str, npt.NDArray[np.uint16]], product: str, window: PixelWindow
) -> npt.NDArray[np.uint16]:
    shift = 1000 if re.findall(r"_N(\d{4})_", product)[0] >= "0400" else 0
    rows = slice(window.row, window.row + window.height)
    columns = slice(window.col, window.col + window.width)
    cut = np.stack([dn[rows, columns] for dn in numbers.values()]).astype(np.int64)
    mask = (cut != 0).all(axis=0)
    harmonised = np.where(mask, np.maximum(cut - shift, 0), 0)
    return np.concatenate([harmonised, mask[None]]).astype(np.uint16)


def _tiff(layers: npt.NDArray[np.uint16], bounds: dict[str, Any]) -> bytes:
    count, height, width = layers.shape
    west, _, _, north = bounds["bbox"]
    place = {
        "crs": f"EPSG:{bounds['properties']['crs'].rpartition('/')[2]}",
        "transform": Affine(10, 0, west, 0, -10, north),
    }
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", count=count, height=height, width=width, dtype="uint16", **place
        ) as image:
            image.write(layers)
        return bytes(file.getbuffer())


def _catalog_item(item: dict[str, Any]) -> dict[str, Any]:
    """With the properties that this Catalog has, and no more."""
    tile = TileId.parse(item["properties"]["grid:code"].removeprefix("MGRS-"))
    left, top = tile.upper_left()
    side = SIZE * 10
    return {
        "id": item["id"],
        "type": "Feature",
        "bbox": item["bbox"],
        "geometry": item["geometry"],
        "properties": {
            "datetime": item["properties"]["datetime"],
            "eo:cloud_cover": item["properties"]["eo:cloud_cover"],
            "proj:epsg": tile.epsg,
            "proj:bbox": [left, top - side, left + side, top],
        },
    }


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _error(status: int, message: str) -> Answer:
    error = {"error": {"status": status, "reason": "Error", "message": message}}
    return Answer(json.dumps(error).encode(), status)
