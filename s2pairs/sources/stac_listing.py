"""What a STAC catalogue lists: the items that an API's search gives, or that files hold.

pystac-client and pystac read them, through a session that reaches no host but those named.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from s2pairs.errors import SceneError, SourceError
from s2pairs.scenes import LeftOut, Wanted
from s2pairs.sources import items
from s2pairs.sources.reach import shown
from s2pairs.sources.web import Web
from s2pairs.tiles import TileId

if TYPE_CHECKING:
    import pystac
    import pystac_client

_PAGE = 100
_MOST_PAGES = 1_000  # of a search for one tile; ten years of it are some thousands of items
_MOST_FILES = 100_000  # of a catalogue that is read through
_LONGEST_PASS = timedelta(hours=1)
_LONGEST_SAID = 300


@final
class Items:
    """The items of one catalogue, tile by tile.

    `start` is the address of an API or of a static catalogue, or a file; of several collections
    the items of `collection` count. An API is asked for those whose `tile_property` names the tile,
    where it is given, and for none that `wanted` rules out by its day. `SourceError` if `start` is
    nothing of the kind.
    """

    def __init__(
        self,
        start: str,
        web: Web,
        *,
        collection: str | None,
        tile_property: str | None,
        wanted: Wanted | None,
    ) -> None:
        self._start = start
        self._web = web
        self._collection = collection
        self._tile_property = tile_property
        self._wanted = wanted
        self._root: Any = _root(start, web)
        self._listed: list[pystac.Item | LeftOut] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the catalogue anew, if it is to list."""
        return {**vars(self), "_root": None, "_listed": None}

    def of(self, tile: TileId) -> list["pystac.Item | LeftOut"]:
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


def _interval(wanted: Wanted | None) -> str | None:
    """As STAC writes it. Items are dated by their tile, minutes after the pass has begun."""
    if wanted is None or (wanted.start is None and wanted.end is None):
        return None
    start = f"{wanted.start:%Y-%m-%dT%H:%M:%SZ}" if wanted.start else ".."
    end = f"{wanted.end + _LONGEST_PASS:%Y-%m-%dT%H:%M:%SZ}" if wanted.end else ".."
    return f"{start}/{end}"
