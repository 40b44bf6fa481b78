"""The made world as STAC: items, a static catalogue in files, an API over HTTP."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import transform

from s2pairs.scenes import Wanted
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.web import Patience
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Answer, Asked, Server, part_of, serving
from tests.s2pairs.made_world import BANDS, SIZE, TILES, World

WANTED = Wanted(max_cloud=2.0)
QUICK = Patience(tries=3, first_wait_s=0.01, longest_wait_s=0.2, timeout_s=5)
LAND = np.random.default_rng(0).integers(120, 3000, (512, 512)).astype(np.uint16)

NAMES = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}
PAGE = 4
_SEARCH = {"method": "POST", "type": "application/geo+json"}


def items_of(world: World, href: Callable[[Path], str]) -> list[dict[str, Any]]:
    """An item for each product, whole or not, with the assets that it should have."""
    return [item_of(folder, href) for folder in sorted(world.folder.glob("*.SAFE"))]


def item_of(folder: Path, href: Callable[[Path], str]) -> dict[str, Any]:
    product = folder.name.removesuffix(".SAFE")
    baseline, tile = re.findall(r"_N(\d{4})_R\d{3}_T(\w{5})_", product)[0]
    metadata = folder / "MTD_MSIL1C.xml"
    (granule,) = (folder / "GRANULE").iterdir()
    text = metadata.read_text()
    cloud = re.findall(r"<Cloud_Coverage_Assessment>(.*)</", text)[0]
    sensed = datetime.strptime(product[11:26], "%Y%m%dT%H%M%S").strftime("%Y-%m-%dT%H:%M:%SZ")
    corners = outline(TileId.parse(tile))
    prefix = f"T{tile}_{product[11:26]}"
    assets = {
        common: {
            "href": href(granule / "IMG_DATA" / f"{prefix}_{band}.jp2"),
            "type": "image/jp2",
            "roles": ["data"],
        }
        for band, common in NAMES.items()
    }
    assets["product_metadata"] = {"href": href(metadata), "type": "application/xml"}
    longitudes, latitudes = zip(*corners, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": product,
        "geometry": {"type": "Polygon", "coordinates": [[list(corner) for corner in corners]]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": sensed,
            "eo:cloud_cover": float(cloud),
            "s2:product_uri": folder.name,
            "s2:processing_baseline": f"{baseline[:2]}.{baseline[2:]}",
            "grid:code": f"MGRS-{tile}",
            "s2:granule_id": re.findall(
                r"TILE_ID[^>]*>(.*)</", (granule / "MTD_TL.xml").read_text()
            )[0],
        },
        "links": [],
        "assets": assets,
        "collection": "sentinel-2-l1c",
    }


def outline(tile: TileId, size: int = SIZE) -> list[tuple[float, float]]:
    """Corners of a product in degrees, closed."""
    left, top = tile.upper_left()
    side = size * 10
    x = [left, left + side, left + side, left, left]
    y = [top, top, top - side, top - side, top]
    longitude, latitude = transform(f"EPSG:{tile.epsg}", "EPSG:4326", x, y)
    return list(zip(longitude, latitude, strict=True))


def write_static(folder: Path, world: World) -> Path:
    """`catalog.json` over two levels, with relative addresses throughout."""
    below = folder / "sentinel-2-l1c"
    below.mkdir(parents=True)
    entries = items_of(world, str)
    for entry in entries:
        (below / f"{entry['id']}.json").write_text(json.dumps(entry))
    links = [{"rel": "item", "href": f"./{entry['id']}.json"} for entry in entries]
    common = {"stac_version": "1.0.0", "description": "made"}
    (below / "catalog.json").write_text(
        json.dumps({**common, "type": "Catalog", "id": "below", "links": links})
    )
    root = folder / "catalog.json"
    child = {"rel": "child", "href": "./sentinel-2-l1c/catalog.json"}
    root.write_text(json.dumps({**common, "type": "Catalog", "id": "root", "links": [child]}))
    return root


class Api:
    """Answers as a STAC API does, in pages of few items; files are served in parts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.url = ""
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda item: item

    def __call__(self, asked: Asked) -> Answer:
        if asked.path.startswith("/files/"):
            return part_of(self.world.folder / asked.path.removeprefix("/files/"), asked)
        if asked.path == "/search" and asked.method == "POST":
            return self._page(json.loads(asked.body))
        if asked.path in ("/", ""):
            return _json(self._landing())
        return Answer(status=404)

    def items(self) -> list[dict[str, Any]]:
        root = self.world.folder
        made = items_of(self.world, lambda path: f"{self.url}/files/{path.relative_to(root)}")
        return [self.change(item) for item in made]

    def _landing(self) -> dict[str, Any]:
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "made",
            "description": "made",
            "conformsTo": [
                "https://api.stacspec.org/v1.0.0/core",
                "https://api.stacspec.org/v1.0.0/item-search",
            ],
            "links": [
                {"rel": "self", "href": self.url},
                {"rel": "root", "href": self.url},
                {"rel": "search", "href": f"{self.url}/search", **_SEARCH},
            ],
        }

    def _page(self, wanted: dict[str, Any]) -> Answer:
        west, south, east, north = wanted["bbox"]
        start, _, end = wanted.get("datetime", "../..").partition("/")
        found = [
            item
            for item in self.items()
            if item["bbox"][0] <= east and item["bbox"][2] >= west
            if item["bbox"][1] <= north and item["bbox"][3] >= south
            if item["collection"] in wanted["collections"]
            if start == ".." or item["properties"]["datetime"] >= start
            if end == ".." or item["properties"]["datetime"] <= end
        ]
        first = wanted.get("token", 0)
        links = []
        if first + PAGE < len(found):
            body = {**wanted, "token": first + PAGE}
            links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": body}]
        features = found[first : first + PAGE]
        return _json({"type": "FeatureCollection", "features": features, "links": links})


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@contextmanager
def api_of(world: World) -> Iterator[tuple[Api, Server]]:
    api = Api(world)
    with serving(api) as server:
        api.url = server.url
        yield api, server


def over_http(server: Server, wanted: Wanted | None = WANTED) -> StacCatalogue:
    place = f"{server.url}#sentinel-2-l1c"
    return StacCatalogue(place, BANDS, wanted=wanted, patience=QUICK)


def cog_item(folder: Path, dn: npt.NDArray[np.uint16], **changes: object) -> Path:
    """An item collection of one Level-2A product whose bands are one GeoTIFF with overviews."""
    folder.mkdir(parents=True)
    tile = TILES[0]
    left, top = tile.upper_left()
    path = folder / "B.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "tiled": True, "blockxsize": 64}
    place = {"crs": f"EPSG:{tile.epsg}", "transform": Affine(10, 0, left, 0, -10, top)}
    size = {"height": dn.shape[0], "width": dn.shape[1], "blockysize": 64}
    with rasterio.open(path, "w", **profile, **place, **size) as image:
        image.write(dn, 1)
        image.build_overviews([2], Resampling.nearest)
    scaling = changes.pop("scaling", None)
    extra = {"raster:bands": [scaling]} if scaling else {}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"S2B_MSIL2A_20230302T105629_N0509_R094_T{tile}_20230302T141516",
        "geometry": None,
        "properties": {"datetime": "2023-03-02T11:00:00Z", "eo:cloud_cover": 0.5, **changes},
        "links": [],
        "assets": {name: {"href": "./B.tif", **extra} for name in ("red", "green", "blue", "nir")},
    }
    collection = folder / "items.json"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    return collection
