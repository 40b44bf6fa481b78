"""Masks inside products: both formats say the same, and a cube keeps what they say."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from s2pairs.build import Request, build
from s2pairs.camera import CLOUD as MADE_CLOUD
from s2pairs.camera import NO_DATA as MADE_NO_DATA
from s2pairs.cube import Cube, open_cube
from s2pairs.errors import S2PairsError, SceneError
from s2pairs.masks import CIRRUS, CLOUD, ESTIMATED, NO_DATA, SHADOW, SNOW, Flags, from_scene_classes
from s2pairs.safe_writer import L1CMasks, L1CProduct, write_l1c
from s2pairs.scenes import PixelWindow
from s2pairs.sources.safe import SafeCatalogue
from s2pairs.tiles import TileId
from tests.worlds import as_l2a, dn_of_place, l1c

TILE = TileId.parse("31TCJ")
SIZE = 256


def blobs(product: L1CProduct, seed: int, share: float = 0.3) -> npt.NDArray[np.bool_]:
    """Cells of chance, smoothed: islands, holes, corners that touch, borders of the tile."""
    rows, columns = product.shape(60)
    noise = np.random.default_rng(seed).random((rows + 2, columns + 2))
    smooth = sum(noise[i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    return np.asarray(smooth > np.quantile(smooth, 1 - share))


def made_masks(product: L1CProduct, seed: int) -> L1CMasks:
    seen = np.ones(product.shape(60), dtype=bool)
    seen[:, : seen.shape[1] // 3] = False
    snow = blobs(product, seed + 2, 0.1)
    return L1CMasks(blobs(product, seed), blobs(product, seed + 1, 0.1), snow, seen)


def expected_flags(product: L1CProduct, masks: L1CMasks) -> Flags:
    """The truth at 10 m; masks before 04.00 know no snow."""
    cells = CLOUD * masks.opaque + CIRRUS * masks.cirrus + NO_DATA * ~masks.seen
    if product.baseline >= "04.00":
        cells = cells + SNOW * masks.snow
    fine = cells.repeat(6, axis=0).repeat(6, axis=1)[: product.height, : product.width]
    return fine.astype(np.uint8)


def write(folder: Path, product: L1CProduct, masks: L1CMasks | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    bands = {name: dn_of_place(product, name) for name in ("B04", "B02")}
    return write_l1c(folder, product, bands, masks)


def flags_of(folder: Path, *windows: PixelWindow) -> list[Flags] | None:
    catalogue = SafeCatalogue(folder, ("B04",))
    (scene,) = catalogue.scenes(TILE).scenes
    return catalogue.masks(scene, windows)


WHOLE = PixelWindow(0, 0, SIZE, SIZE)


@pytest.mark.parametrize("baseline", ["02.09", "04.00"])
@pytest.mark.parametrize("seed", range(3))
def test_polygons_and_layers_read_back_as_they_were_made(
    tmp_path: Path, baseline: str, seed: int
) -> None:
    product = l1c(baseline=baseline, size=SIZE)
    masks = made_masks(product, seed)
    folder = write(tmp_path, product, masks)
    names = {path.name for path in folder.glob("GRANULE/*/QI_DATA/*")}
    assert ("MSK_CLOUDS_B00.gml" in names) == (baseline < "04.00")
    assert ("MSK_CLASSI_B00.jp2" in names) == (baseline >= "04.00")
    part = PixelWindow(13, 101, 64, 120)
    whole, some = flags_of(tmp_path, WHOLE, part) or []
    expected = expected_flags(product, masks)
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(some, expected[13:77, 101:221])


def test_a_clear_sky_has_an_empty_mask_and_a_product_without_masks_none(tmp_path: Path) -> None:
    product = l1c(size=SIZE)
    nothing = np.zeros(product.shape(60), dtype=bool)
    write(tmp_path / "clear", product, L1CMasks(nothing, nothing, nothing, ~nothing))
    (flags,) = flags_of(tmp_path / "clear", WHOLE) or []
    assert not flags.any()
    write(tmp_path / "bare", product, None)
    assert flags_of(tmp_path / "bare", WHOLE) is None


def test_the_polygons_are_those_of_another_reader(tmp_path: Path) -> None:
    """GDAL's own GML driver, through geopandas: the same areas by the same types."""
    geopandas = pytest.importorskip("geopandas")
    product = l1c(size=SIZE)
    masks = made_masks(product, 5)
    (path,) = write(tmp_path, product, masks).glob("GRANULE/*/QI_DATA/MSK_CLOUDS_B00.gml")
    frame = geopandas.read_file(path, engine="pyogrio")
    for kind, cells in (("OPAQUE", masks.opaque), ("CIRRUS", masks.cirrus)):
        area = frame[frame["maskType"] == kind].geometry.area.sum()
        assert area == pytest.approx(3600 * cells.sum())


# As a genuine one is written: a hole, an opaque cloud and cirrus, an envelope with 8.7.
GENUINE_SHAPE = """<?xml version="1.0" encoding="UTF-8"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2">
  <gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7:32631"/></gml:boundedBy>
  <eop:maskMembers>
    <eop:MaskFeature gml:id="OPAQUE.0"><eop:maskType>OPAQUE</eop:maskType><eop:extentOf>
      <gml:Polygon>
        <gml:exterior><gml:LinearRing><gml:posList srsDimension="2">{outside}</gml:posList>
        </gml:LinearRing></gml:exterior>
        <gml:interior><gml:LinearRing><gml:posList srsDimension="2">{hole}</gml:posList>
        </gml:LinearRing></gml:interior>
      </gml:Polygon></eop:extentOf></eop:MaskFeature>
    <eop:MaskFeature gml:id="CIRRUS.0"><eop:maskType>CIRRUS</eop:maskType><eop:extentOf>
      <gml:Polygon><gml:exterior><gml:LinearRing>
        <gml:posList srsDimension="3">{high}</gml:posList>
      </gml:LinearRing></gml:exterior></gml:Polygon></eop:extentOf></eop:MaskFeature>
  </eop:maskMembers>
</eop:Mask>
"""


def test_a_mask_with_a_hole_and_with_heights(tmp_path: Path) -> None:
    product = l1c(size=SIZE)
    left, top = TILE.upper_left()

    def ring(row: int, col: int, side: int, *height: int) -> str:
        """A square of cells of 60 m, closed."""
        around = ((0, 0), (0, side), (side, side), (side, 0), (0, 0))
        corners = [(left + 60 * (col + x), top - 60 * (row + y), *height) for y, x in around]
        return " ".join(str(number) for corner in corners for number in corner)

    nothing = np.zeros(product.shape(60), dtype=bool)
    folder = write(tmp_path, product, L1CMasks(nothing, nothing, nothing, ~nothing))
    (path,) = folder.glob("GRANULE/*/QI_DATA/MSK_CLOUDS_B00.gml")
    text = GENUINE_SHAPE.format(
        outside=ring(2, 3, 10), hole=ring(4, 5, 2), high=ring(20, 20, 4, 88)
    )
    path.write_text(text)
    opaque, cirrus = nothing.copy(), nothing.copy()
    opaque[2:12, 3:13] = True
    opaque[4:6, 5:7] = False
    cirrus[20:24, 20:24] = True
    (flags,) = flags_of(tmp_path, WHOLE) or []
    expected = expected_flags(product, L1CMasks(opaque, cirrus, nothing, ~nothing))
    np.testing.assert_array_equal(flags, expected)
    path.write_text(text.replace(":32631", ":32630"))
    catalogue = SafeCatalogue(tmp_path, ("B02",))  # another request, so nothing is kept of before
    (scene,) = catalogue.scenes(TILE).scenes
    other = replace(scene, grid=replace(scene.grid, width=SIZE - 1))
    with pytest.raises(SceneError, match=r"MSK_CLOUDS_B00.gml is in .*:32630, its product in EPSG"):
        catalogue.masks(other, [WHOLE])


@pytest.mark.parametrize("baseline", ["02.09", "04.00"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0])
def test_a_mask_cut_short_leaves_the_product_out(
    tmp_path: Path, baseline: str, share: float
) -> None:
    product = l1c(baseline=baseline, size=SIZE)
    folder = write(tmp_path, product, made_masks(product, 1))
    (path,) = (*folder.rglob("MSK_CLOUDS*"), *folder.rglob("MSK_CLASSI*"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    (entry,) = SafeCatalogue(tmp_path, ("B04",)).scenes(TILE).left_out
    assert entry.reason.startswith(f"unusable: {path.name} is cut short")


def test_the_granule_lists_its_masks(tmp_path: Path) -> None:
    product = l1c(baseline="04.00", size=SIZE)
    folder = write(tmp_path, product, made_masks(product, 1))
    (path,) = folder.glob("GRANULE/*/MTD_TL.xml")
    listed = ET.parse(path).getroot().findall(".//Pixel_Level_QI/MASK_FILENAME")
    assert {folder / (each.text or "") for each in listed} == set(folder.glob("**/QI_DATA/*"))
    assert {(each.get("type"), each.get("bandId")) for each in listed} == {
        *(("MSK_CLASSI", None), ("MSK_DETFOO", "0"), ("MSK_DETFOO", "9"), ("MSK_DETFOO", "10"))
    }


def test_masks_of_another_shape_are_refused(tmp_path: Path) -> None:
    product = l1c(size=SIZE)
    small = np.zeros((3, 3), dtype=bool)
    with pytest.raises(S2PairsError, match=r"mask opaque must have the shape \(43, 43\)"):
        write(tmp_path, product, L1CMasks(small, small, small, small))


def test_scene_classes_of_level_2a(tmp_path: Path) -> None:
    product = l1c(baseline="04.00", size=SIZE)
    folder = write(tmp_path / "made", product, made_masks(product, 1))
    classes = np.random.default_rng(0).integers(0, 12, product.shape(20)).astype(np.uint8)
    as_l2a(folder, tmp_path / "l2a", product, classes)
    (flags,) = flags_of(tmp_path / "l2a", WHOLE) or []
    expected = from_scene_classes(classes).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(flags, expected)
    assert {SHADOW, CIRRUS, SNOW, NO_DATA} <= set(flags.ravel().tolist())


def cube_of(folder: Path, dates: int) -> Cube:
    request = Request(
        tiles=(TILE,), bands=("B04", "B02"), dates=dates, max_cloud=100, region_size=128
    )
    catalogue = SafeCatalogue(folder / "products", request.bands)
    out = folder / "cube.zarr"
    build(request, catalogue, out, workers=2, progress=lambda *_: None)
    return open_cube(out)


def test_a_cube_keeps_the_masks_of_each_date(tmp_path: Path) -> None:
    """Two eras and a product without masks; no-data is that of the pixels and not of the mask."""
    old, new = l1c(day="2020-01-01", size=SIZE), l1c(day="2022-06-01", baseline="04.00", size=SIZE)
    bare = l1c(day="2023-06-01", baseline="04.00", size=SIZE)
    truths = {}
    for seed, product in enumerate((old, new)):
        masks = made_masks(product, seed)
        write(tmp_path / "products", product, masks)
        flags = expected_flags(product, masks)
        truths[product.name.removesuffix(".SAFE")] = flags & ~np.uint8(NO_DATA)
    write(tmp_path / "products", bare, None)
    cube = cube_of(tmp_path, 3)
    masks = cube.read_masks(np.arange(len(cube)))
    for patch in range(len(cube)):
        row, col = cube.row[patch], cube.col[patch]
        for date, name in enumerate(cube.product[patch].tolist()):
            if name in truths:
                truth = truths[name][row : row + 64, col : col + 64]
                np.testing.assert_array_equal(masks[patch, date], truth)
                share = 1 - ((truth & (CLOUD | CIRRUS)) > 0).mean()
                assert cube.clear_fraction[patch, date] == np.float32(share)
            else:
                assert (masks[patch, date] & ESTIMATED).all()
    assert (cube.valid_fraction == 1).all()
    assert 0.1 < cube.clear_fraction[:, :2].mean() < 0.9


def test_made_products_have_the_masks_of_their_truth(tmp_path: Path) -> None:
    from datetime import date

    from s2pairs.simulate import simulate

    made = simulate(
        *([TILE], tmp_path),
        size=300,
        dates=6,
        cloudy_dates=3,
        start=date(2020, 1, 1),
        end=date(2023, 12, 31),
        bands=("B04",),
    )
    catalogue = SafeCatalogue(tmp_path, ("B04",))
    scenes = catalogue.scenes(TILE).scenes
    assert len(scenes) == 9
    kinds = set()
    for scene in scenes:
        with rasterio.open(made.out / "truth" / "clouds" / f"{scene.product}.tif") as file:
            sky = file.read(1)
        (flags,) = catalogue.masks(scene, [PixelWindow(0, 0, 300, 300)]) or []
        cells = (sky == MADE_CLOUD).reshape(50, 6, 50, 6).mean(axis=(1, 3)) >= 0.5
        truth = cells.repeat(6, axis=0).repeat(6, axis=1)
        np.testing.assert_array_equal((flags & CLOUD) > 0, truth)
        # along a slanting border of the swath a cell is half seen
        assert np.mean(((flags & NO_DATA) > 0) != (sky == MADE_NO_DATA)) < 0.01
        kinds |= set(scene.masks)
    assert kinds == {"MSK_CLASSI", "MSK_CLOUDS", "MSK_DETFOO"}
