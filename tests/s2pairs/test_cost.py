"""What a plan says that a build will ask for, against what servers and files were asked for."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import s2pairs.plan
from s2pairs import filling
from s2pairs.build import Request, build, choose, plan
from s2pairs.cost import Estimate, Priced, ReadCost, Watched, estimate, lines
from s2pairs.errors import SourceError
from s2pairs.safe_writer import write_l1c
from s2pairs.scenes import Catalogue, PixelWindow
from s2pairs.sources import safe
from s2pairs.sources.jp2 import read_band
from s2pairs.sources.rasters import RastersCatalogue
from s2pairs.sources.reading_cost import pixels_of, touched_blocks
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.sources.sentinelhub import SentinelHubCatalogue
from s2pairs.sources.stac import StacCatalogue
from s2pairs.sources.web import Patience
from s2pairs.tiles import TileId
from tests.s2pairs.local_server import Asked, serving
from tests.s2pairs.made_sentinelhub import CLIENT, TOKEN_PATH, SentinelHub
from tests.s2pairs.made_world import DATES, TILES, World
from tests.s2pairs.stac_world import Api
from tests.s2pairs.test_rasters import write
from tests.worlds import l1c

PATIENCE = Patience(tries=2, first_wait_s=0.01, timeout_s=20)
BANDS = ("B04", "B02")  # which the broken products have too
REQUEST = Request(TILES, BANDS, dates=DATES, regions=5, region_size=128)


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard a task, so that regions are cut between tasks as those of a large cube are."""
    monkeypatch.setattr(filling, "TASK_BYTES", 1)
    monkeypatch.setattr(s2pairs.plan, "SHARD_PATCHES", 16)


def planned(request: Request, catalogue: Catalogue) -> Estimate:
    watched = Watched(catalogue)
    listings = choose(request, watched)
    planned = plan(request, listings)
    return estimate(listings, planned, catalogue, 1, request.wanted, watched.looks)


def built(request: Request, catalogue: Catalogue, out: Path) -> int:
    return build(request, catalogue, out, workers=1, progress=lambda *_: None).shards


def test_requests_and_units_of_sentinel_hub(
    made_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = SentinelHub(made_world)
    with serving(service) as server:
        configure(tmp_path, monkeypatch, server.url)
        blind, seeing = (
            SentinelHubCatalogue("", BANDS, wanted=wanted, patience=PATIENCE)
            for wanted in (None, REQUEST.wanted)
        )
        told = planned(REQUEST, blind)
        assert not service.processed
        assert built(REQUEST, seeing, tmp_path / "cube.zarr") > 1
    sizes = [(each["output"]["width"], each["output"]["height"]) for each in service.processed]
    assert told.read is not None
    assert told.read.requests == len(sizes) > 2 * DATES
    units = sum(max(0.01, width * height / 512**2) * len(BANDS) / 3 for width, height in sizes)
    assert told.read.processing_units == pytest.approx(units)
    said = "\n".join(lines(told))
    assert f"{len(sizes)} requests, {told.read.processing_units:.1f} processing units" in said
    assert f"{len(sizes) / 10_000:.2f} months of a free account" in said
    assert told.seconds is not None
    assert told.seconds >= len(sizes) / 300 * 60


def test_a_plan_spends_nothing_on_choosing_by_region(
    made_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = SentinelHub(made_world)
    by_region = Request(TILES[:1], BANDS, dates=DATES, region_size=128, choice="region")
    with serving(service) as server:
        configure(tmp_path, monkeypatch, server.url)
        blind = SentinelHubCatalogue("", BANDS, wanted=None, patience=PATIENCE)
        with pytest.raises(SourceError, match="plan with --choice tile"):
            planned(by_region, blind)
    assert not service.processed


def configure(folder: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    for name, value in CLIENT.items():
        monkeypatch.setenv(f"SH_{name.upper()}", value)
    monkeypatch.delenv("SH_PROFILE", raising=False)
    (folder / "sentinelhub").mkdir()
    (folder / "sentinelhub" / "config.toml").write_text(
        f'[default-profile]\nsh_base_url = "{url}"\nsh_token_url = "{url}{TOKEN_PATH}"\n'
    )


SIDE = 1100
ONE_BAND = Request((TileId.parse("31TCJ"),), ("B04",), dates=2, regions=3, region_size=192)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two dates of rough ground in images of four coded blocks."""
    folder = tmp_path_factory.mktemp("blocks")
    draw = np.random.default_rng(0)
    for day in ("2020-01-03", "2020-03-10"):
        product = l1c("31TCJ", day, size=SIDE)
        ground = draw.normal(1500, 20, (SIDE, SIDE)).astype(np.uint16)
        write_l1c(folder, product, {"B04": ground})
    return World(folder, "", "")


def test_requests_and_bytes_over_http(blocks: World, tmp_path: Path) -> None:
    api = Api(blocks)
    api.change = partial(described, blocks)
    with serving(api) as server:
        api.url = server.url
        blind, seeing = (
            StacCatalogue(f"{api.url}#sentinel-2-l1c", ("B04",), wanted=wanted, patience=PATIENCE)
            for wanted in (None, ONE_BAND.wanted)
        )
        told = planned(ONE_BAND, blind)
        assert not asked_for_files(server.asked)
        assert built(ONE_BAND, seeing, tmp_path / "cube.zarr") > 1
        asked = asked_for_files(server.asked)
    assert told.read is not None
    assert told.read.requests == pytest.approx(len(asked), rel=0.1)
    assert told.read.bytes == pytest.approx(bytes_in(asked), rel=0.2)
    assert told.read.assumed_bytes == 0
    assert "months" not in "\n".join(lines(told))  # nothing here is metered


def test_choosing_by_region_has_its_price(
    blocks: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product without masks is read twice: to choose, in every region there is, and to build."""
    monkeypatch.setattr(SafeCatalogue, "masks", lambda *_: None)
    by_region = replace(ONE_BAND, choice="region", max_cloud=100.0)
    decoded = []

    def counted(location: str, windows: Sequence[PixelWindow]) -> list[npt.NDArray[np.uint16]]:
        decoded.append(touched_blocks(windows, 1, (1024, 1024)))
        return read_band(location, windows)

    told = planned(by_region, SafeCatalogue(blocks.folder, ("B04",)))
    monkeypatch.setattr(safe, "read_band", counted)
    built(by_region, SafeCatalogue(blocks.folder, ("B04",)), tmp_path / "cube.zarr")
    pixels = sum(pixels_of(blocks, (SIDE, SIDE), (1024, 1024)) for blocks in decoded)
    assert told.read is not None
    assert told.read.pixels == pixels > 2 * SIDE * SIDE


def test_sizes_that_nobody_says_are_assumed_and_that_is_told(blocks: World) -> None:
    api = Api(blocks)
    with serving(api) as server:
        api.url = server.url
        place = f"{api.url}#sentinel-2-l1c"
        told = planned(ONE_BAND, StacCatalogue(place, ("B04",), wanted=None, patience=PATIENCE))
        assert not asked_for_files(server.asked)
    assert told.read is not None
    assert told.read.assumed_bytes == told.read.bytes > 0
    assert "100% of the bytes are of files whose size nobody says" in "\n".join(lines(told))


def asked_for_files(asked: Sequence[Asked]) -> list[Asked]:
    return [each for each in asked if each.path.startswith("/files/")]


def bytes_in(asked: Sequence[Asked]) -> int:
    ranges = [re.findall(r"\d+", each.headers.get("Range", "")) for each in asked]
    return sum(int(each[1]) - int(each[0]) + 1 for each in ranges if each)


def described(world: World, item: dict[str, Any]) -> dict[str, Any]:
    """As providers do that have the extensions `file` and `projection`."""
    for asset in item["assets"].values():
        path = world.folder / asset["href"].partition("/files/")[2]
        if path.exists():
            asset["file:size"] = path.stat().st_size
    left, top = TileId.parse("31TCJ").upper_left()
    item["properties"]["proj:code"] = "EPSG:32631"
    item["properties"]["proj:bbox"] = [left, top - 10 * SIDE, left + 10 * SIDE, top]
    return item


def test_a_plan_of_rasters_by_the_heads_of_the_files(tmp_path: Path) -> None:
    """All of a small folder is read once to choose and once to build; a part of it is less."""
    for day in ("2020-01-03", "2020-03-10"):
        layers = {band: np.full((512, 512), 700, np.uint16) for band in BANDS}
        write(tmp_path / f"L2A_{day}.tif", layers, tiled=True, blockxsize=64, blockysize=64)
    (tmp_path / "rasters.yaml").write_text("offset: 0\n")
    catalogue = RastersCatalogue(tmp_path, BANDS)
    tile = TileId.parse(catalogue.tiles()[0])
    (scene, _) = catalogue.scenes(tile).scenes
    size = (tmp_path / "L2A_2020-01-03.tif").stat().st_size
    everything = catalogue.cost(scene, BANDS, [PixelWindow(0, 0, 512, 512)])
    assert everything == ReadCost(bytes=size, pixels=2 * 512 * 512)
    corner = catalogue.cost(scene, ("B04",), [PixelWindow(0, 0, 65, 64), PixelWindow(1, 2, 3, 4)])
    assert corner == ReadCost(bytes=round(size // 2 * 2 / 64), pixels=2 * 64 * 64)
    assert catalogue.cost_of_listing(tile, ONE_BAND.wanted).bytes == 2 * size
    assert isinstance(catalogue, Priced)
