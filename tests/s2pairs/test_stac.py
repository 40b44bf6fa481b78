"""STAC sources: the made world from files and over HTTP, offsets, names, faults, hostile items."""

import copy
import json
import math
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import DatasetReader

from s2pairs.bands import BANDS as ALL_BANDS
from s2pairs.errors import SceneError, SourceError
from s2pairs.masks import from_scene_classes
from s2pairs.scenes import PixelWindow, Wanted
from s2pairs.sources import items
from s2pairs.sources.assets import Assets
from s2pairs.sources.offsets import confirmed, settled, witnessed
from s2pairs.sources.reach import Reach
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.stac_assets import band_asset
from s2pairs.sources.web import Patience, RangeFile, Web
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Answer, Asked, Server, part_of, serving
from tests.s2pairs.made_world import BANDS, TILES, World
from tests.s2pairs.same_pixels import (
    Remembering,
    assert_same_cubes,
    assert_same_listing,
    assert_same_pixels,
    cube_of,
)
from tests.s2pairs.stac_world import Api, items_of, write_static

WANTED = Wanted(max_cloud=2.0)
QUICK = Patience(tries=3, first_wait_s=0.01, longest_wait_s=0.2, timeout_s=5)


@pytest.fixture(scope="module")
def static(made_world: World, tmp_path_factory: pytest.TempPathFactory) -> Remembering:
    root = write_static(tmp_path_factory.mktemp("static") / "stac", made_world)
    return Remembering(StacCatalogue(str(root), BANDS, wanted=WANTED, patience=QUICK))


@contextmanager
def api_of(world: World) -> Iterator[tuple[Api, Server]]:
    api = Api(world)
    with serving(api) as server:
        api.url = server.url
        yield api, server


def over_http(server: Server, wanted: Wanted | None = WANTED) -> StacCatalogue:
    place = f"{server.url}#sentinel-2-l1c"
    return StacCatalogue(place, BANDS, wanted=wanted, patience=QUICK)


def test_a_static_catalogue_gives_the_pixels_of_the_products(
    static: Remembering, safe: Remembering, tmp_path: Path
) -> None:
    assert_same_listing(static, safe)
    assert_same_pixels(static, safe)
    ours, theirs = cube_of(static, tmp_path / "ours.zarr"), cube_of(safe, tmp_path / "safe.zarr")
    assert_same_cubes(ours, theirs)
    assert set(ours.tile) == {tile.name for tile in TILES}
    notice = "contains simulated data"
    assert ours.attributes["notice"] == theirs.attributes["notice"] == notice


def test_an_api_gives_the_pixels_of_the_products(made_world: World, safe: Remembering) -> None:
    with api_of(made_world) as (_, server):
        catalogue = Remembering(over_http(server))
        assert_same_listing(catalogue, safe, TILES[1:])
        assert_same_pixels(catalogue, safe, TILES[1:])
        (entry,) = catalogue.scenes(TILES[1]).left_out
        assert entry.product == made_world.cut_short
        assert "cut short" in entry.reason
        assert server.paths().count("/search") > 1  # several pages


def test_only_what_may_be_chosen_is_opened(made_world: World, safe: Remembering) -> None:
    with api_of(made_world) as (_, server):
        plan = over_http(server, wanted=None)
        listing = plan.scenes(TILES[0])
        assert not [path for path in server.paths() if path.startswith("/files/")]
        assert len(listing.scenes) == 7  # the broken one is not known to be
        known = {scene.product: scene for scene in safe.scenes(TILES[0]).scenes}
        assert {
            scene.product: scene.add_offset for scene in listing.scenes if scene.product in known
        } == {
            name: {band: scene.add_offset[band] for band in BANDS} for name, scene in known.items()
        }
        (entry,) = over_http(server).scenes(TILES[0]).left_out
        assert entry.product == made_world.without_band
        assert "404" in entry.reason
        cloudy = [scene.product for scene in listing.scenes if scene.cloud_cover > 2]
        assert len(cloudy) == 1
        assert not [path for path in server.paths() if cloudy[0] in path]


def test_another_process_can_read_what_was_listed_here(made_world: World) -> None:
    """Tasks are sent to workers with their catalogue."""
    with api_of(made_world) as (_, server):
        catalogue = over_http(server, wanted=None)
        scene = catalogue.scenes(TILES[0]).scenes[0]
        asked = len(server.asked)
        sent = pickle.loads(pickle.dumps(catalogue))
        assert len(server.asked) == asked  # nothing is opened before it is needed
        window = [PixelWindow(5, 6, 64, 70)]
        (here,), (there,) = (each.read(scene, "B04", window) for each in (catalogue, sent))
        np.testing.assert_array_equal(here, there)
        with pytest.raises(SceneError, match="is not asked"):
            sent.read(replace(scene, assets={"B04": "http://127.0.0.1:9/x.jp2"}), "B04", window)
        assert sent.scenes(TILES[0]) == catalogue.scenes(TILES[0])


# --- faults -------------------------------------------------------------------------------------


class Faulty:
    """Another server's answers, but for the first few of each kind of path."""

    def __init__(self, api: Api, fault: Callable[[Asked], Answer], times: int, where: str) -> None:
        self.api, self.fault, self.left, self.where = api, fault, times, where

    def __call__(self, asked: Asked) -> Answer:
        if self.where in asked.path and self.left:
            self.left -= 1
            return self.fault(asked)
        return self.api(asked)


def slow(_: Asked) -> Answer:
    time.sleep(1.0)
    return Answer(b"{}")


FAULTS: dict[str, Callable[[Asked], Answer]] = {
    "429 with seconds": lambda _: Answer(status=429, headers={"Retry-After": "0"}),
    "429 with milliseconds": lambda _: Answer(status=429, headers={"Retry-After": "400"}),
    "429 with a date": lambda _: Answer(
        status=429, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    ),
    "429 with nonsense": lambda _: Answer(status=429, headers={"Retry-After": "soon"}),
    "500": lambda _: Answer(status=500),
    "time-out": slow,
    "a body that breaks off": lambda _: Answer(
        b"x", 206, {"Content-Length": "50", "Content-Range": "bytes 0-49/50"}
    ),
}


@contextmanager
def faulty(
    world: World, fault: str, times: int, where: str
) -> Iterator[tuple[Faulty, Server, Patience]]:
    api = Api(world)
    answer = Faulty(api, FAULTS[fault], times, where)
    with serving(answer) as server:
        api.url = server.url
        short = 0.3 if fault in ("time-out", "a body that breaks off") else 5
        yield answer, server, Patience(3, 0.01, 0.1, timeout_s=short)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_a_repeat(made_world: World, fault: str) -> None:
    scene = made_world.catalogue().scenes(TILES[0]).scenes[0]
    path = Path(scene.assets["B04"])
    with faulty(made_world, fault, 2, "/files/") as (answer, server, patience):
        web = Web(Reach.of(server.url), patience)
        file = RangeFile(web, f"{server.url}/files/{path.relative_to(made_world.folder)}")
        assert file.read() == path.read_bytes()
        assert answer.left == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_stops_in_one_sentence(made_world: World, fault: str) -> None:
    with faulty(made_world, fault, 99, "/files/") as (answer, server, patience):
        web = Web(Reach.of(server.url), patience)
        with pytest.raises(SourceError, match="the same command goes on later"):
            RangeFile(web, f"{server.url}/files/x")
        assert 99 - answer.left == patience.tries


def test_a_server_that_fails_while_pixels_are_read_is_no_broken_scene(made_world: World) -> None:
    """GDAL sees a short file; what is raised is what happened."""
    api = Api(made_world)
    answer = Faulty(api, FAULTS["500"], 0, "_B04.jp2")
    with serving(answer) as server:
        api.url = server.url
        catalogue = over_http(server, wanted=None)
        scene = catalogue.scenes(TILES[0]).scenes[0]
        answer.left = 99
        with pytest.raises(SourceError, match="still answers 500"):
            catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])


def test_a_search_that_fails_is_one_sentence(made_world: World) -> None:
    api = Api(made_world)
    with serving(Faulty(api, FAULTS["500"], 99, "/search")) as server:
        api.url = server.url
        with pytest.raises(SourceError, match="cannot be searched"):
            over_http(server).scenes(TILES[0])
    with pytest.raises(SourceError, match="no connection"):
        over_http(Server(f"http://127.0.0.1:{free_port()}"))


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def test_a_server_without_parts_of_files_is_said(made_world: World) -> None:
    with serving(lambda _: Answer(b"x" * 99)) as server:
        web = Web(Reach.of(server.url), QUICK)
        with pytest.raises(SourceError, match="gives no parts of files"):
            RangeFile(web, f"{server.url}/x")


def test_parts_of_a_file_are_those_of_the_file(tmp_path: Path) -> None:
    """Against the file itself: any order, over blocks, at the ends, and how little is fetched."""
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).bytes(200_001))
    with serving(lambda asked: part_of(path, asked)) as server, path.open("rb") as truth:
        file = RangeFile(Web(Reach.of(server.url), QUICK), f"{server.url}/data")
        assert file.size == 200_001
        for start, size in ((0, 4), (16_380, 10), (199_990, 50), (5, 150_000), (200_001, 1)):
            truth.seek(start)
            file.seek(start)
            assert file.read(size) == truth.read(size)
            assert file.tell() == truth.tell()
        file.seek(-3, 2)
        assert file.read() == path.read_bytes()[-3:]
        before = len(server.asked)
        file.seek(100)
        file.read(1000)
        assert len(server.asked) == before  # that block is kept


# --- hostile items ------------------------------------------------------------------------------


def hostile(world: World, href: str) -> tuple[list[str], list[str]]:
    """Why the items with that address of a band are left out, and what a canary saw of it."""

    def change(item: dict[str, Any]) -> dict[str, Any]:
        item = copy.deepcopy(item)
        item["assets"]["red"]["href"] = href.replace("CANARY", canary.url)
        return item

    with serving(lambda _: Answer(b"secret")) as canary, api_of(world) as (api, server):
        api.change = change
        listing = over_http(server).scenes(TILES[0])
        assert listing.scenes == ()
        return [entry.reason for entry in listing.left_out], canary.paths()


@pytest.mark.parametrize(
    ("href", "reason"),
    [
        ("CANARY/x.tif", "is not asked: only 127.0.0.1 may be"),
        ("HTTP://169.254.169.254/latest/meta-data/x.tif", "is not asked"),
        ("https://169.254.169.254/x.tif", "is not asked"),
        ("http://[::ffff:169.254.169.254]/x.tif", "is not asked"),
        ("http://2852039166/x.tif", "is not asked"),
        ("https://user@127.0.0.1.evil.example/x.tif", "is not asked"),
        ("file:///etc/passwd", "names a file on this machine"),
        ("FILE:///etc/passwd", "names a file on this machine"),
        ("/vsicurl/CANARY/x.tif", "names a file on this machine"),
        ("ftp://127.0.0.1/x.tif", "expected https, got ftp"),
        ("gs://bucket/x.tif", "expected https, got gs"),
        ("s3://bucket/x.tif", "only the buckets none are"),
        ("https://[::1/x.tif", "is not a URL"),
    ],
)
def test_an_address_that_nobody_allowed_is_not_asked(
    made_world: World, href: str, reason: str
) -> None:
    reasons, seen = hostile(made_world, href)
    assert len(reasons) == 7
    assert all(reason in each for each in reasons), reasons[0]
    assert seen == []


@pytest.mark.parametrize("where", ["/files/", "/search"])
def test_a_redirect_leads_nowhere_else(made_world: World, where: str) -> None:
    with serving(lambda _: Answer(b"secret")) as canary, api_of(made_world) as (api, _):

        def answer(asked: Asked) -> Answer:
            if where in asked.path:
                return Answer(status=302, headers={"Location": f"{canary.url}/secret"})
            return api(asked)

        with serving(answer) as server:
            api.url = server.url
            with pytest.raises(SourceError, match="is not asked: only"):
                over_http(server).scenes(TILES[0])
        assert canary.paths() == []


def test_a_page_of_results_is_not_read_from_a_file(made_world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"type": "FeatureCollection", "features": [], "links": []}))
    with api_of(made_world) as (api, _):

        def answer(asked: Asked) -> Answer:
            given = api(asked)
            if asked.path != "/search":
                return given
            page = json.loads(given.body)
            page["links"] = [{"rel": "next", "href": str(secret)}]
            return Answer(json.dumps(page).encode())

        with serving(answer) as server:
            api.url = server.url
            with pytest.raises(SourceError, match="expected https, got nothing"):
                over_http(server).scenes(TILES[0])


def test_a_name_that_leads_to_a_private_address_is_left_when_it_stands() -> None:
    """`localhost` stands for a name of the outside that was bent: the connection is what counts."""
    with serving(lambda _: Answer(b"secret")) as server:
        host = f"localhost:{server.url.rpartition(':')[2]}"
        bent = Reach(public=frozenset({("localhost", int(host[10:]))}), trusted=frozenset())
        web = Web(bent, QUICK)
        with pytest.raises(SourceError, match="without https"):
            web.ask("GET", f"http://{host}/x")
        with pytest.raises(SourceError, match="a private address; if you trust it"):
            web.ask("GET", f"https://{host}/x")
        assert server.asked == []
        told = Web(Reach.of(told=[host]), QUICK)
        assert told.content(f"http://{host}/x") == b"secret"


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("93.184.216.34", False),
        ("2606:2800:220:1::1", False),
        *((each, True) for each in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1")),
        *((each, True) for each in ("::1", "fe80::1%eth0", "::ffff:10.0.0.1", "0.0.0.0")),
    ],
)
def test_private_addresses(address: str, private: bool) -> None:
    reach = Reach.of("https://stac.example.org/v1", known=["files.example.org"])
    reach.check_url("https://files.example.org/x")
    if private:
        with pytest.raises(SourceError, match="private address"):
            reach.check_peer("files.example.org", 443, address)
    else:
        reach.check_peer("files.example.org", 443, address)
    Reach.of(told=["files.example.org"]).check_peer("files.example.org", 443, address)


def test_an_item_collection_may_name_files_but_no_unknown_host(
    made_world: World, safe: Remembering, tmp_path: Path
) -> None:
    """As people save it from a search: hosts in it were not typed by the user."""
    path = tmp_path / "items.json"
    path.write_text(
        json.dumps({"type": "FeatureCollection", "features": items_of(made_world, str)})
    )
    catalogue = StacCatalogue(str(path), BANDS, wanted=None, patience=QUICK)
    assert {scene.product for scene in safe.scenes(TILES[1]).scenes} <= {
        scene.product for scene in catalogue.scenes(TILES[1]).scenes
    }
    away = items_of(made_world, lambda file: f"https://somewhere.example/{file.name}")
    path.write_text(json.dumps({"type": "FeatureCollection", "features": away}))
    listing = StacCatalogue(str(path), BANDS, wanted=WANTED, patience=QUICK).scenes(TILES[0])
    assert listing.scenes == ()
    assert all("add --allow-host somewhere.example" in e.reason for e in listing.left_out)
    told = StacCatalogue(str(path), BANDS, wanted=None, told=["somewhere.example"], patience=QUICK)
    assert len(told.scenes(TILES[0]).scenes) == 7


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), ("{", "no STAC API"), ("{}", "no STAC API"), ("[]", "no STAC API")],
)
def test_a_catalogue_that_is_none(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "catalog.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError, match=reason):
        StacCatalogue(str(path), BANDS, wanted=None, patience=QUICK)


def test_an_api_needs_the_name_of_a_collection(made_world: World) -> None:
    with api_of(made_world) as (_, server):
        catalogue = StacCatalogue(server.url, BANDS, wanted=None, patience=QUICK)
        with pytest.raises(SourceError, match="name one behind the address"):
            catalogue.scenes(TILES[0])


def spoilt_items(path: Path, world: World, spoil: Callable[[dict[str, Any]], object]) -> Path:
    """An item collection whose first item is spoilt; or replaced by what `spoil` returns."""
    features: list[Any] = items_of(world, str)
    made = spoil(features[0])
    features[0] = features[0] if made is None else made
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        lambda item: item["assets"]["red"].update({"raster:bands": [{"offset": math.nan}]}),
        lambda item: item["assets"]["red"].update({"raster:bands": {"offset": 0}}),
        lambda item: item["assets"]["red"].update({"raster:bands": ["offset"]}),
        lambda item: item["assets"]["red"].update({"offset": -1000}),
        lambda item: item["assets"]["red"].update({"href": 7}),
        lambda item: item["properties"].update({"datetime": "yesterday"}),
        lambda item: item.update({"assets": None}),
        lambda item: item.pop("properties") and None,
    ],
)
def test_a_malformed_item_is_left_out_and_no_other(
    made_world: World, tmp_path: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    path = spoilt_items(tmp_path / "items.json", made_world, spoil)
    catalogue = StacCatalogue(str(path), BANDS, wanted=None, patience=QUICK)
    name = items_of(made_world, str)[0]["id"]
    place = str(spoilt_items(tmp_path / "whole.json", made_world, lambda _: None))
    whole = StacCatalogue(place, BANDS, wanted=None, patience=QUICK)
    before = {entry for tile in TILES for entry in whole.scenes(tile).left_out}
    left_out = {entry for tile in TILES for entry in catalogue.scenes(tile).left_out} - before
    assert [entry.product for entry in left_out] == [name]
    assert [entry for entry in left_out if entry.reason.startswith("unusable: ")]
    for tile in TILES:
        expected = [scene for scene in whole.scenes(tile).scenes if scene.product != name]
        assert list(catalogue.scenes(tile).scenes) == expected


@pytest.mark.parametrize("item", [None, "x", [], {"type": "Feature"}])
def test_an_item_that_is_none_at_all_is_left_out(
    made_world: World, tmp_path: Path, item: object
) -> None:
    path = tmp_path / "items.json"
    features = [item, *items_of(made_world, str)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    listing = StacCatalogue(str(path), BANDS, wanted=None, patience=QUICK).scenes(TILES[0])
    assert len(listing.scenes) == 6
    assert len(listing.left_out) == 2  # and the product that lacks a band


def test_links_that_lead_in_circles_are_followed_once(made_world: World, tmp_path: Path) -> None:
    root = write_static(tmp_path / "stac", made_world)
    below = root.parent / "sentinel-2-l1c" / "catalog.json"
    content = json.loads(below.read_text())
    content["links"] += [
        {"rel": "child", "href": "./catalog.json"},
        {"rel": "child", "href": "../catalog.json"},
        {"rel": "item", "href": "./broken.json"},
    ]
    below.write_text(json.dumps(content))
    (below.parent / "broken.json").write_text("{}")
    listing = StacCatalogue(str(root), BANDS, wanted=None, patience=QUICK).scenes(TILES[0])
    assert len(listing.scenes) == 6
    names = [entry.product for entry in listing.left_out]
    assert names == [made_world.without_band, "broken"]


def test_a_catalogue_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each catalogue has a child of its own."""
    monkeypatch.setattr("s2pairs.sources.stac_listing._MOST_FILES", 20)

    def deeper(asked: Asked) -> Answer:
        depth = int(asked.path.rpartition("/")[2] or 0)
        links = [{"rel": "child", "href": f"{server.url}/{depth + 1}"}]
        body = {"type": "Catalog", "stac_version": "1.0.0", "id": f"{depth}", "description": "x"}
        return Answer(json.dumps({**body, "links": links}).encode())

    with serving(deeper) as server:
        catalogue = StacCatalogue(server.url, BANDS, wanted=None, patience=QUICK)
        with pytest.raises(SourceError, match="over 20 files"):
            catalogue.scenes(TILES[0])


def test_a_search_without_end_is_ended(made_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2pairs.sources.stac_listing._MOST_PAGES", 5)

    def endless(asked: Asked) -> Answer:
        given = api(asked)
        if asked.path != "/search":
            return given
        page = json.loads(given.body)
        body = {**json.loads(asked.body), "token": 0}
        link = {"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": body}
        return Answer(json.dumps({**page, "links": [link]}).encode())

    api = Api(made_world)
    with serving(endless) as server:
        api.url = server.url
        with pytest.raises(SourceError, match="more than 5 pages"):
            over_http(server, wanted=None).scenes(TILES[0])


def test_no_error_and_no_cube_says_the_keys_of_an_address(made_world: World) -> None:
    def change(item: dict[str, Any]) -> dict[str, Any]:
        item["assets"]["red"]["href"] += ".gone?token=secret"
        return item

    with api_of(made_world) as (api, server):
        api.change = change
        listing = over_http(server).scenes(TILES[0])
        assert not [scene for scene in listing.scenes if scene.cloud_cover <= 2]
        assert listing.left_out
        assert all("404" in e.reason and "secret" not in e.reason for e in listing.left_out)
        place = server.url.replace("//", "//me:secret@")
        for wrong in (f"{place}/nothing?key=secret", place):
            with pytest.raises(SourceError) as raised:
                StacCatalogue(wrong, BANDS, wanted=None, patience=QUICK).scenes(TILES[0])
            assert "secret" not in str(raised.value)


def test_both_spellings_of_a_tile_are_asked_for() -> None:
    """Earth Search writes the zones 1 to 9 with one digit."""
    assert items.grid_codes(TileId.parse("05QKB")) == ("MGRS-05QKB", "MGRS-5QKB")
    assert items.grid_codes(TILES[0]) == (f"MGRS-{TILES[0]}",)
    for code in ("MGRS-5QKB", "MGRS-05QKB"):
        assert items.tile_of("x", {"grid:code": code}) == "05QKB"


# --- object stores ------------------------------------------------------------------------------


class Bucket:
    """An object store with one bucket, as far as GDAL asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Answer | None = None

    def __call__(self, asked: Asked) -> Answer:
        if self.fault is not None:
            return self.fault
        return part_of(self.folder / asked.path.removeprefix("/bucket/"), asked)


@contextmanager
def in_bucket(folder: Path) -> Iterator[tuple[Bucket, Assets, Server]]:
    bucket = Bucket(folder)
    with serving(bucket) as server:
        store = {
            "AWS_S3_ENDPOINT": server.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_NO_SIGN_REQUEST": "YES",
        }
        web = Web(Reach.of(), Patience(tries=2, first_wait_s=0.01, timeout_s=5))
        yield bucket, Assets(web, {"bucket": store}, beside_local_catalogue=False), server


def first_pixel(image: DatasetReader) -> int:
    return int(image.read(1)[0, 0])


def test_a_store_that_fails_is_no_broken_scene(tmp_path: Path) -> None:
    """While a file is opened and while it is read; and a short file is one."""
    cog_item(tmp_path / "x", LAND)
    whole = (tmp_path / "x" / "B.tif").read_bytes()
    for name in ("opened", "read"):
        (tmp_path / f"{name}.tif").write_bytes(whole)
    (tmp_path / "short.tif").write_bytes(whole[: len(whole) // 2])
    with in_bucket(tmp_path) as (bucket, assets, server):
        assert assets.look("s3://bucket/opened.tif", first_pixel) == LAND[0, 0]
        for name in ("short", "nowhere"):
            with pytest.raises(SceneError, match=f"s3://bucket/{name}.tif cannot be"):
                assets.look(f"s3://bucket/{name}.tif", first_pixel)
        with pytest.raises(SceneError):
            assets.check_whole("s3://bucket/short.tif")

        def falls_silent(image: DatasetReader) -> int:
            bucket.fault = Answer(status=503)
            return first_pixel(image)

        before = len(server.asked)
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/read.tif", falls_silent)
        assert len(server.asked) - before > 2  # tried again
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/new.tif", first_pixel)
        bucket.fault = Answer(status=403)
        with pytest.raises(SourceError, match="403"):
            assets.look("s3://bucket/newer.tif", first_pixel)


def test_a_store_that_says_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{silent.getsockname()[1]}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_NO_SIGN_REQUEST": "YES",
        }
        web = Web(Reach.of(), Patience(tries=1, first_wait_s=0.01, timeout_s=1))
        assets = Assets(web, {"bucket": store}, beside_local_catalogue=False)
        with pytest.raises(SourceError, match="the same command goes on later"):
            assets.look("s3://bucket/silent.tif", first_pixel)


# --- offsets and names --------------------------------------------------------------------------


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


WITH = {"scale": 0.0001, "offset": -0.1}
APPLIED = "earthsearch:boa_offset_applied"
LAND = np.random.default_rng(0).integers(120, 3000, (512, 512)).astype(np.uint16)
SNOW = np.full((512, 512), 6000, np.uint16)


@pytest.mark.parametrize(
    ("dn", "changes", "offset"),
    [
        (LAND + np.uint16(1000), {"scaling": WITH}, -1000),
        (LAND + np.uint16(1000), {"scaling": WITH, APPLIED: False}, -1000),
        (LAND, {"scaling": WITH, APPLIED: False}, 0),  # 1000 was taken away, the item denies it
        (LAND, {"scaling": WITH, APPLIED: True}, 0),
        (LAND + np.uint16(1000), {"scaling": {"scale": 0.0001, "offset": 0}}, -1000),
        (LAND, {}, 0),
        (LAND + np.uint16(1000), {}, -1000),
        (SNOW, {"scaling": WITH}, -1000),  # the pixels do not tell, what is said agrees
        (SNOW, {"scaling": WITH, APPLIED: True}, None),  # and here it does not
    ],
)
def test_offsets_of_items_against_the_pixels(
    tmp_path: Path, dn: npt.NDArray[np.uint16], changes: dict[str, object], offset: int | None
) -> None:
    place = cog_item(tmp_path / "x", dn, **changes)
    catalogue = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK)
    listing = catalogue.scenes(TILES[0])
    if offset is None:
        assert "cannot be told" in listing.left_out[0].reason
        assert APPLIED in listing.left_out[0].reason
        return
    (scene,) = listing.scenes
    assert set(scene.add_offset.values()) == {offset}
    (read,) = catalogue.read(scene, "B08", [PixelWindow(7, 9, 64, 70)])
    np.testing.assert_array_equal(read, dn[7:71, 9:79])


@pytest.mark.realdata
def test_the_offset_is_seen_in_real_pixels(crossmi_data: Path) -> None:
    """By 13 bands and by four; two of Level-2A carry none though their Level-1C does."""
    folder = crossmi_data / "s2" / "terramind_examples"
    every = {"L1C": [band.name for band in ALL_BANDS]}
    every["L2A"] = [name for name in every["L1C"] if name != "B10"]
    expected = {
        "L1C": {"282D": -1000, "433D": -1000, "609U": -1000, "38D": 0, "637U": 0},
        "L2A": {"282D": 0, "433D": -1000, "609U": 0, "38D": 0, "637U": 0},
    }
    for level, chips in expected.items():
        for chip, offset in chips.items():
            (path,) = folder.glob(f"S2{level}__{chip}_*.tif")
            with rasterio.open(path) as image:
                stack = image.read().astype(np.uint16)
            samples = dict(zip(every[level], stack, strict=True))
            assert witnessed(samples, level) == offset, (level, chip)
            four = {name: samples[name] for name in BANDS}
            assert witnessed(four, level) in (offset, None), (level, chip)


def test_claims_that_agree_are_kept_as_they_are() -> None:
    odd = {"its own metadata": {"B04": -1500, "B08": -1000}}
    samples = {"B04": LAND + np.uint16(1500), "B08": LAND + np.uint16(1000)}
    assert settled(odd, samples, "L1C") == odd["its own metadata"]


def test_the_metadata_of_a_product_bind_unless_several_bands_prove_them_wrong() -> None:
    """One band in shadow may be less than -3 %; two that are so have had nothing added."""
    own = dict.fromkeys(BANDS, -1000)
    dark = LAND + np.uint16(1000)
    dark[:10] = 500
    one = {name: dark if name == "B08" else LAND + np.uint16(1000) for name in BANDS}
    assert confirmed(own, one, "L2A") == own
    assert settled({"who": own, "another": own}, one, "L2A") == own
    two = {name: dark if name in ("B08", "B04") else LAND + np.uint16(1000) for name in BANDS}
    with pytest.raises(SceneError, match="would make reflectance negative"):
        confirmed(own, two, "L2A")
    assert set(settled({"who": own, "another": own}, two, "L2A").values()) == {0}
    none = dict.fromkeys(BANDS, 0)
    hazy = dict.fromkeys(BANDS, LAND + np.uint16(1000))
    assert confirmed(none, hazy, "L2A") == none


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("B04", {}),
        ("B4", {}),
        ("B04_10m", {}),
        ("red", {}),
        ("anything", {"eo:bands": [{"name": "B04", "common_name": "red"}]}),
        ("anything", {"bands": [{"name": "x", "eo:common_name": "red"}]}),
    ],
)
def test_names_of_assets(key: str, fields: dict[str, Any]) -> None:
    item = pystac.Item("x", None, None, datetime(2020, 1, 1, tzinfo=UTC), {})
    picture = {"eo:bands": [{"name": "red"}, {"name": "green"}, {"name": "blue"}]}
    item.add_asset("visual", pystac.Asset("visual.tif", extra_fields=picture))
    with pytest.raises(SceneError, match="band B04 is missing"):
        band_asset(item, "B04")
    item.add_asset(key, pystac.Asset("it.tif", extra_fields=fields))
    assert band_asset(item, "B04").href == "it.tif"


def test_assets_of_the_other_level_are_refused(made_world: World) -> None:
    """As some items of Level-1C had them."""

    def change(item: dict[str, Any]) -> dict[str, Any]:
        item["assets"]["red"]["href"] = f"{api.url}/files/sentinel-s2-l2a/B04.jp2"
        return item

    with api_of(made_world) as (api, server):
        api.change = change
        reasons = [entry.reason for entry in over_http(server).scenes(TILES[0]).left_out]
        assert all("the item is L1C, but its B04 is" in reason for reason in reasons)
        assert len(reasons) == 7


@pytest.mark.parametrize("fault", ["cut short", "elsewhere", "missing"])
def test_a_scene_with_a_broken_classification_is_left_out(tmp_path: Path, fault: str) -> None:
    place = cog_item(tmp_path / "x", LAND)
    collection = json.loads(place.read_text())
    collection["features"][0]["assets"]["scl"] = {"href": "./SCL.tif"}
    place.write_text(json.dumps(collection))
    path = place.parent / "SCL.tif"
    left, top = TILES[0].upper_left()
    corner = Affine(20, 0, left + 20 * (fault == "elsewhere"), 0, -20, top)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 256, "width": 256}
    crs = f"EPSG:{TILES[0].epsg}"
    with rasterio.open(path, "w", **profile, crs=crs, transform=corner) as image:
        image.write(np.full((256, 256), 4, np.uint8), 1)
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:30_000])
    elif fault == "missing":
        path.unlink()
    listing = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK).scenes(TILES[0])
    assert listing.scenes == ()
    assert "SCL.tif" in listing.left_out[0].reason


def test_the_scene_classification_of_an_item(tmp_path: Path) -> None:
    place = cog_item(tmp_path / "x", LAND)
    collection = json.loads(place.read_text())
    collection["features"][0]["assets"]["scl"] = {"href": "./SCL.tif"}
    place.write_text(json.dumps(collection))
    left, top = TILES[0].upper_left()
    classes = np.random.default_rng(1).integers(0, 12, (256, 256)).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 256, "width": 256}
    corner = Affine(20, 0, left, 0, -20, top)
    crs = f"EPSG:{TILES[0].epsg}"
    with rasterio.open(
        place.parent / "SCL.tif", "w", **profile, crs=crs, transform=corner
    ) as image:
        image.write(classes, 1)
    catalogue = StacCatalogue(str(place), BANDS, wanted=WANTED, patience=QUICK)
    (scene,) = catalogue.scenes(TILES[0]).scenes
    (flags,) = catalogue.masks(scene, [PixelWindow(10, 20, 64, 64)]) or []
    truth = from_scene_classes(classes.repeat(2, 0).repeat(2, 1)[10:74, 20:84])
    np.testing.assert_array_equal(flags, truth)
