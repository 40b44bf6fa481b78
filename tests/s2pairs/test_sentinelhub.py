"""Sentinel Hub: the made world through OAuth, Catalog and Process over real HTTP; its faults."""

import json
import os
import pickle
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine

from s2pairs.bands import STORED_NO_DATA
from s2pairs.cost import FREE_UNITS, Priced
from s2pairs.errors import SceneError, SourceError
from s2pairs.scenes import PixelWindow, Scene, Wanted, choose_dates
from s2pairs.sources.sentinelhub import (
    Cost,
    SentinelHubCatalogue,
    _parts,
    cost_of,
)
from s2pairs.sources.web import Patience
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Answer, Asked, Server, serving
from tests.s2pairs.made_sentinelhub import (
    CLIENT,
    PROCESS_PATH,
    SEARCH_PATH,
    TOKEN_PATH,
    SentinelHub,
)
from tests.s2pairs.made_world import BANDS, DATES, TILES, World
from tests.s2pairs.same_pixels import Remembering, stored

QUICK = Patience(tries=3, first_wait_s=0.01, longest_wait_s=0.2, timeout_s=5)
WANTED = Wanted(max_cloud=2.0)
NO_REFLECTANCE = 1000  # as a cube stores it


@pytest.fixture(scope="module")
def service(made_world: World) -> SentinelHub:
    return SentinelHub(made_world)


@pytest.fixture(autouse=True)
def _no_configuration_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SH_CLIENT_ID", CLIENT["client_id"])
    monkeypatch.setenv("SH_CLIENT_SECRET", CLIENT["client_secret"])
    monkeypatch.delenv("SH_PROFILE", raising=False)


@contextmanager
def running(
    answer: Callable[[Asked], Answer], patience: Patience = QUICK
) -> Iterator[tuple[SentinelHubCatalogue, Server]]:
    """A catalogue at a local service, named by the package's own configuration file."""
    with serving(answer) as server:
        folder = Path(os.environ["XDG_CONFIG_HOME"]) / "sentinelhub"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(
            f'[default-profile]\nsh_base_url = "{server.url}"\n'
            f'sh_token_url = "{server.url}{TOKEN_PATH}"\n'
        )
        yield SentinelHubCatalogue("", BANDS, wanted=WANTED, patience=patience), server


def test_the_service_gives_the_pixels_of_the_products(
    safe: Remembering, service: SentinelHub
) -> None:
    """All but reflectance below nothing, which harmonised values cannot say."""
    with running(service) as (catalogue, server):
        hub = Remembering(catalogue)
        below = 0
        for tile in TILES:
            others = {scene.product: scene for scene in safe.scenes(tile).scenes}
            for scene in hub.scenes(tile).scenes:
                if scene.product not in others or scene.cloud_cover > 2:
                    continue
                other = others[scene.product]
                assert (scene.grid, scene.level) == (other.grid, other.level)
                assert scene.acquired == other.acquired.replace(microsecond=0)
                for band in BANDS:
                    got, truth = stored(hub, scene, band)[0], stored(safe, other, band)[0]
                    negative = (truth != STORED_NO_DATA) & (truth < NO_REFLECTANCE)
                    below += int(negative.sum())
                    truth = np.where(negative, NO_REFLECTANCE, truth)
                    np.testing.assert_array_equal(got, truth)
        assert below > 0
        assert server.paths().count(SEARCH_PATH) > len(TILES)  # several pages
        assert service.given == 1


def test_all_bands_come_with_one_request(service: SentinelHub) -> None:
    with running(service) as (catalogue, _):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        before = len(service.processed)
        windows = [PixelWindow(0, 0, 64, 64), PixelWindow(64, 0, 64, 128)]
        for band in BANDS:
            catalogue.read(scene, band, windows)
        assert len(service.processed) - before == len(windows)
        cost = cost_of(windows, BANDS, dates=1, level="L1C")
        assert cost.requests == len(windows)
        assert isinstance(catalogue, Priced)
        priced = catalogue.cost(scene, BANDS, windows)
        assert (priced.requests, priced.processing_units) == (cost.requests, cost.processing_units)


def test_another_process_can_read_what_was_listed_here(service: SentinelHub) -> None:
    """Tasks are sent to workers with their catalogue; each has a token of its own."""
    with running(service) as (catalogue, _):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        window = [PixelWindow(0, 0, 64, 64)]
        given = service.given
        (there,) = pickle.loads(pickle.dumps(catalogue)).read(scene, "B04", window)
        np.testing.assert_array_equal(there, catalogue.read(scene, "B04", window)[0])
        assert service.given == given + 1


def test_nothing_is_asked_for_twice_however_much_it_is(service: SentinelHub) -> None:
    """Two threads that read at a time; each keeps what it reads, and no more."""
    with running(service) as (catalogue, _):
        scenes = catalogue.scenes(TILES[0]).scenes[:2]
        windows = [PixelWindow(row, 0, 8, 8) for row in (0, 8, 16)]
        before = len(service.processed)

        def read_bands(scene: Scene) -> None:
            for band in BANDS:
                catalogue.read(scene, band, windows)

        threads = [threading.Thread(target=read_bands, args=[scene]) for scene in scenes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(service.processed) - before == len(scenes) * len(windows)
        read_bands(scenes[0])
        kept = catalogue._kept._windows
        assert list(kept) == windows
        read_bands(scenes[1])
        catalogue.read(scenes[1], "B04", windows[:2])
        assert list(catalogue._kept._windows) == windows[:2]  # no more than is being read


def test_no_secret_goes_to_another_process(
    service: SentinelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(service) as (catalogue, _):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        sent = pickle.dumps(catalogue)
        for secret in (*CLIENT.values(), *service.tokens):
            assert secret.encode() not in sent
        monkeypatch.delenv("SH_CLIENT_SECRET")
        with pytest.raises(SourceError, match="on each machine that reads scenes"):
            pickle.loads(sent).read(scene, "B04", [PixelWindow(0, 0, 8, 8)])


SCENES = """
const tiles = (names) => names.map((name) => ({ dataPath: name, tileOriginalId: name }));
const left = (names) =>
  preProcessScenes({ scenes: { tiles: tiles(names) } }).scenes.tiles.map((each) => each.dataPath);
console.log(JSON.stringify(CASES.map(left)));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="node, which runs the script, is not here")
def test_the_script_itself_takes_no_pixels_of_another_tile(service: SentinelHub) -> None:
    with running(service) as (catalogue, _):
        scene = catalogue.scenes(TILES[1]).scenes[0]
        catalogue.read(scene, "B04", [PixelWindow(0, 0, 8, 8)])
    script = service.processed[-1]["evalscript"]
    mine, path = f"x/{scene.product}.SAFE", "tiles/31/T/BF/2020/1/1/0"
    other, elsewhere = "S2A_MSIL1C_X_T31TCF_X.SAFE", "tiles/31/T/CF/2020/1/1/0"
    cases = [[other, mine, path], [other, path], [elsewhere], []]
    program = script.replace("//VERSION=3", "") + SCENES.replace("CASES", json.dumps(cases))
    ran = subprocess.run(
        ["node", "-e", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(ran.stdout) == [[mine], [path], [], []]


def test_a_tile_on_the_180th_meridian_is_searched_on_both_sides(service: SentinelHub) -> None:
    boxes: list[list[float]] = []

    def noted(asked: Asked) -> Answer:
        if asked.path == SEARCH_PATH:
            boxes.append(json.loads(asked.body)["bbox"])
        return service(asked)

    with running(noted) as (catalogue, _):
        catalogue.scenes(TileId.parse("01LAC"))
    (west, _, east, _), (again_west, _, again_east, _) = boxes
    assert (east, again_west) == (180, -180)
    assert 178 < west < 180
    assert -180 < again_east < -178


def test_an_item_that_is_none_is_left_out(service: SentinelHub) -> None:
    changes = [{"datetime": None}, {"proj:bbox": ["a"]}, {"eo:cloud_cover": [1]}]

    def spoilt(asked: Asked) -> Answer:
        given = service(asked)
        if asked.path != SEARCH_PATH:
            return given
        page = json.loads(given.body)
        for item in page["features"]:
            if changes:
                item["properties"] |= changes.pop()
            elif not nameless:
                nameless.append(item["id"])
                item["properties"] = None
        return Answer(json.dumps(page).encode())

    nameless: list[str] = []
    with running(spoilt) as (catalogue, _):
        listing = catalogue.scenes(TILES[0])
    assert len(nameless) == 1
    assert len(listing.left_out) >= 3
    assert nameless[0] in {entry.product for entry in listing.left_out}
    assert listing.scenes


def test_a_search_without_end_is_ended(
    service: SentinelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2pairs.sources.sentinelhub_service._MOST_PAGES", 5)
    page = Answer(json.dumps({"features": [{"id": "x"}], "context": {"next": 1}}).encode())
    with running(fault(service, SEARCH_PATH, 99, page)) as (catalogue, server):
        with pytest.raises(SourceError, match="more than 5 pages"):
            catalogue.scenes(TILES[0])
        assert server.paths().count(SEARCH_PATH) == 5


def test_only_the_tile_that_was_asked_for(service: SentinelHub) -> None:
    """At one moment two tiles are seen, of two zones, whose ground overlaps."""
    with running(service) as (catalogue, _):
        scene = catalogue.scenes(TILES[1]).scenes[0]
        catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])
        script = service.processed[-1]["evalscript"]
        assert f'TILE = "T{TILES[1]}"' in script
        assert 'PATH = "/31/T/BF/"' in script
        assert f'PRODUCT = "{scene.product}"' in script


def test_dates_are_chosen_as_from_folders(
    made_world: World, safe: Remembering, service: SentinelHub
) -> None:
    """But for what the service does not know: that a product lacks a band or is cut short."""
    harmed = {made_world.without_band, made_world.cut_short}
    with running(service) as (catalogue, _):
        for tile in TILES:
            listing = catalogue.scenes(tile)
            whole = [scene for scene in listing.scenes if scene.product not in harmed]
            assert [e.product for e in listing.left_out] == []
            known = safe.scenes(tile)
            assert [scene.product for scene in whole] == [scene.product for scene in known.scenes]
            chosen = choose_dates(tile, known, count=DATES, max_cloud=2.0)
            assert len(chosen.scenes) == DATES


# --- faults -------------------------------------------------------------------------------------


def read_first(catalogue: SentinelHubCatalogue) -> npt.NDArray[np.uint16]:
    scene = catalogue.scenes(TILES[0]).scenes[0]
    return catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])[0]


def fault(service: SentinelHub, path: str, times: int, answer: Answer) -> Callable[[Asked], Answer]:
    left = [times]

    def answered(asked: Asked) -> Answer:
        if asked.path == path and left[0]:
            left[0] -= 1
            return answer
        return service(asked)

    return answered


PASSING = {
    "429 in milliseconds": Answer(status=429, headers={"Retry-After": "400"}),
    "429 until a date": Answer(
        status=429, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    ),
    "500": Answer(status=500),
    "503": Answer(status=503),
}


@pytest.mark.parametrize("path", [TOKEN_PATH, SEARCH_PATH, PROCESS_PATH])
@pytest.mark.parametrize("what", PASSING)
def test_a_fault_that_passes_costs_a_repeat(service: SentinelHub, path: str, what: str) -> None:
    with running(fault(service, path, 2, PASSING[what])) as (catalogue, server):
        assert read_first(catalogue).shape == (64, 64)
        assert server.paths().count(path) >= 3


@pytest.mark.parametrize("path", [TOKEN_PATH, SEARCH_PATH, PROCESS_PATH])
@pytest.mark.parametrize("what", PASSING)
def test_a_fault_that_stays_stops_in_one_sentence(
    service: SentinelHub, path: str, what: str
) -> None:
    """The package's own client waits for ever on a 429."""
    with running(fault(service, path, 99, PASSING[what])) as (catalogue, server):
        with pytest.raises(SourceError, match=r"still answers .* after 3 tries; the same command"):
            read_first(catalogue)
        assert server.paths().count(path) == QUICK.tries


def test_a_service_that_says_nothing_is_left(service: SentinelHub) -> None:
    released = threading.Event()

    def silent(asked: Asked) -> Answer:
        if asked.path == PROCESS_PATH:
            released.wait(5)
        return service(asked)

    patience = Patience(tries=2, first_wait_s=0.01, longest_wait_s=0.1, timeout_s=0.3)
    with running(silent, patience) as (catalogue, _):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        with pytest.raises(SourceError, match="the same command goes on later"):
            catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])
        released.set()


def test_a_dead_token_is_renewed_once(service: SentinelHub) -> None:
    with running(service) as (catalogue, server):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        given = service.given
        service.tokens.clear()
        catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])
        assert service.given == given + 1
    with running(fault(service, PROCESS_PATH, 99, Answer(b"{}", 401))) as (catalogue, server):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        with pytest.raises(SourceError, match="takes no token of this client"):
            catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])
        assert server.paths().count(PROCESS_PATH) == 2


def test_a_wrong_secret_is_said_and_not_shown(
    service: SentinelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH_CLIENT_SECRET", "guessed")
    with running(service) as (catalogue, server):
        with pytest.raises(SourceError, match=r"gives no token .*invalid_client") as raised:
            catalogue.scenes(TILES[0])
        assert "guessed" not in str(raised.value)
        assert server.paths() == [TOKEN_PATH]


def test_a_spent_quota_stops_at_once(service: SentinelHub) -> None:
    spent = Answer(
        b'{"error": {"status": 403, "message": "Insufficient processing units"}}', status=403
    )
    with running(fault(service, PROCESS_PATH, 99, spent)) as (catalogue, server):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        with pytest.raises(SourceError, match=r"Insufficient processing units.*is kept"):
            catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])
        assert server.paths().count(PROCESS_PATH) == 1


@pytest.mark.parametrize(
    ("body", "reason"), [(b"no image", "no GeoTIFF"), (b"", "no GeoTIFF"), (None, "expected")]
)
def test_an_answer_that_is_no_image(
    service: SentinelHub, tmp_path: Path, body: bytes | None, reason: str
) -> None:
    if body is None:
        path = tmp_path / "small.tif"
        profile = {"driver": "GTiff", "count": 1, "height": 2, "width": 2, "dtype": "uint8"}
        place = {"crs": "EPSG:32631", "transform": Affine(10, 0, 0, 0, -10, 0)}
        with rasterio.open(path, "w", **profile, **place) as image:
            image.write(np.zeros((1, 2, 2), np.uint8))
        body = path.read_bytes()
    with running(fault(service, PROCESS_PATH, 99, Answer(body))) as (catalogue, _):
        scene = catalogue.scenes(TILES[0]).scenes[0]
        with pytest.raises(SceneError, match=reason):
            catalogue.read(scene, "B04", [PixelWindow(0, 0, 64, 64)])


def test_credentials_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SH_CLIENT_SECRET")
    with pytest.raises(SourceError, match="set SH_CLIENT_ID and SH_CLIENT_SECRET"):
        SentinelHubCatalogue("cdse", BANDS, wanted=None, patience=QUICK)
    with pytest.raises(SourceError, match="unknown source sentinelhub:mars"):
        SentinelHubCatalogue("mars", BANDS, wanted=None, patience=QUICK)


# --- cost ---------------------------------------------------------------------------------------


def test_the_cost_by_the_definition_of_a_processing_unit() -> None:
    """One unit: 512 x 512 pixels, 3 bands, 16 bits. Least: 0.01 of the area, 0.005 in all."""
    square = PixelWindow(0, 0, 512, 512)
    assert cost_of([square], ("B02", "B03", "B04"), 1, "L1C") == Cost(1, 1.0)
    assert cost_of([square], BANDS, 12, "L1C").processing_units == pytest.approx(16)
    assert cost_of([square], BANDS, 12, "L2A").processing_units == pytest.approx(20)
    tiny = cost_of([PixelWindow(0, 0, 1, 1)], ("B04",), 1, "L1C")
    assert tiny.processing_units == pytest.approx(0.005)
    whole = PixelWindow(0, 0, 10980, 10980)
    paper = cost_of([whole], BANDS, 12 * 42, "L1C")
    assert paper.requests == 25 * 12 * 42
    assert paper.processing_units == pytest.approx(309_000, rel=1e-3)
    regions = cost_of(100 * [square], BANDS, 12 * 42, "L1C")
    assert regions.processing_units == pytest.approx(67_200)
    assert regions.processing_units > 6 * FREE_UNITS


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2500, 2500), (2501, 100), (600, 7777)])
def test_parts_tile_the_window(height: int, width: int) -> None:
    window = PixelWindow(7, 11, height, width)
    covered = np.zeros((height, width), dtype=np.uint8)
    for part in _parts(window):
        assert max(part.height, part.width) <= 2500
        row, col = part.row - 7, part.col - 11
        covered[row : row + part.height, col : col + part.width] += 1
    assert (covered == 1).all()
