"""What a STAC lists: hostile items, catalogues that are none, searches without end."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s2pairs.errors import SourceError
from s2pairs.sources import items
from s2pairs.sources.reach import Reach
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.web import Web
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Answer, Asked, serving
from tests.s2pairs.made_world import BANDS, TILES, World
from tests.s2pairs.same_pixels import Remembering
from tests.s2pairs.stac_world import QUICK, WANTED, Api, api_of, items_of, over_http, write_static


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
