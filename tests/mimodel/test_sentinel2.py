"""Cubes as pairs and as labelled patches: the numbers in a batch tell where they come from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from pydantic import ValidationError
from torch import Tensor

from mimodel.data import sentinel2
from mimodel.data.configs import CubeConfig
from mimodel.data.pairs import PairBatch, prefetched
from mimodel.data.sentinel2 import CubePairs, labelled_cube, usable_dates
from mimodel.errors import DataError, InputError
from mimodel.normalisation import Normalisation
from s2pairs.cube import Cube, create, open_cube, plan_of
from s2pairs.masks import complete
from s2pairs.patches import PatchTable
from s2pairs.plan import Plan
from s2pairs.tiles import TileId
from tests.cubes import made_cube, write_shard

BANDS = ("B04", "B03", "B08")
PLACES, DATES = 40, 4
TILE = TileId.parse("31TCJ")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """Pixel values tell place, date and band; place 3 is empty at date 1, place 5 has one date."""
    number = np.arange(PLACES)
    ulx, uly = TILE.upper_left()
    row, col = number // 8 * 64, number % 8 * 64
    table = PatchTable(
        tile=np.full(PLACES, TILE.name),
        region=np.zeros(PLACES, np.int32),
        row=row.astype(np.int32),
        col=col.astype(np.int32),
        epsg=np.full(PLACES, TILE.epsg, np.int32),
        x=ulx + 10.0 * (col + 32),
        y=uly - 10.0 * (row + 32),
        split=np.repeat(["train", "test", "validation"], [30, 8, 2]),
    )
    plan = Plan(
        bands=BANDS,
        level="L1C",
        table=table,
        acquired=np.full((PLACES, DATES), np.datetime64("2020-01-01", "ms")),
        product=np.full((PLACES, DATES), "P"),
        parameters={},
        attributes={"products": [], "products_left_out": [], "notice": "made"},
    )
    place, date, band = np.meshgrid(number, np.arange(DATES), np.arange(3), indexing="ij")
    value = 1000 + place * 100 + date * 10 + band
    pixels = np.broadcast_to(value[..., None, None], (*value.shape, 64, 64)).astype(np.uint16)
    pixels = pixels + np.arange(64, dtype=np.uint16)  # variation inside a patch
    pixels[3, 1] = 0
    pixels[5, 1:] = 0
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    create(path, plan)
    masks = complete(np.zeros((PLACES, DATES, 64, 64), np.uint8), pixels, BANDS)
    write_shard(path, plan, 0, pixels, masks)
    return open_cube(path)


def _pairs(cube: Cube, **changes: object) -> CubePairs:
    options = {"bands": None, "min_valid": 0.9, "memory_gb": 1.0, "seed": 0, **changes}
    return CubePairs(cube.path, **options)  # type: ignore[arg-type]


def _origin(source: CubePairs, side: np.ndarray) -> np.ndarray:
    """(place, date) of each image of a batch, from the values of its first band."""
    norm = source.normalisation
    reflectance = side[:, 0, 0, 0] * norm.std[0] + norm.mean[0]
    stored = np.rint((reflectance + 0.1) * 1e4).astype(int) - 1000
    return np.stack([stored // 100, stored % 100 // 10], 1)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_a_pair_is_one_place_at_two_dates(cube: Cube, memory_gb: float) -> None:
    source = _pairs(cube, memory_gb=memory_gb)
    seen = set()
    for step in range(30):
        batch = source.batch(step, 12)
        x, y = _origin(source, batch.x.numpy()), _origin(source, batch.y.numpy())
        assert (x[:, 0] == y[:, 0]).all()
        assert (x[:, 1] != y[:, 1]).all()
        assert len(set(x[:, 0].tolist())) == 12  # no place twice: it would be its own negative
        assert x[:, 0].max() < 30  # the training split alone
        seen |= {tuple(pair) for pair in np.concatenate([x, y]).tolist()}
    assert (3, 1) not in seen  # empty
    assert not {place for place, _ in seen} & {5}  # a single date is no pair
    assert len(seen) == 29 * DATES - 1  # everything else comes


def test_a_turned_pair_is_the_pair_in_one_orientation(cube: Cube) -> None:
    plain, turning = _pairs(cube), _pairs(cube, turn=True)
    seen = set()
    for step in range(8):
        still, moved = plain.batch(step, 12), turning.batch(step, 12)
        part = turning.batch(step, 12, slice(3, 7))
        assert torch.equal(part.x, moved.x[3:7])
        assert torch.equal(part.y, moved.y[3:7])
        for x, y, x_turned, y_turned in zip(still.x, still.y, moved.x, moved.y, strict=True):
            views = [(k, flip) for k in range(4) for flip in (False, True)]

            def view(image: Tensor, k: int, flip: bool) -> Tensor:
                turned = image.rot90(k, (1, 2))
                return turned.flip(2) if flip else turned

            found = [
                (k, flip)
                for k, flip in views
                if torch.equal(view(x, k, flip), x_turned)
                and torch.equal(view(y, k, flip), y_turned)
            ]
            assert found
            seen.add(tuple(found))
    assert len(seen) == 4  # values rise along a row alone, so two orientations are alike


def test_a_smaller_patch_is_one_part_of_the_place_at_both_dates(cube: Cube) -> None:
    whole, source = _pairs(cube), _pairs(cube, patch=9)
    assert source.image_size == (9, 9)
    assert source.normalisation == whole.normalisation
    assert "9 x 9 pixels" in source.description["data"]
    corners = set()
    for step in range(20):
        batch, full = source.batch(step, 12), whole.batch(step, 12)
        assert batch.x.shape == (12, 3, 9, 9)
        assert torch.equal(source.batch(step, 12, slice(3, 7)).y, batch.y[3:7])
        for x, y, x_full, y_full in zip(batch.x, batch.y, full.x, full.y, strict=True):
            # Values rise along a row, so the first column of a part says where it begins.
            (left,) = np.flatnonzero(np.isclose(x_full[0, 0], x[0, 0, 0], atol=1e-6))
            assert torch.equal(x_full[:, :9, left : left + 9], x)
            assert torch.equal(y_full[:, :9, left : left + 9], y)
            corners.add(int(left))
    assert len(corners) > 40
    assert {min(corners), max(corners)} == {0, 55}


def test_the_second_patch_of_a_pair_lies_near_the_first(
    cube: Cube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every distance up to the one named, along rows and columns, and within the place."""
    corners = []
    cut = sentinel2._cut

    def recorded(images: Tensor, where: Tensor, size: int) -> Tensor:
        corners.append(where.numpy())
        return cut(images, where, size)

    monkeypatch.setattr(sentinel2, "_cut", recorded)
    alike, apart = _pairs(cube, patch=9), _pairs(cube, patch=9, displaced=6)
    assert "up to 6 pixels away" in apart.description["data"]
    seen = []
    for step in range(60):
        still, moved = alike.batch(step, 12), apart.batch(step, 12)
        assert torch.equal(still.x, moved.x)
        assert torch.equal(apart.batch(step, 12, slice(3, 7)).y, moved.y[3:7])
        first, second = np.split(corners[-2], 2)
        assert second.min() >= 0
        assert second.max() <= 64 - 9
        seen.append(second - first)
        np.testing.assert_array_equal(corners[-1], np.concatenate([first[3:7], second[3:7]]))
    moves = np.concatenate(seen)
    for axis in (0, 1):
        assert set(moves[:, axis].tolist()) == set(range(-6, 7))
    assert abs(np.corrcoef(moves.T)[0, 1]) < 0.15


def test_a_patch_is_not_displaced_beyond_its_place() -> None:
    with pytest.raises(ValidationError, match=r"by up to 4 within the 64 of a place, not by 5"):
        CubeConfig(name="sentinel2", cube="cube.zarr", patch=60, displaced=5)
    with pytest.raises(ValidationError, match=r"by up to 0 within"):
        CubeConfig(name="sentinel2", cube="cube.zarr", displaced=1)


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_the_level_is_that_of_the_cube(tmp_path: Path, level: str) -> None:
    """Which says whether the model reads reflectance at the top of the atmosphere or below it."""
    made = made_cube(tmp_path / "cube.zarr", 8, level=level)
    assert _pairs(made).description["level"] == level


def test_more_pairs_than_places_would_make_false_negatives(cube: Cube) -> None:
    assert len(_pairs(cube).batch(0, 29).x) == 29
    with pytest.raises(DataError, match=r"30 pairs needs as many places.*29"):
        _pairs(cube).batch(0, 30)


def test_a_damaged_shard_is_an_error_of_this_package(cube: Cube, tmp_path: Path) -> None:
    copy = tmp_path / "cube.zarr"
    shutil.copytree(cube.path, copy)
    (shard,) = (path for path in (copy / "reflectance").rglob("*") if path.stat().st_size > 50_000)
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"cube\.zarr"):
        CubePairs(copy, bands=None, min_valid=0.9, memory_gb=1.0, seed=0)


def test_a_band_without_variation_is_refused(cube: Cube) -> None:
    level = np.full((2, 1, 64, 64), 0.2, np.float32)
    with pytest.raises(InputError, match="B04 has the same value"):
        Normalisation.fit(("B04",), level)
    with pytest.raises(InputError, match="B04 has the same value"):
        Normalisation.fit(("B04",), level * np.float32(np.nan))
    with pytest.raises(DataError, match="twice"):
        _pairs(cube, bands=("B04", "B04"))


def test_memory_and_disk_give_the_same_batches(cube: Cube) -> None:
    a, b = (_pairs(cube, memory_gb=memory).batch(4, 8) for memory in (1.0, 0.0))
    assert np.array_equal(a.x, b.x)
    assert np.array_equal(a.y, b.y)


def test_bands_come_in_the_order_asked_for(cube: Cube) -> None:
    both, one = _pairs(cube), _pairs(cube, bands=("B08", "B04"))
    x, swapped = both.batch(0, 8).x.numpy(), one.batch(0, 8).x.numpy()
    np.testing.assert_allclose(swapped, x[:, [2, 0]], atol=1e-5)
    assert one.normalisation.bands == ("B08", "B04")


def test_normalisation_is_fitted_on_the_training_split_alone(cube: Cube) -> None:
    norm = _pairs(cube).normalisation
    stored = np.concatenate([cube.read(p).reshape(-1, 3, 64, 64) for p in range(30) if p != 5])
    valid = (stored != 0).all((1, 2, 3))
    truth = stored[valid] * 1e-4 - 0.1
    np.testing.assert_allclose(norm.mean, truth.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.std, truth.std((0, 2, 3)), rtol=1e-5)


def test_labels_are_the_majority_of_the_ground(cube: Cube, tmp_path: Path) -> None:
    classes = ["water", "forest", "bare"]
    ground = np.zeros((320, 512), np.uint8)
    ground[:, 256:] = 2  # columns 4 to 7 of the places
    ground[:64, :40] = 1  # most of place 0
    ulx, uly = TILE.upper_left()
    with rasterio.open(
        tmp_path / "31TCJ.tif", "w", driver="GTiff", width=512, height=320, count=1,
        dtype="uint8", crs=f"EPSG:{TILE.epsg}", transform=Affine(10, 0, ulx, 0, -10, uly),
    ) as file:  # fmt: skip
        file.write(ground, 1)
        file.update_tags(1, classes=json.dumps(classes))
    with rasterio.open(tmp_path / "31TCJ.tif", "r+") as file:
        file.transform = Affine(20, 0, ulx, 0, -20, uly)
    with pytest.raises(DataError, match="does not lie on the 10 m grid"):
        labelled_cube(cube.path, tmp_path, bands=BANDS, min_valid=0.9, dates=2, seed=0)
    with rasterio.open(tmp_path / "31TCJ.tif", "r+") as file:
        file.transform = Affine(10, 0, ulx, 0, -10, uly)
    data = labelled_cube(cube.path, tmp_path, bands=BANDS, min_valid=0.9, dates=2, seed=0)
    names = np.array(data.classes)[data.label]
    expected = np.where(data.place % 8 >= 4, "bare", np.where(data.place == 0, "forest", "water"))
    assert (names == expected).all()
    _, looks = np.unique(data.place, return_counts=True)
    assert sorted(set(looks.tolist())) == [1, 2]  # place 5 has one date
    assert set(data.split[(data.place >= 30) & (data.place < 38)]) == {"test"}
    assert set(data.split[data.place >= 38]) == {"validation"}
    stored = np.rint((data.reflectance[:, 0, 0, 0] + 0.1) * 1e4).astype(int) - 1000
    assert (stored // 100 == data.place).all()
    assert (stored % 100 // 10 == data.date).all()


def test_what_is_missing_is_named(cube: Cube, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="B12"):
        _pairs(cube, bands=("B04", "B12"))
    with pytest.raises(DataError, match=r"nowhere\.zarr"):
        CubePairs(tmp_path / "nowhere.zarr", bands=None, min_valid=0.9, memory_gb=1, seed=0)
    with pytest.raises(DataError, match=r"31TCJ\.tif"):
        labelled_cube(cube.path, tmp_path, bands=BANDS, min_valid=0.9, dates=2, seed=0)
    with pytest.raises(DataError, match="0 places of the holdout split"):
        _pairs(cube, split="holdout")


@pytest.mark.parametrize("turn", [False, True])
def test_the_disk_memory_and_a_device_give_the_same_batches(cube: Cube, turn: bool) -> None:
    near = _pairs(cube, turn=turn)
    for other in ({"memory_gb": 0.0}, {"device": "cpu"}):
        source = _pairs(cube, turn=turn, **other)
        for step in range(3):
            for one, same in zip(_sides(near, step), _sides(source, step), strict=True):
                torch.testing.assert_close(one, same, atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match=r"cannot hold 0\.0 GB of patches on nonsense"):
        _pairs(cube, device="nonsense")


def _sides(source: CubePairs, step: int) -> tuple[Tensor, Tensor]:
    batch = source.batch(step, 8, slice(2, 7))
    return batch.x, batch.y


def test_readers_change_nothing_and_make_no_more_than_is_asked(cube: Cube) -> None:
    source = _pairs(cube, memory_gb=0.0)

    class Counting:
        begun = 0

        def batch(self, step: int, size: int, rows: slice = slice(None)) -> PairBatch:
            Counting.begun += 1
            return source.batch(step, size, rows)

    for readers in (1, 3):
        Counting.begun = 0
        taken = 0
        for step, batch in enumerate(
            prefetched(Counting(), range(5, 17), 8, readers=readers),
            start=5,  # type: ignore[arg-type]
        ):
            taken += 1
            assert torch.equal(batch.x, source.batch(step, 8).x)
            assert Counting.begun <= taken + readers
        assert taken == 12


def test_clouded_dates_are_left_out(cube: Cube, tmp_path: Path) -> None:
    """The masks of the fixture's cube say nothing; of this copy they flag one date of a place."""
    copy = tmp_path / "cube.zarr"
    shutil.copytree(cube.path, copy)
    stored, masks = cube.read(range(PLACES)), cube.read_masks(range(PLACES)).copy()
    masks[7, 2, :40] |= 4  # cloud over five eighths
    write_shard(copy, plan_of(cube), 0, stored, masks)
    usable = usable_dates(open_cube(copy), 0.9, 0.5)
    assert not usable[7, 2]
    assert (usable != usable_dates(cube, 0.9, 0.5)).sum() == 1
    assert usable_dates(open_cube(copy), 0.9)[7, 2]
