"""Products that a STAC catalogue lists: an API that is searched, or files that are read through.

`stac_listing.py` finds its items; rasterio reads windows of the assets where they lie. What an item
says of the radiometric offset is checked against the product's own metadata and its pixels.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import numpy as np
import numpy.typing as npt

from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError
from s2pairs.masks import Flags, from_scene_classes
from s2pairs.scenes import Grid, LeftOut, Listing, PixelWindow, Scene, Wanted
from s2pairs.sources import items
from s2pairs.sources.assets import Assets, Buckets
from s2pairs.sources.jp2 import check_lies_on, grid_of, read_window
from s2pairs.sources.offsets import Samples, confirmed, settled
from s2pairs.sources.reach import Reach, shown
from s2pairs.sources.reading_cost import cost_of_a_look, cost_of_image
from s2pairs.sources.safe_product import Radiometry, read_radiometry
from s2pairs.sources.stac_assets import (
    band_asset,
    check_level,
    class_asset,
    metadata_asset,
    radiometry,
)
from s2pairs.sources.stac_listing import Items
from s2pairs.sources.web import Patience, Web
from s2pairs.tiles import TILE_SIZE_PX, TileId

if TYPE_CHECKING:
    import pystac
    from rasterio.io import DatasetReader

_THREADS = 8
_SAMPLE_PX = 256
_SAMPLE_PLACES = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
_REQUESTER_PAYS = {"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "eu-central-1"}


@dataclass(frozen=True)
class _Preset:
    url: str
    collection: str
    tile_property: str
    hosts: tuple[str, ...] = ()
    buckets: Buckets = field(default_factory=dict)


_PRESETS = {
    "earth-search": _Preset(
        url="https://earth-search.aws.element84.com/v1",
        collection="sentinel-2-l2a",
        tile_property="grid:code",
        hosts=(
            "sentinel-cogs.s3.us-west-2.amazonaws.com",
            "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com",
        ),
        buckets={"sentinel-s2-l1c": _REQUESTER_PAYS, "sentinel-s2-l2a": _REQUESTER_PAYS},
    ),
    "cdse": _Preset(
        url="https://stac.dataspace.copernicus.eu/v1",
        collection="sentinel-2-l2a",
        tile_property="grid:code",
        buckets={
            "eodata": {
                "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
                "AWS_VIRTUAL_HOSTING": "FALSE",
            }
        },
    ),
}


class StacCatalogue:
    """The products of one catalogue, for the bands that a cube wants.

    `place` is `earth-search` or `cdse`, the URL of an API or of a static catalogue, or a file: a
    catalogue, a collection, an item or an item collection; behind `#` may stand a collection.
    With `wanted`, the files of scenes that it does not rule out are opened before they are listed.
    """

    def __init__(
        self,
        place: str,
        bands: Sequence[str],
        *,
        wanted: Wanted | None,
        told: Sequence[str] = (),
        patience: Patience,
    ) -> None:
        start, _, collection = place.partition("#")
        preset = _PRESETS.get(start)
        self._bands = tuple(bands)
        self._wanted = wanted
        start = preset.url if preset else start
        remote = "://" in start
        hosts = [host for host in told if not host.startswith("s3://")]
        buckets: Buckets = {
            host.removeprefix("s3://"): {} for host in told if host.startswith("s3://")
        }
        starts = [start] if remote else []
        reach = Reach.of(*starts, known=preset.hosts if preset else (), told=hosts)
        web = Web(reach, patience)
        self._assets = Assets(
            web,
            {**(preset.buckets if preset else {}), **buckets},
            beside_local_catalogue=not remote,
        )
        self._start = start if remote else str(Path(start).resolve())
        self._items = Items(
            self._start,
            web,
            collection=collection or (preset.collection if preset else None),
            tile_property=preset.tile_property if preset else None,
            wanted=wanted,
        )
        self._known: dict[str, tuple[Scene, ...]] = {}
        self._sizes: dict[str, int] = {}

    def scenes(self, tile: TileId) -> Listing:
        """The usable products of a tile by name; the others are left out with their reasons."""
        found = self._items.of(tile)
        read = {item.id: item for item in found if not isinstance(item, LeftOut)}
        with ThreadPoolExecutor(_THREADS) as pool:
            made = list(pool.map(lambda item: self._scene_or_why(item, tile), read.values()))
        scenes = [each for each in made if isinstance(each, Scene)]
        left_out = [each for each in (*found, *made) if isinstance(each, LeftOut)]
        self._known[tile.name] = tuple(scenes)
        return Listing(
            tuple(sorted(scenes, key=lambda scene: scene.product)),
            tuple(sorted(left_out, key=lambda entry: entry.product)),
        )

    def read(
        self, scene: Scene, band: str, windows: Sequence[PixelWindow]
    ) -> list[npt.NDArray[np.uint16]]:
        """Digital numbers (height, width) of a band in each window; see `jp2.read_band`."""
        return self._assets.look(
            scene.assets[band], lambda image: [read_window(image, window) for window in windows]
        )

    def masks(self, scene: Scene, windows: Sequence[PixelWindow]) -> list[Flags] | None:
        """What the scene classification says, where the item has one (Level-2A)."""
        if "SCL" not in scene.masks:
            return None
        classes = self._assets.look(
            scene.masks["SCL"], lambda image: [read_window(image, window) for window in windows]
        )
        return [from_scene_classes(each.astype(np.uint8)) for each in classes]

    def cost(self, scene: Scene, bands: Sequence[str], windows: Sequence[PixelWindow]) -> ReadCost:
        """The blocks of the files that the windows touch, and of the scene classification."""
        total = ReadCost(0, 0)
        for name, href in [*((name, scene.assets[name]) for name in bands), *scene.masks.items()]:
            total += cost_of_image(
                href, name, scene.grid, windows, size=self._size(href), over_http=_is_remote(href)
            )
        return total

    def cost_of_listing(self, tile: TileId, wanted: Wanted) -> ReadCost:
        """The files of every scene that may be chosen are looked at, and its metadata are read."""
        total = ReadCost(0, 0)
        for scene in self._known[tile.name]:
            if not wanted.allows(scene.acquired, scene.cloud_cover):
                continue
            hrefs = scene.assets.items()
            own = all(href.endswith(".jp2") and href.startswith("http") for _, href in hrefs)
            total += ReadCost(0, 0, requests=int(own))
            for name, href in hrefs:
                total += cost_of_a_look(
                    href, name, scene.grid, size=self._size(href), over_http=_is_remote(href)
                )
        return total

    def _size(self, href: str) -> int | None:
        """Of a file in bytes, by its item or where it lies on this machine."""
        if href not in self._sizes and not _is_remote(href):
            self._sizes[href] = self._assets.size(href)
        return self._sizes.get(href)

    def _scene_or_why(self, item: "pystac.Item", tile: TileId) -> Scene | LeftOut:
        try:
            return self._scene(item, tile)
        except SceneError as error:
            why = f"unusable: {error}"
        except items.MALFORMED as error:
            why = f"unusable: its item cannot be understood: {shown(repr(error))}"
        name = str(item.properties.get("s2:product_uri", item.id)).removesuffix(".SAFE")
        return LeftOut(name, why)

    def _scene(self, item: "pystac.Item", tile: TileId) -> Scene:
        said = items.describe(item.id, item.properties)
        if said.tile != tile:
            raise SceneError(f"the item is of tile {said.tile}")
        assets = {name: self._href(band_asset(item, name)) for name in self._bands}
        check_level(said.level, assets)
        classes = class_asset(item)
        masks = {"SCL": self._href(classes)} if classes else {}
        cover = items.cloud_cover(item.properties)
        claims, quantification = radiometry(item, said, self._bands)
        grid = _likely_grid(item, tile)
        offsets = next(iter(claims.values()), dict.fromkeys(self._bands, 0))
        if self._wanted is not None and self._wanted.allows(said.acquired, cover):
            own = self._own_radiometry(item, assets)
            grid, samples = self._opened_files(assets, masks, grid)
            if own is None:
                offsets = settled(claims, samples, said.level)
            else:
                offsets = confirmed(own.add_offset, samples, said.level)
                quantification = own.quantification
        return Scene(
            product=said.product,
            tile=tile,
            level=said.level,
            acquired=said.acquired,
            generated=said.generated,
            datatake=said.datatake,
            baseline=said.baseline or "00.00",
            cloud_cover=cover,
            quantification=quantification,
            add_offset=offsets,
            grid=grid,
            assets=assets,
            simulated="_TL_SIM__" in str(item.properties.get("s2:granule_id", "")),
            coverage=items.coverage(item.properties, item.geometry, grid),
            masks=masks,
        )

    def _href(self, asset: "pystac.Asset") -> str:
        try:
            href = asset.get_absolute_href() or _joined(self._start, asset.href)
        except ValueError as error:
            raise SceneError(f"{shown(asset.href)!r} is not a URL: {error}") from error
        self._assets.check_allowed(href)
        size = asset.extra_fields.get("file:size")
        if isinstance(size, int) and size > 0:
            self._sizes[href] = size
        return href

    def _own_radiometry(self, item: "pystac.Item", assets: Mapping[str, str]) -> Radiometry | None:
        """What the product's own metadata say; of use only where pixels are the provider's."""
        asset = metadata_asset(item)
        if asset is None or not all(href.endswith(".jp2") for href in assets.values()):
            return None
        content = self._assets.content(self._href(asset))
        return read_radiometry(content, "its metadata", self._bands) if content else None

    def _opened_files(
        self, assets: Mapping[str, str], masks: Mapping[str, str], grid: Grid
    ) -> tuple[Grid, Samples]:
        """The grid that all files share, and pixels of each band; `SceneError` if one is broken."""
        samples: dict[str, npt.NDArray[np.uint16]] = {}
        found: Grid | None = None
        for name, href in assets.items():
            self._assets.check_whole(href)
            found, samples[name] = self._assets.look(href, partial(_sampled, grid=found))
        if found is None or (found.epsg, found.left, found.top) != (grid.epsg, grid.left, grid.top):
            raise SceneError(f"its files lie at {found}, the tile at {grid}")
        for href in masks.values():
            self._assets.check_whole(href)
            self._assets.look(href, partial(check_lies_on, grid=found, kind="uint8"))
        return found, samples


def _likely_grid(item: "pystac.Item", tile: TileId) -> Grid:
    """Before files are opened: as the item says it, unless that is amiss."""
    try:
        return items.stated_grid(item.properties, tile)
    except SceneError:
        return items.usual_grid(tile)


def _is_remote(href: str) -> bool:
    return "://" in href and not href.startswith("file://")


def _joined(start: str, href: str) -> str:
    """An address relative to the catalogue's own, for items that do not know where they lie."""
    if "://" in href or Path(href).is_absolute():
        return href
    return urljoin(start, href) if "://" in start else str(Path(start).parent / href)


def _sampled(image: "DatasetReader", grid: Grid | None) -> tuple[Grid, npt.NDArray[np.uint16]]:
    """Its grid, which must be the given one, and some pixels; `SceneError` if it is not."""
    if max(image.height, image.width) > TILE_SIZE_PX:
        raise SceneError(f"it has an image larger than a tile: {image.shape}")
    grid = grid or grid_of(image)
    check_lies_on(image, grid)
    return grid, _sample(image)


def _sample(image: "DatasetReader") -> npt.NDArray[np.uint16]:
    """Some tens of thousands of pixels with data: an overview where there is one, else windows."""
    from rasterio.windows import Window

    if image.overviews(1) and image.driver == "GTiff":
        steps = [each for each in image.overviews(1) if min(image.shape) // each >= _SAMPLE_PX]
        step = max(steps, default=1)
        shape = (max(1, image.height // step), max(1, image.width // step))
        return np.asarray(image.read(1, out_shape=shape))
    side = min(_SAMPLE_PX, image.height, image.width)
    taken: list[npt.NDArray[np.uint16]] = []
    for down, right in _SAMPLE_PLACES:
        place = Window(
            int((image.width - side) * right), int((image.height - side) * down), side, side
        )
        taken.append(image.read(1, window=place).ravel())
        if sum(np.count_nonzero(each) for each in taken) >= _SAMPLE_PX**2 * 0.9:
            break
    return np.concatenate(taken)
