"""The exported index: read back by geopandas and pystac, against the cube."""

from pathlib import Path

import numpy as np
import pytest

from s2pairs.build import Request, build
from s2pairs.cube import Cube, open_cube
from s2pairs.export import export
from s2pairs.tiles import TileId
from tests.worlds import Places, l1c

geopandas = pytest.importorskip("geopandas")
pystac = pytest.importorskip("pystac")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    tiles = ("31TCJ", "19KDQ")
    days = ("2020-01-03", "2020-03-10")
    source = Places(tuple(l1c(tile, day, size=256) for tile in tiles for day in days))
    request = Request(tuple(map(TileId.parse, tiles)), ("B04",), dates=2, region_size=128)
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    build(request, source, path, workers=1, progress=lambda *_: None)
    return open_cube(path)


def test_patches_are_squares_where_they_lie(cube: Cube, tmp_path: Path) -> None:
    done = export(cube, tmp_path)
    table = geopandas.read_parquet(tmp_path / "patches.parquet")
    assert done.patches == len(table) == len(cube)
    assert table.crs.to_epsg() == 4326
    assert table.patch.tolist() == list(range(len(cube)))
    assert table.tile.tolist() == cube.tile.tolist()
    for epsg in np.unique(cube.epsg):
        rows = np.flatnonzero(cube.epsg == epsg)
        back = table.geometry.iloc[rows].to_crs(int(epsg))
        centre = back.centroid
        np.testing.assert_allclose(centre.x, cube.x[rows], atol=0.1)
        np.testing.assert_allclose(centre.y, cube.y[rows], atol=0.1)
        np.testing.assert_allclose(back.area, 640**2, rtol=1e-5)


def test_looks_have_every_measure(cube: Cube, tmp_path: Path) -> None:
    import pandas

    export(cube, tmp_path)
    looks = pandas.read_parquet(tmp_path / "looks.parquet").set_index(["patch", "date"])
    assert len(looks) == len(cube) * 2
    patch, date = len(cube) - 1, 1
    row = looks.loc[(patch, date)]
    assert row["product"] == cube.product[patch, date]
    assert row["acquired"] == pandas.Timestamp(cube.acquired[patch, date], tz="UTC")
    for name, values in cube.measures.items():
        np.testing.assert_equal(row[name], values[patch, date])


def test_the_collection_is_valid_and_finds_the_cube(cube: Cube, tmp_path: Path) -> None:
    done = export(cube, tmp_path)
    collection = pystac.Collection.from_file(str(tmp_path / "stac" / "collection.json"))
    items = {item.id: item for item in collection.get_items()}
    assert set(items) == set(cube.product.ravel())
    assert done.items == 4
    assert (
        Path(collection.assets["cube"].get_absolute_href()).resolve() == Path(cube.path).resolve()
    )
    assert Path(collection.assets["patches"].get_absolute_href()).is_file()
    west, south, east, north = collection.extent.spatial.bboxes[0]
    for item in items.values():
        assert west <= item.bbox[0] < item.bbox[2] <= east
        assert south <= item.bbox[1] < item.bbox[3] <= north
        rows = (cube.product == item.id).any(axis=1)
        assert item.properties["s2pairs:patches"] == rows.sum()
        moment = cube.acquired[cube.product == item.id][0]
        assert np.datetime64(item.datetime.replace(tzinfo=None), "ms") == moment


def test_the_same_cube_exports_again(cube: Cube, tmp_path: Path) -> None:
    assert export(cube, tmp_path) == export(cube, tmp_path)
