"""Products that a STAC catalogue lists: an API that is searched, or files that are read through.

pystac-client searches, rasterio reads windows of the assets where they lie. What an item says of
the radiometric offset is checked against the product's own metadata and its pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import numpy as np
import numpy.typing as npt

from s2pairs.cost import ReadCost
from s2pairs.errors import SceneError, SourceError
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
from s2pairs.sources.web import Patience, Web
from s2pairs.tiles import TILE_SIZE_PX, TileId

if TYPE_CHECKING:
    import pystac
    import pystac_client
    from rasterio.io import DatasetReader

_THREADS = 8
_PAGE = 100
_MOST_PAGES = 1_000  # of a search for one tile; ten years of it are some thousands of items
_MOST_FILES = 100_000  # of a catalogue that is read through
_LONGEST_PASS = timedelta(hours=1)
_LONGEST_SAID = 300
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
        self._tile_property = preset.tile_property if preset else None
        self._collection = collection or (preset.collection if preset else None)
        start = preset.url if preset else start
        remote = "://" in start
        hosts = [host for host in told if not host.startswith("s3://")]
        buckets: Buckets = {
            host.removeprefix("s3://"): {} for host in told if host.startswith("s3://")
        }
        starts = [start] if remote else []
        reach = Reach.of(*starts, known=preset.hosts if preset else (), told=hosts)
        self._web = Web(reach, patience)
        self._assets = Assets(
            self._web,
            {**(preset.buckets if preset else {}), **buckets},
            beside_local_catalogue=not remote,
        )
        self._start = start if remote else str(Path(start).resolve())
        self._root: Any = _root(self._start, self._web)
        self._listed: list[pystac.Item | LeftOut] | None = None
        self._known: dict[str, tuple[Scene, ...]] = {}
        self._sizes: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to read scenes; it opens the catalogue if it is to list."""
        return {**vars(self), "_root": None, "_listed": None}

    def scenes(self, tile: TileId) -> Listing:
        """The usable products of a tile by name; the others are left out with their reasons."""
        found = self._items(tile)
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

    def _items(self, tile: TileId) -> list["pystac.Item | LeftOut"]:
        """The items of a tile, and what may be one of it but cannot be read."""
        import pystac_client

        if self._root is None:
            self._root = _root(self._start, self._web)
        if isinstance(self._root, pystac_client.Client):
            found = _searched(self._root, tile, self._collection, self._tile_property, self._wanted)
            return [item for item in found if _may_be_of(item, tile)]
        if self._listed is None:
            self._listed = list(_read_through(self._root))
        return [
            item
            for item in self._listed
            if isinstance(item, LeftOut) or self._collection in (None, item.collection_id)
            if _may_be_of(item, tile)
        ]

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


def _root(start: str, web: Web) -> Any:
    """An API's client, or the root of what is read through; `SourceError` if it is neither."""
    import pystac
    import pystac_client
    from pystac.errors import STACTypeError
    from pystac_client.exceptions import APIError

    io = _reader(web, remote="://" in start)
    try:
        root = io.read_json(start)
        if not isinstance(root, dict):
            raise ValueError("no JSON object")
        if any("item-search" in each for each in root.get("conformsTo", [])):
            return pystac_client.Client.open(start, stac_io=_api(web))
        if root.get("type") == "FeatureCollection":
            return list(root["features"])
        return pystac.read_file(start, stac_io=io)
    except (APIError, pystac.STACError, STACTypeError, OSError, *items.MALFORMED) as error:
        raise SourceError(
            f"{shown(start)} is no STAC API, catalogue or item collection: "
            f"{shown(str(error) or repr(error))}"
        ) from error


def _api(web: Web) -> "pystac_client.stac_api_io.StacApiIO":
    """pystac-client's reader, through our session; links to files on this machine are refused."""
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    class Api(StacApiIO):
        def read_text(self, source: Any, *args: Any, **more: Any) -> str:
            href = source.get_href() if hasattr(source, "get_href") else str(source)
            web.reach.check_url(href or "")
            return super().read_text(source, *args, **more)

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            method = (method or "GET").upper()
            if method == "GET":
                answer = web.ask(method, href, headers=headers, query=parameters)
            else:
                answer = web.ask(method, href, headers=headers, json=parameters)
            if not answer.ok:
                said = answer.body[:_LONGEST_SAID].decode(errors="replace")
                raise APIError(f"{answer.status} {answer.reason} {said}".strip())
            return answer.body.decode()

    return Api()


def _reader(web: Web, *, remote: bool) -> "pystac.StacIO":
    """Reads the files of a static catalogue: those on this machine only if it lies there too."""
    from pystac.stac_io import DefaultStacIO

    class Reader(DefaultStacIO):
        def read_text(self, source: Any, *_: Any, **__: Any) -> str:
            href = source.get_href() if hasattr(source, "get_href") else str(source)
            if remote or "://" in href:
                web.reach.check_url(href)
                try:
                    return web.content(href).decode()
                except SceneError as error:
                    raise SourceError(str(error)) from error
            return Path(href).read_text(encoding="utf-8")

    return Reader()


def _searched(
    client: "pystac_client.Client",
    tile: TileId,
    collection: str | None,
    tile_property: str | None,
    wanted: Wanted | None,
) -> Iterator["pystac.Item | LeftOut"]:
    """Items whose ground touches the tile's; `SourceError` if the API fails."""
    from pystac_client.exceptions import APIError

    address = shown(client.self_href)
    if collection is None:
        raise SourceError(
            "an API holds many collections; name one behind the address, such as "
            f"stac:{address}#sentinel-2-l1c"
        )
    of_tile = {tile_property: {"in": list(items.grid_codes(tile))}} if tile_property else None
    try:
        search = client.search(
            collections=[collection],
            bbox=items.bounds(tile),
            datetime=_interval(wanted),
            query=of_tile if client.conforms_to("QUERY") else None,
            limit=_PAGE,
        )
        for number, page in enumerate(search.pages_as_dicts()):
            if number == _MOST_PAGES:
                raise SourceError(f"it gives more than {_MOST_PAGES} pages of tile {tile}")
            yield from (_parsed(item) for item in page["features"])
    except (
        APIError,
        NotImplementedError,  # pystac-client, of an API that says it has no item search
        SceneError,
        SourceError,
        *items.MALFORMED,
    ) as error:
        raise SourceError(
            f"{address} cannot be searched: {shown(str(error) or repr(error), 400)}"
        ) from error


def _read_through(root: Any) -> Iterator["pystac.Item | LeftOut"]:
    """Every item of a catalogue, a collection, an item collection, or the one item itself."""
    import pystac

    if isinstance(root, pystac.Item):
        yield root
    elif isinstance(root, list):
        yield from map(_parsed, root)
    else:
        yield from _below(root)


def _below(root: "pystac.Catalog") -> Iterator["pystac.Item | LeftOut"]:
    """Each file once, though links may lead in circles; `SourceError` if a catalogue is broken."""
    import pystac

    seen = {root.get_self_href()}
    waiting: list[pystac.Catalog] = [root]
    while waiting:
        catalogue = waiting.pop()
        for link in (*catalogue.get_item_links(), *catalogue.get_child_links()):
            href = link.get_absolute_href()
            if href in seen:
                continue
            seen.add(href)
            if len(seen) > _MOST_FILES:
                raise SourceError(f"{shown(str(root.get_self_href()))}: over {_MOST_FILES} files")
            try:
                found = link.resolve_stac_object(root).target
            except (pystac.STACError, *items.MALFORMED) as error:
                # pystac says the same of a file that is none and of a server that is silent
                cause = error.__cause__ or error
                if isinstance(cause, SourceError):
                    raise cause from error
                why = f"{shown(str(href))} cannot be read: {shown(repr(cause))}"
                if link.rel == pystac.RelType.CHILD:
                    raise SourceError(f"a file of the catalogue, {why}") from error
                yield LeftOut(Path(str(href)).stem, f"unusable: its item {why}")
                continue
            if isinstance(found, pystac.Item):
                yield found
            elif isinstance(found, pystac.Catalog):
                waiting.append(found)


def _parsed(item: Any) -> "pystac.Item | LeftOut":
    import pystac
    from pystac.errors import STACTypeError

    try:
        made = pystac.Item.from_dict(item)
        items.tile_of(made.id, made.properties)
    except (pystac.STACError, STACTypeError, *items.MALFORMED) as error:
        name = str(item.get("id")) if isinstance(item, dict) else "an item"
        return LeftOut(name[:_LONGEST_SAID], f"unusable: its item cannot be read: {error!r}"[:500])
    if not isinstance(made.id, str):
        return LeftOut(str(made.id), "unusable: its item has an id that is no text")
    return made


def _may_be_of(item: "pystac.Item | LeftOut", tile: TileId) -> bool:
    """Of what cannot be read, all whose name is of no other tile."""
    if isinstance(item, LeftOut):
        return items.tile_of(item.product, {}) in (None, tile.name)
    return items.tile_of(item.id, item.properties) == tile.name


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


def _interval(wanted: Wanted | None) -> str | None:
    """As STAC writes it. Items are dated by their tile, minutes after the pass has begun."""
    if wanted is None or (wanted.start is None and wanted.end is None):
        return None
    start = f"{wanted.start:%Y-%m-%dT%H:%M:%SZ}" if wanted.start else ".."
    end = f"{wanted.end + _LONGEST_PASS:%Y-%m-%dT%H:%M:%SZ}" if wanted.end else ".."
    return f"{start}/{end}"
