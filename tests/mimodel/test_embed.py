"""The index of a cube: its vectors are the model's, its neighbours those of brute force."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pyproj import Transformer
from typer.testing import CliRunner

from mimodel import embed
from mimodel.artifact import Artifact, HeadSpec
from mimodel.cli import app
from mimodel.embed import embed_cube
from mimodel.errors import DataError, InputError, PatchIndexError
from mimodel.index import IndexSpec, PatchIndex, Wanted
from s2pairs.bands import reflectance_from_stored
from s2pairs.cube import Cube
from tests.cubes import DAYS, TILES, made_cube
from tests.models import small_artifact

PATCHES, DATES, SHARD = 40, len(DAYS), 16


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """Of three small shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2pairs.plan.SHARD_PATCHES", SHARD)
        return made_cube(tmp_path_factory.mktemp("cube") / "cube.zarr", PATCHES, columns=4)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Cube:
    return made_cube(tmp_path_factory.mktemp("few") / "cube.zarr", 4, seed=1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "artifact"
    small_artifact(folder, {}, exclusive=8)
    return folder


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(cube: Cube, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index in three parts."""
    out = tmp_path_factory.mktemp("index") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "_PART_SHARDS", 1)
        embed_cube(artifact, cube.path, out, scheduler=None, progress=quiet)
    return out


@pytest.fixture(scope="module")
def index(folder: Path) -> PatchIndex:
    return PatchIndex.load(folder)


def raw(folder: Path, name: str) -> npt.NDArray[np.float32]:
    """Vectors (patch * date, dimension) as they lie in the files."""
    parts = [np.load(file) for file in sorted((folder / name).glob("*.npy"))]
    assert len(parts) == 3
    return np.concatenate(parts).reshape(PATCHES * DATES, -1)


def test_the_vectors_are_the_models_of_every_patch_at_every_date(
    cube: Cube, artifact: Path, folder: Path
) -> None:
    model = Artifact.load(artifact)
    chosen = [0, 1, 2, 15, 16, 39]
    reflectance = reflectance_from_stored(cube.read(chosen))
    for name in ("shared", "exclusive"):
        vectors = raw(folder, name).reshape(PATCHES, DATES, -1)[chosen]
        for at in range(DATES):
            expected = model.embed(reflectance[:, at], cube.bands, name)
            np.testing.assert_allclose(vectors[:, at], expected, atol=1e-4)


def test_the_tables_are_the_cubes(cube: Cube, index: PatchIndex) -> None:
    for name in ("tile", "region", "row", "col", "epsg", "x", "y", "split"):
        np.testing.assert_array_equal(index.patches[name], getattr(cube, name))
    np.testing.assert_array_equal(index.looks["acquired"], cube.acquired)
    np.testing.assert_array_equal(index.looks["valid_fraction"], cube.valid_fraction)
    names = np.array(index.spec.products)[index.looks["product"]]
    np.testing.assert_array_equal(names, cube.product)
    assert index.spec.cube_digest == cube.digest
    for epsg in np.unique(cube.epsg):
        zone = cube.epsg == epsg
        to_lon_lat = Transformer.from_crs(int(epsg), 4326, always_xy=True)
        lon, lat = to_lon_lat.transform(cube.x[zone], cube.y[zone])
        np.testing.assert_allclose(index.patches["lon"][zone], lon, atol=1e-9)
        np.testing.assert_allclose(index.patches["lat"][zone], lat, atol=1e-9)
    assert (index.patches["lat"][cube.tile == TILES[1]] < 0).all()


def brute_force(
    folder: Path, names: tuple[str, ...], row: int, eligible: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Distances of all looks to one, in float64, written straight from the definition."""
    spec = IndexSpec.model_validate_json((folder / "index.json").read_bytes())
    squares = []
    for name in names:
        vectors = raw(folder, name).astype(np.float64)
        difference = (vectors - vectors[row]) / np.array(spec.scaling[name].deviation)
        squares.append((difference**2).mean(1))
    distance = np.sqrt(np.mean(squares, axis=0))
    distance[~eligible] = np.inf
    return distance


@dataclass(frozen=True)
class Grid:
    """Every look by the numbers that made it, all (patch, date)."""

    patch: npt.NDArray[np.int64]
    date: npt.NDArray[np.int64]
    tile: npt.NDArray[np.str_]
    valid: npt.NDArray[np.float32]


WANTED: dict[str, tuple[Wanted, Callable[[Grid], npt.NDArray[np.bool_]]]] = {
    "anything": (Wanted(min_valid=0), lambda of: of.valid > 0),
    "nearly whole": (Wanted(), lambda of: of.valid >= 0.9),
    "half": (Wanted(min_valid=0.5), lambda of: of.valid >= 0.5),
    "a tile": (Wanted(tiles=[TILES[1]]), lambda of: of.tile == TILES[1]),
    "tiles": (Wanted(tiles=TILES), lambda of: of.patch >= 0),
    "no such tile": (Wanted(tiles=["01CCV"]), lambda of: of.patch < 0),
    "a split": (Wanted(split="test"), lambda of: of.patch % 4 == 3),
    "from a day on": (Wanted(start=date(2019, 7, 5)), lambda of: of.date >= 1),
    "up to a day": (Wanted(end=date(2019, 7, 5)), lambda of: of.date <= 1),
    "a summer": (Wanted(months=[6, 7]), lambda of: of.date >= 1),
    "one place": (Wanted(place=7), lambda of: of.patch == 7),
    "another place": (Wanted(not_place=7), lambda of: of.patch != 7),
    "another look": (
        Wanted(not_look=7 * DATES + 2),
        lambda of: (of.patch != 7) | (of.date != 2),
    ),
    "all at once": (
        Wanted(tiles=[TILES[0]], split="train", months=[7], end=date(2019, 12, 31), not_place=4),
        lambda of: (of.tile == TILES[0]) & (of.patch % 4 < 2) & (of.date == 1) & (of.patch != 4),
    ),
}


@pytest.mark.parametrize("representation", ["shared", "exclusive", "both"])
@pytest.mark.parametrize("case", WANTED)
def test_the_nearest_are_those_of_brute_force(
    folder: Path, index: PatchIndex, cube: Cube, representation: str, case: str
) -> None:
    wanted, belongs = WANTED[case]
    eligible = index.eligible(wanted)
    patch, at = np.mgrid[:PATCHES, :DATES]
    grid = Grid(patch, at, np.repeat(cube.tile[:, None], DATES, 1), cube.valid_fraction)
    seen = (grid.valid > 0) & (grid.valid >= wanted.min_valid)
    np.testing.assert_array_equal(eligible, (belongs(grid) & seen).ravel())
    names = index.names(representation)
    for row in (7 * DATES + 2, 30 * DATES):
        distance = brute_force(folder, names, row, eligible)
        (found,) = index.nearest(index.point_of(row, names), names, eligible, count=20)
        expected = np.argsort(distance, kind="stable")[: min(20, eligible.sum())]
        assert [one.patch * DATES + one.date for one in found] == expected.tolist()
        np.testing.assert_allclose([one.distance for one in found], distance[expected], atol=1e-5)
        # Not more than so many looks of a place, and still as many as there can be.
        (few,) = index.nearest(index.point_of(row, names), names, eligible, count=20, per_place=1)
        order = [int(each) for each in np.argsort(distance, kind="stable")[: eligible.sum()]]
        firsts = [each for i, each in enumerate(order)
                  if each // DATES not in {other // DATES for other in order[:i]}]  # fmt: skip
        assert [one.patch * DATES + one.date for one in few] == firsts[:20]


def test_a_search_in_steps_is_the_same_and_keeps_no_third_copy(
    index: PatchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    eligible = index.eligible(Wanted(min_valid=0.5))
    points = {
        names: np.concatenate([index.point_of(row, names) for row in range(0, 60, 3)])
        for names in (("shared",), ("exclusive",), ("shared", "exclusive"))
    }
    whole = {
        names: index.nearest(some, names, eligible, count=9, per_place=2)
        for names, some in points.items()
    }
    monkeypatch.setattr("mimodel.nearest._ROWS", 7)
    for names, some in points.items():
        search = index.search(some, names, eligible, count=9, per_place=2)
        steps = sum(1 for _ in search.steps())
        assert steps == 2 * -(-int(eligible.sum()) // 7)  # of 16 queries, and of four
        for one, other in zip(search.found(), whole[names], strict=True):
            assert [(f.patch, f.date) for f in one] == [(f.patch, f.date) for f in other]
            np.testing.assert_allclose(
                [f.distance for f in one], [f.distance for f in other], atol=1e-4
            )
    assert set(index._flat) == {"shared", "exclusive"}


def test_pixels_find_their_own_look(cube: Cube, artifact: Path, index: PatchIndex) -> None:
    model = Artifact.load(artifact)
    looks = [(3, 1), (39, 0), *[(patch, 2) for patch in range(30)]]
    reflectance = np.stack([reflectance_from_stored(cube.read([p])[0, d]) for p, d in looks])
    for names in (("shared",), ("exclusive",), ("shared", "exclusive")):
        vectors = {name: model.embed(reflectance, cube.bands, name) for name in names}
        nearest = index.nearest(
            index.points(vectors), names, index.eligible(Wanted(min_valid=0)), count=2
        )
        assert [(found[0].patch, found[0].date) for found in nearest] == looks
        assert max(found[0].distance for found in nearest) < 1e-2


def test_two_looks_at_random_are_a_root_of_two_apart(index: PatchIndex) -> None:
    """In the mean square over all pairs of the looks that the scaling is from."""
    trained = index.eligible(Wanted(split="train", min_valid=0.95))
    points = np.concatenate([index.point_of(int(row), ("shared",)) for row in trained.nonzero()[0]])
    found = index.nearest(points, ("shared",), trained, count=len(points))
    squares = [one.distance**2 for looks in found for one in looks]
    assert len(squares) == len(points) ** 2
    assert np.mean(squares) == pytest.approx(2, rel=1e-4)


def test_a_representation_that_is_not_there(few: Cube, tmp_path: Path) -> None:
    small_artifact(tmp_path / "artifact", {})
    embed_cube(tmp_path / "artifact", few.path, tmp_path / "i", scheduler=None, progress=quiet)
    index = PatchIndex.load(tmp_path / "i")
    for name in ("exclusive", "both", "other"):
        with pytest.raises(InputError, match="it has: shared"):
            index.names(name)


def test_thumbnails_are_the_pixels(cube: Cube, index: PatchIndex) -> None:
    low, high = np.array(index.spec.thumbnail_range).T[:, :, None, None]
    assert index.spec.thumbnail_bands == ("B04", "B03", "B02")
    for patch, at in ((0, 0), (2, 1), (16, 2), (39, 0)):
        body = index.thumbnail(patch, at)
        with Image.open(io.BytesIO(body)) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(float)
        seen = reflectance_from_stored(cube.read([patch])[0, at])[:3]
        shade = np.clip((seen - low) / (high - low), 0, 1) * 255
        expected = np.moveaxis(np.where(np.isnan(shade), 127.5, shade), 0, -1)
        assert np.abs(pixels - expected).mean() < 5
    with Image.open(io.BytesIO(index.thumbnail(1, 0))) as picture:
        assert set(np.unique(np.asarray(picture.convert("RGB")))) == {128}


def test_the_sample_is_a_piece_of_ground(cube: Cube, index: PatchIndex) -> None:
    sample = index.spec.sample
    assert sample
    assert index.sample
    pixels = np.load(io.BytesIO(index.sample))
    assert pixels.shape == (4, 256, 256)
    whole = reflectance_from_stored(cube.read(range(PATCHES))[:, sample.date])
    number = {(cube.tile[p], cube.row[p], cube.col[p]): p for p in range(PATCHES)}
    for down in range(0, 256, 64):
        for right in range(0, 256, 64):
            corner = sample.patch
            place = number[(cube.tile[corner], cube.row[corner] + down, cube.col[corner] + right)]
            part = pixels[:, down : down + 64, right : right + 64]
            np.testing.assert_allclose(part * sample.scale + sample.offset, whole[place], atol=1e-6)


def test_a_stopped_index_goes_on_to_the_same_bytes(
    cube: Cube, artifact: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_PART_SHARDS", 1)
    out = tmp_path / "index"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == PATCHES:  # the third part is embedded, and not yet written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_cube(artifact, cube.path, out, scheduler=None, progress=stop)
    assert seen == [0, SHARD, 2 * SHARD, PATCHES]
    with pytest.raises(PatchIndexError, match="goes on where it was stopped"):
        PatchIndex.load(out)
    first = out / "shared" / "00000.npy"
    stood = first.stat().st_mtime_ns
    (out / "exclusive" / "00000.npy.tmp").write_bytes(b"")  # what a kill might leave
    (out / "exclusive" / "00000.npy.tmp").unlink()
    embed_cube(artifact, cube.path, out, scheduler=None, progress=lambda d, _: seen.append(d))
    assert seen[4:] == [2 * SHARD, PATCHES]
    assert first.stat().st_mtime_ns == stood
    assert files_of(out) == files_of(folder)
    # Once more: all stands, and nothing is computed.
    embed_cube(artifact, cube.path, out, scheduler=None, progress=stop)
    # A part that was damaged meanwhile is made again.
    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        embed_cube(artifact, cube.path, again, scheduler=None, progress=stop)
    damaged = again / "exclusive" / "00000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    embed_cube(artifact, cube.path, again, scheduler=None, progress=quiet)
    assert files_of(again) == files_of(folder)


def test_a_cluster_writes_the_same_bytes(
    cube: Cube, artifact: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(embed, "_PART_SHARDS", 1)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        embed_cube(artifact, cube.path, tmp_path / "i", scheduler=address, progress=quiet)
    assert files_of(tmp_path / "i") == files_of(folder)


def test_one_at_a_time_and_one_index_a_folder(
    cube: Cube, few: Cube, artifact: Path, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    small_artifact(other, {}, exclusive=16)
    with pytest.raises(PatchIndexError, match="begun with the artifact"):
        embed_cube(other, cube.path, folder, scheduler=None, progress=quiet)
    with pytest.raises(PatchIndexError, match="another cube"):
        embed_cube(artifact, few.path, folder, scheduler=None, progress=quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(PatchIndexError, match="holds other files"):
        embed_cube(artifact, few.path, tmp_path / "full", scheduler=None, progress=quiet)

    def a_second(done: int, total: int) -> None:
        with pytest.raises(PatchIndexError, match="another mimodel embed"):
            embed_cube(artifact, few.path, tmp_path / "i", scheduler=None, progress=quiet)

    embed_cube(artifact, few.path, tmp_path / "i", scheduler=None, progress=a_second)
    with pytest.raises(DataError, match="no Dask scheduler"):
        embed_cube(artifact, few.path, tmp_path / "j", scheduler="not an address", progress=quiet)


def test_an_index_outlives_a_probe_and_no_other_change(
    artifact: Path, index: PatchIndex, tmp_path: Path
) -> None:
    probed = small_artifact(
        tmp_path / "probed", {"cover": HeadSpec(classes=("a", "b"), hidden=4)}, exclusive=8
    )
    assert probed.digest != Artifact.load(artifact).digest
    index.check_made_with(probed)
    for exclusive in (None, 16):
        other = small_artifact(tmp_path / f"other{exclusive}", {}, exclusive=exclusive)
        with pytest.raises(PatchIndexError, match=r"was made with the artifact untrained-\w+, and"):
            index.check_made_with(other)


DAMAGE: dict[str, tuple[str, str]] = {
    "flipped": ("shared/00001.npy", "digest"),
    "missing": ("exclusive/00000.npy", "not whole"),
    "of another version": ("index.json", "format version 9"),
    "cut": ("index.json", "cannot read"),
    "changed": ("looks.npy", "digest"),
    "a path out of the folder": ("index.json", "not valid"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_one_sentence(folder: Path, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    name, says = DAMAGE[how]
    body = bytearray((copy / name).read_bytes())
    if how == "missing":
        (copy / name).unlink()
    elif how in ("flipped", "changed"):
        body[-3] ^= 1
        (copy / name).write_bytes(body)
    elif how == "cut":
        (copy / name).write_bytes(body[:100])
    else:
        fields = json.loads(body)
        fields |= {"format_version": 9} if "version" in how else {}
        fields["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
        (copy / name).write_text(json.dumps(fields))
    with pytest.raises(PatchIndexError, match=says) as error:
        PatchIndex.load(copy)
    assert "\n" not in str(error.value)


def test_the_command(few: Cube, artifact: Path, tmp_path: Path) -> None:
    options = ["--cube", str(few.path), "--artifact", str(artifact), "--out", str(tmp_path / "i")]
    answer = CliRunner().invoke(app, ["embed", *options])
    assert answer.exit_code == 0, answer.output
    assert f"4 patches at {DATES} dates" in answer.output
    assert PatchIndex.load(tmp_path / "i").spec.patches == 4
    for wrong in (
        ["--cube", "nowhere.zarr", *options[2:]],
        [*options[:2], "--artifact", "nowhere", *options[4:]],
        [*options[:4], "--out", str(artifact / "README.md")],
    ):
        answer = CliRunner().invoke(app, ["embed", *wrong])
        assert answer.exit_code == 2
        assert answer.output.startswith("mimodel: ")
        assert answer.output.count("\n") == 1
