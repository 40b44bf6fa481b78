"""The picture of a map, read and coloured by others."""

import io

import matplotlib
import numpy as np
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.io import MemoryFile

from service.decode import Georeference
from service.render import map_geotiff, map_png, png, viridis


def test_a_png_reads_back_in_another_implementation() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 51, 4), np.uint8)
    read = Image.open(io.BytesIO(png(picture)))
    assert read.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(read), picture)


def test_viridis_is_that_of_matplotlib() -> None:
    values = np.linspace(0, 1, 1001)
    expected = matplotlib.colormaps["viridis"](values)[:, :3] * 255
    assert np.abs(viridis(values) - expected).max() < 7
    brightness = viridis(values) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) >= -0.5).all()


def test_no_data_is_transparent_and_the_query_is_ringed() -> None:
    scores = np.tile(np.linspace(-2, -1, 60, dtype=np.float32), (40, 1))
    scores[:10] = np.nan
    read = np.asarray(Image.open(io.BytesIO(map_png(scores, [(25, 30)]))))
    assert (read[:10, :, 3] == 0).all()
    assert (read[10:, :, 3] == 255).all()
    np.testing.assert_array_equal(read[39, [0, 59], :3], viridis(np.array([0.0, 1.0])))
    assert read[25, 30 - 5].tolist() == [255] * 4
    assert read[25 - 3, 30].tolist() == [0, 0, 0, 255]
    np.testing.assert_array_equal(read[25, 30, :3], read[39, 30, :3])  # the pixel itself is seen


def test_a_map_of_one_value_or_of_none_has_a_picture() -> None:
    for fill in (np.nan, -1.0):
        scores = np.full((20, 20), fill, np.float32)
        read = np.asarray(Image.open(io.BytesIO(map_png(scores, [(0, 0)]))))
        assert read.shape == (20, 20, 4)


def test_an_area_is_outlined() -> None:
    area = np.zeros((20, 30), bool)
    area[5:12, 8:20] = True
    scores = np.tile(np.linspace(-2, -1, 30, dtype=np.float32), (20, 1))
    read = np.asarray(Image.open(io.BytesIO(map_png(scores, (), area))))
    white, black = ((read[..., :3] == level).all(2) for level in (255, 0))
    edge = area.copy()
    edge[6:11, 9:19] = False
    np.testing.assert_array_equal(white, edge)
    assert black[4, 8:20].all()
    assert black[5:12, 20].all()
    assert not black[area].any()
    np.testing.assert_array_equal(read[8, 10], read[15, 10])  # what is inside is seen


def test_a_geotiff_reads_back_with_its_ground() -> None:
    layers = np.random.default_rng(0).normal(-2, 1, (2, 21, 33)).astype(np.float32)
    layers[0, :4] = np.nan
    crs = rasterio.crs.CRS.from_epsg(32631).to_wkt()
    ground = Georeference(crs, (10.0, 0.5, 500_000.0, -0.5, -10.0, 4_800_000.0))
    body = map_geotiff(list(layers), ["one", "two"], ground, {"made_by": "a test"})
    with MemoryFile(body) as file, file.open() as dataset:
        np.testing.assert_array_equal(dataset.read(), layers)
        assert dataset.crs.to_epsg() == 32631
        assert tuple(dataset.transform)[:6] == ground.transform
        assert dataset.descriptions == ("one", "two")
        assert np.isnan(dataset.nodata)
        assert dataset.tags()["made_by"] == "a test"


def test_a_map_of_points_without_a_system_keeps_its_points() -> None:
    corners = [(0, 0, 1.5, 45.0), (0, 8, 1.6, 45.1), (8, 0, 1.4, 44.9)]
    points = tuple(GroundControlPoint(*corner) for corner in corners)
    ground = Georeference(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), points)
    made = map_geotiff([np.zeros((8, 8), np.float32)], ["map"], ground, {})
    with MemoryFile(made) as file, file.open() as dataset:
        kept, system = dataset.gcps
    assert [(one.row, one.col, one.x, one.y) for one in kept] == corners
    assert not system
