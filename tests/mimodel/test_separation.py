"""Labelled scenes put together from a cube, and what separates their classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from typer.testing import CliRunner

from mimodel.artifact import Artifact
from mimodel.cli import app
from mimodel.data.scenes import LabelledScene, labelled_scenes
from mimodel.errors import DataError
from mimodel.separation import OTHER, SAME, area_under_curve, separation
from s2pairs.cube import Cube, create, open_cube
from s2pairs.masks import complete
from s2pairs.patches import PatchTable
from s2pairs.plan import Plan
from s2pairs.tiles import TileId
from tests.cubes import write_shard
from tests.models import BANDS, pixel_artifact

TILE = TileId.parse("31TCJ")
CLASSES = ["water", "forest", "bare"]
ROWS, COLS, DATES = 128, 256, 3
_QUIET = {"report": lambda _done, _total: None}


@pytest.fixture(scope="module")
def ground() -> np.ndarray:
    """Stripes of three classes; the last pixels have a value that is no class."""
    ground = np.repeat(np.arange(COLS) // 24 % 3, ROWS).reshape(COLS, ROWS).T.astype(np.uint8)
    ground[:, -8:] = 255
    return ground


@pytest.fixture(scope="module")
def numbers(ground: np.ndarray) -> np.ndarray:
    """Digital numbers (date, band, row, col): a level for each class, and noise of half a step."""
    rng = np.random.default_rng(0)
    level = (
        2000
        + 500 * (ground[None, None].astype(int) % 3)
        + 100 * np.arange(DATES)[:, None, None, None]
    )
    noise = rng.normal(0, 250, (DATES, len(BANDS), ROWS, COLS))
    return (level + noise).astype(np.uint16)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, numbers: np.ndarray) -> Cube:
    """2 x 4 patches: the two at the left for training, the others for testing; one test patch was
    seen in another product at the last date."""
    row, col = (part.ravel() * 64 for part in np.mgrid[:2, :4])
    ulx, uly = TILE.upper_left()
    count = len(row)
    table = PatchTable(
        tile=np.full(count, TILE.name),
        region=np.zeros(count, np.int32),
        row=row.astype(np.int32),
        col=col.astype(np.int32),
        epsg=np.full(count, TILE.epsg, np.int32),
        x=ulx + 10.0 * (col + 32),
        y=uly - 10.0 * (row + 32),
        split=np.where(col == 0, "train", "test"),
    )
    product = np.tile([f"P{date}" for date in range(DATES)], (count, 1))
    product[7, 2] = "P8"
    plan = Plan(
        bands=BANDS,
        level="L1C",
        table=table,
        acquired=np.full((count, DATES), np.datetime64("2020-01-01", "ms")),
        product=product,
        parameters={},
        attributes={"products": [], "products_left_out": [], "notice": "made"},
    )
    patches = numbers.reshape(DATES, 4, 2, 64, 4, 64).transpose(2, 4, 0, 1, 3, 5)
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    create(path, plan)
    stored = patches.reshape(count, DATES, 4, 64, 64)
    masks = complete(np.zeros((count, DATES, 64, 64), np.uint8), stored, BANDS)
    write_shard(path, plan, 0, stored, masks)
    return open_cube(path)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, ground: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    ulx, uly = TILE.upper_left()
    with rasterio.open(
        folder / "31TCJ.tif", "w", driver="GTiff", width=COLS, height=ROWS, count=1,
        dtype="uint8", crs=f"EPSG:{TILE.epsg}", transform=Affine(10, 0, ulx, 0, -10, uly),
    ) as file:  # fmt: skip
        file.write(ground, 1)
        file.update_tags(1, classes=json.dumps(CLASSES))
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return pixel_artifact(tmp_path_factory.mktemp("model") / "artifact")


def test_a_scene_is_its_patches_put_together(
    cube: Cube, labels: Path, numbers: np.ndarray, ground: np.ndarray
) -> None:
    options = {"bands": ("B02", "B08"), "dates": 2, "min_valid": 0.9}
    (scene,) = labelled_scenes(cube.path, labels, size=128, **options)
    # Columns 64 to 192: with the last column of patches another square would overlap it.
    expected = numbers[[0, 2]][:, [2, 3], :, 64:192] * 1e-4 - 0.1
    np.testing.assert_allclose(scene.reflectance, expected, atol=1e-6)
    np.testing.assert_array_equal(scene.label, ground[:, 64:192])
    assert scene.classes == tuple(CLASSES)
    small = labelled_scenes(cube.path, labels, size=64, **options)
    assert len(small) == 6
    assert (small[-1].label[:, -8:] == -1).all()
    with pytest.raises(DataError, match="no square of 192 pixels of the test split"):
        labelled_scenes(cube.path, labels, size=192, **options)
    with pytest.raises(DataError, match="multiple of 64"):
        labelled_scenes(cube.path, labels, size=100, **options)


def test_a_date_counts_where_all_patches_were_seen_in_one_product(cube: Cube, labels: Path) -> None:
    options = {"bands": BANDS, "dates": 3, "min_valid": 0.9, "size": 64}
    scenes = labelled_scenes(cube.path, labels, **options)
    assert [len(scene.reflectance) for scene in scenes] == [3] * 6
    options["size"] = 128
    (scene,) = labelled_scenes(cube.path, labels, split="test", **options)
    assert len(scene.reflectance) == 3  # patch 7, of another product, is not in it


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores, same = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = scores[same][:, None] - scores[~same][None]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert area_under_curve(scores, same) == pytest.approx(expected)


def test_planted_classes_are_separated_by_what_they_differ_in(
    artifact: Artifact, cube: Cube, labels: Path
) -> None:
    scenes = labelled_scenes(cube.path, labels, bands=BANDS, size=64, dates=2, min_valid=0.9)[:3]
    result = separation(artifact, scenes, stride=7, **_QUIET)
    areas = {(one.likeness, one.image): one for one in result.areas}
    assert {image for _, image in areas} == {SAME, OTHER}
    raw, statistics = (areas[name, SAME] for name in ("raw reflectance", "band statistics"))
    # A pixel knows its class but for noise; the patch of one in a stripe has its neighbours in it.
    assert 0.97 > raw.area > statistics.area > 0.7
    assert 0.45 < areas["mutual information", SAME].area < 1
    assert all(one.low <= one.area <= one.high for one in result.areas)
    assert set(result.by_class) <= set(CLASSES)
    assert "| mutual information |" in result.to_markdown()


def test_leads_are_paired_and_their_intervals_draw_scenes(
    artifact: Artifact, cube: Cube, labels: Path
) -> None:
    scenes = labelled_scenes(cube.path, labels, bands=BANDS, size=64, dates=1, min_valid=0.9)[:3]
    all_points = {"stride": 10, "queries": 36, **_QUIET}
    joint = separation(artifact, scenes, **all_points)
    areas = {one.likeness: one.area for one in joint.areas}
    apart = [separation(artifact, [scene], **all_points).leads for scene in scenes]
    for lead, *of_scenes in zip(joint.leads, *apart, strict=True):
        assert lead.area == pytest.approx(areas["mutual information"] - areas[lead.likeness])
        # Whole scenes are drawn, so an interval lies within what each of them says.
        least, *_, most = sorted(one.area for one in of_scenes)
        assert least - 1e-9 < lead.low <= lead.area <= lead.high < most + 1e-9
    assert {lead.likeness for lead in joint.leads} == areas.keys() - {"mutual information"}


def test_classes_by_lot_are_not_separated(artifact: Artifact) -> None:
    rng = np.random.default_rng(3)
    scenes = [
        LabelledScene(
            rng.uniform(0.05, 0.3, (1, 4, 96, 96)).astype(np.float32),
            rng.integers(0, 2, (96, 96)),
            "31TCJ",
            ("heads", "tails"),
        )
        for _ in range(2)
    ]
    result = separation(artifact, scenes, stride=8, queries=5, **_QUIET)
    assert result.queries == 20
    assert all(0.35 < one.area < 0.65 for one in result.areas)
    assert {one.image for one in result.areas} == {SAME}  # there is no other date
    with pytest.raises(DataError, match="no class has 10 pixels"):
        separation(artifact, scenes[:1], stride=40, **_QUIET)


def test_the_command_writes_what_it_says(
    artifact: Artifact, cube: Cube, labels: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    artifact.save(folder, "# Untrained\n")
    command = ["separation", str(folder), "--cube", str(cube.path), "--out", str(tmp_path / "out")]
    command += ["--size", "64", "--stride", "8", "--dates", "1", "--queries", "1"]
    done = CliRunner().invoke(app, [*command, "--labels", str(labels)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "separation.json").read_text())
    assert len(written["areas"]) == 4
    assert (tmp_path / "out" / "separation.md").read_text() in done.output
    failed = CliRunner().invoke(app, [*command, "--labels", str(tmp_path)])
    assert failed.exit_code == 2
    assert "has no raster" in failed.output
