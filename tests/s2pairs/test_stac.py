"""STAC sources: the made world from files and over HTTP, and servers that fail."""

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2pairs.errors import SceneError, SourceError
from s2pairs.scenes import PixelWindow
from s2pairs.sources.reach import Reach
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.web import Patience, RangeFile, Web
from tests.s2pairs.local_server import Answer, Asked, Server, part_of, serving
from tests.s2pairs.made_world import BANDS, TILES, World
from tests.s2pairs.same_pixels import (
    Remembering,
    assert_same_cubes,
    assert_same_listing,
    assert_same_pixels,
    cube_of,
)
from tests.s2pairs.stac_world import QUICK, WANTED, Api, api_of, over_http, write_static


@pytest.fixture(scope="module")
def static(made_world: World, tmp_path_factory: pytest.TempPathFactory) -> Remembering:
    root = write_static(tmp_path_factory.mktemp("static") / "stac", made_world)
    return Remembering(StacCatalogue(str(root), BANDS, wanted=WANTED, patience=QUICK))


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
